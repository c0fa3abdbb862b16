"""What is believed of a part's configuration: the settings that shape it, each in its range, and no others.

The libraries build what they are told: a billion layers until the memory is gone, and other keys could name code to
fetch and run. Needs no torch.
"""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError, printable
from .model_metadata import MAX_FRAMES
from .reader import Component, OpenCheckpoint
from .validators import Rule, either, flag, number, one_of, row, whole

LEVELS = 8
LAYERS = whole(1, 8)
TRANSFORMERS = whole(1, 16)
WIDTH = whole(1, 1_000_000)
ANY_NUMBER = number(-1e9, 1e9)


def _each_level(rule: Rule) -> Rule:
    return row(LEVELS, rule)


def _one_or_each_level(rule: Rule) -> Rule:
    return either(rule, _each_level(rule))


SETTINGS: dict[str, dict[str, Rule]] = {
    "UNet": {
        "sample_size": WIDTH,
        "in_channels": WIDTH,
        "out_channels": WIDTH,
        "down_block_types": _each_level(one_of("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")),
        "up_block_types": _each_level(one_of("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")),
        "block_out_channels": _each_level(WIDTH),
        "addition_time_embed_dim": WIDTH,
        "projection_class_embeddings_input_dim": WIDTH,
        "layers_per_block": _one_or_each_level(LAYERS),
        "cross_attention_dim": _one_or_each_level(WIDTH),
        "transformer_layers_per_block": _one_or_each_level(TRANSFORMERS),
        "num_attention_heads": _one_or_each_level(WIDTH),
        "num_frames": whole(1, MAX_FRAMES),
    },
    "VAE": {
        "in_channels": WIDTH,
        "out_channels": WIDTH,
        "down_block_types": _each_level(one_of("DownEncoderBlock2D")),
        "block_out_channels": _each_level(WIDTH),
        "layers_per_block": LAYERS,
        "latent_channels": WIDTH,
        "sample_size": WIDTH,
        "scaling_factor": ANY_NUMBER,
        "force_upcast": flag,
    },
    "CLIP tower": {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": whole(1, 64),
        "num_attention_heads": WIDTH,
        "num_channels": WIDTH,
        "image_size": WIDTH,
        "patch_size": WIDTH,
        "hidden_act": one_of("gelu", "quick_gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"),
        "layer_norm_eps": number(0, 1),
    },
}
"""Part -> setting -> what it may be. A setting that is not there, or null, is the library's own."""


def validated_config(opened: OpenCheckpoint, component: Component) -> dict[str, Any]:
    """The settings of `component` that its module is built from.

    Raises CheckpointError for one that is out of its range, and for more layers than there are tensors to fill them:
    a module is built at the cost of its layers, even without weights.
    """
    rules = SETTINGS[component.title]
    given = {key: component.config[key] for key in rules if component.config.get(key) is not None}
    for key, value in given.items():
        right, need = rules[key](value)
        if not right:
            raise wrong_configuration(opened, component, f"{key} {need}, and is {ascii(value)[:100]}")
    least = _least_tensors(component.title, given)
    if least > len(component.tensors):
        raise CheckpointError(
            f"the {component.title} of {printable(opened.name)} is configured with layers of at least {least} tensors, "
            f"and has {len(component.tensors)}. The checkpoint is not complete; download it again, or the published "
            "one.",
            code="checkpoint.missing_tensors",
        )
    return given


def check_settings(opened: OpenCheckpoint) -> None:
    """Raise CheckpointError as `validated_config` does, for all three parts: before any of them is built."""
    for component in opened.components():
        validated_config(opened, component)


def _least_tensors(title: str, settings: dict[str, Any]) -> int:
    """Fewer tensors than any module of these settings has: one for each norm of its layers."""
    if title == "CLIP tower":
        return 2 * settings.get("num_hidden_layers", 1)
    levels = len(settings.get("block_out_channels", (1,)))
    layers = 2 * levels * _fewest(settings.get("layers_per_block", 1))
    if title == "VAE":
        return 2 * layers
    attentions = sum("Attn" in kind for kind in settings.get("down_block_types", ()))
    transformers = (
        attentions
        * _fewest(settings.get("layers_per_block", 1))
        * _fewest(settings.get("transformer_layers_per_block", 1))
    )
    return 4 * layers + 6 * transformers


def _fewest(numbers: int | list[int]) -> int:
    return numbers if isinstance(numbers, int) else min(numbers)


def wrong_configuration(opened: OpenCheckpoint, component: Component, reason: str) -> CheckpointError:
    """The error for a part that no module can be made of."""
    return CheckpointError(
        f"the {component.title} of {printable(opened.name)} cannot be built from its configuration: {reason}. Download "
        "the checkpoint again, or the published one of the same model.",
        code="checkpoint.config",
    )
