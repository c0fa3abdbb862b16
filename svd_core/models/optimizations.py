"""Which exact rewrites are on, and which modules they know how to rewrite."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True)
class Optimizations:
    """The exact rewrites of the UNet's arithmetic, each with a switch of its own. All are on unless told otherwise.

    cross_attention  attention to the one CLIP token is that token's value (softmax over one key is 1): one row a video
    blend            AlphaBlender as one weighted sum, whose weights are numbers; divisions by 1.0 dropped
    embeddings       embeddings of time, frame position and micro-conditioning once for the whole schedule, with the
                     bias of the convolution they are added after
    qkv              query, key and value of self-attention as one product
    geglu            feed-forward and attention in pieces that stay near the processor, activations in place
    channels_last    channels last in memory from end to end; the convolution over time as a 2D one on a view
    norm_silu        SiLU in place on the group norm's output
    """

    cross_attention: bool = True
    blend: bool = True
    embeddings: bool = True
    qkv: bool = True
    geglu: bool = True
    channels_last: bool = True
    norm_silu: bool = True

    @staticmethod
    def none() -> Optimizations:
        """All of them off."""
        return Optimizations(**{field.name: False for field in fields(Optimizations)})


ALL = Optimizations()

COMPOSITES = frozenset(
    {
        "UNetSpatioTemporalConditionModel",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
        "UNetMidBlockSpatioTemporal",
        "UpBlockSpatioTemporal",
        "CrossAttnUpBlockSpatioTemporal",
        "SpatioTemporalResBlock",
        "ResnetBlock2D",
        "TemporalResnetBlock",
        "AlphaBlender",
        "TransformerSpatioTemporalModel",
        "BasicTransformerBlock",
        "TemporalBasicTransformerBlock",
        "FeedForward",
        "GEGLU",
        "Attention",
    }
)
"""diffusers' classes whose forward is written again here. What is inside them is called as it is."""
PROCESSORS = frozenset({"AttnProcessor2_0", "AttnProcessor"})
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
WRAPPERS = ("_hf_hook", "_diffusers_hook")
"""Where accelerate and newer diffusers keep theirs."""
LIBRARIES = ("torch.nn.modules.", "diffusers.models.")
"""Where layers come from that do what their weights say."""
CALLED = frozenset(
    {
        *("conv_in", "conv_norm_out", "conv_out", "time_proj", "time_embedding", "add_time_proj", "add_embedding"),
        *(
            f"{name}.{layer}"
            for name in ("time_embedding", "add_embedding")
            for layer in ("linear_1", "act", "linear_2")
        ),
    }
)
"""Layers of the UNet that are called as they are, whatever was done to them."""


CONTAINERS = frozenset({"ModuleList", "TimestepEmbedding", "Upsample2D", "Downsample2D"})
"""Composites that are called as they are, or only hold others."""


def unsupported_reason(unet: torch.nn.Module) -> str | None:
    """Why a UNet cannot be rewritten and has to be called as it is; None when it can."""
    if (obstacle := find_modification(unet, COMPOSITES | CONTAINERS, CALLED)) is not None:
        return obstacle
    for name, module in unet.named_modules():
        if type(module).__name__ == "Attention" and type(module.processor).__name__ not in PROCESSORS:
            return f"{name} attends with {type(module.processor).__name__}"
    return None


def find_modification(
    network: torch.nn.Module, known: frozenset[str], called: frozenset[str] = frozenset()
) -> str | None:
    """What of a network would be passed over by a forward that was written for what its classes do; None: nothing.

    known   the classes that may have parts
    called  names of modules that are called as they are, whatever was done to them
    """
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind not in known and any(True for _ in module.children()):
            return f"{name or 'the whole'} is a {kind}"
        if name not in called and (change := modification_of(module)):
            return f"{name or kind} {change}"
    return None


def modification_of(module: torch.nn.Module) -> str | None:
    """What someone has done to a module so that its class and its weights do not tell what it computes; None: nothing.

    Hooks, a forward of its own (as LoRA, caching and offloading put there), a class from elsewhere, weights that only
    look like arrays of numbers, padding with something else than zeros.
    """
    if not type(module).__module__.startswith(LIBRARIES):
        return f"is a {type(module).__name__} from elsewhere"
    if any(getattr(module, hooks) for hooks in HOOKS) or any(hasattr(module, name) for name in WRAPPERS):
        return "has a hook"
    if any(name in vars(module) for name in ("forward", "_conv_forward")):
        return "has a forward of its own"
    if type(module).__name__ == "ResnetBlock2D" and not _is_plain(module):
        return "resamples or scales"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"pads with {module.padding_mode}"
    if not all(type(each.data) is torch.Tensor and each.is_floating_point() for each in module.parameters(False)):
        return "has weights of a special kind"
    return None


def _is_plain(block: Any) -> bool:
    return block.upsample is None and block.downsample is None and block.output_scale_factor == 1.0


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Whether a module is nothing but a product and a sum: no LoRA around it or in it, no hook on it."""
    return type(module) is torch.nn.Linear and modification_of(module) is None
