"""Check that a network is one whose forward pass this package can replace by an optimized one."""

from __future__ import annotations

import torch

REIMPLEMENTED = frozenset(
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
"""diffusers' classes whose forward is reimplemented in this package."""
CONTAINERS = frozenset({"ModuleList", "TimestepEmbedding", "Upsample2D", "Downsample2D"})
"""Other classes with submodules in the UNet: called, or only iterated over."""
PROCESSORS = frozenset({"AttnProcessor2_0", "AttnProcessor"})
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
WRAPPERS = ("_hf_hook", "_diffusers_hook")
"""Attributes for hooks of accelerate and of newer diffusers."""
LIBRARIES = ("torch.nn.modules.", "diffusers.models.")
"""Modules whose layers compute what their class and weights define."""
PLAIN_WEIGHTS = frozenset({torch.Tensor})
"""Classes of weights that are neither quantized nor wrapped."""
CALLED_LAYERS = frozenset(
    {
        *("conv_in", "conv_norm_out", "conv_out", "time_proj", "time_embedding", "add_time_proj", "add_embedding"),
        *(
            f"{name}.{layer}"
            for name in ("time_embedding", "add_embedding")
            for layer in ("linear_1", "act", "linear_2")
        ),
    }
)
"""Layers of the UNet that are called: modifications of them take effect."""


def unsupported_reason(unet: torch.nn.Module) -> str | None:
    """Return why a UNet must run through its own forward, None if it can be optimized."""
    if (modification := find_modification(unet, REIMPLEMENTED | CONTAINERS, CALLED_LAYERS)) is not None:
        return modification
    for name, module in unet.named_modules():
        if type(module).__name__ == "Attention" and type(module.processor).__name__ not in PROCESSORS:
            return f"{name} attends with {type(module.processor).__name__}"
    return None


def find_modification(
    network: torch.nn.Module, composites: frozenset[str], called: frozenset[str] = frozenset()
) -> str | None:
    """Find a change of a network that a reimplemented forward would ignore.

    Args:
        network: The network to check.
        composites: Names of the classes that may have submodules.
        called: Names of modules that are called, so that any change of them takes effect.

    Returns:
        A description of the first change. None if there is none.
    """
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind not in composites and any(True for _ in module.children()):
            return f"{name or 'the network'} is a {kind}"
        if name not in called and (modification := modification_of(module)):
            return f"{name or kind} {modification}"
    return None


def modification_of(module: torch.nn.Module) -> str | None:
    """Describe a change by which a module no longer computes what its class and its weights define; None: no change.

    Changes are hooks, a replaced forward (LoRA, caching and offloading do that), a subclass from another library,
    quantized or wrapped weights, resampling, and padding other than zeros.
    """
    if not type(module).__module__.startswith(LIBRARIES):
        return f"is a {type(module).__name__} of another library"
    if any(getattr(module, hooks) for hooks in HOOKS) or any(hasattr(module, name) for name in WRAPPERS):
        return "has a hook"
    if any(name in vars(module) for name in ("forward", "_conv_forward")):
        return "has a replaced forward"
    if type(module).__name__ == "ResnetBlock2D" and (
        module.upsample is not None or module.downsample is not None or module.output_scale_factor != 1.0
    ):
        return "resamples or scales"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"pads with {module.padding_mode}"
    if not all(type(each.data) in PLAIN_WEIGHTS and each.is_floating_point() for each in module.parameters(False)):
        return "has weights of a special kind"
    return None


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Return True for an unmodified nn.Linear: without LoRA or hooks."""
    return type(module) is torch.nn.Linear and modification_of(module) is None
