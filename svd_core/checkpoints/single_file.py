"""Stability's one-file layout: opened with the modules' names, and written from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .build_modules import empty_clip
from .config_from_shapes import VAE_LAYERS, clip_config, unet_config, vae_config
from .detect import require_svd
from .keymap import (
    CLIP_PREFIX,
    CONDITIONING_VAE_PREFIX,
    FIRST_ENCODER,
    SECOND_DECODER,
    UNET_PREFIX,
    VAE_PREFIX,
    Keymap,
    UNetLayout,
    clip_pairs,
    unet_pairs,
    vae_decoder_pairs,
    vae_encoder_pairs,
)
from .lazy_tensors import LazyTensor, Tensors, open_tensors, torch_dtypes
from .model_metadata import METADATA_KEY
from .reader import Component, OpenCheckpoint
from .safetensors_writer import write_safetensors
from .sidecar import file_facts

CLIP_COMPUTES = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
"""What the layout cannot say of a CLIP tower, and its readers take for granted: open_clip's ViT-H-14."""


@contextmanager
def open_single_file(path: Path) -> Iterator[OpenCheckpoint]:
    """The one-file checkpoint at `path`, to be read inside the `with`.

    Raises CheckpointError when the file is damaged, of another family, or lacks what tells the modules' sizes.
    """
    with open_tensors([path]) as files:
        tensors, (header,), name = files.tensors, files.headers, files.files[0].name
        require_svd(name, header.tensors)
        facts = file_facts(path, header)
        shapes = {name: info.shape for name, info in header.tensors.items()}
        config, layout = unet_config(name, shapes, facts)
        unet, unet_used = _component("UNet", config, tensors, [(UNET_PREFIX, Keymap(unet_pairs(layout)))])
        vae, vae_used = _vae(name, tensors, vae_config(name, shapes, facts, encoder_prefix(shapes)))
        clip_settings = clip_config(name, shapes, facts)
        clip_map = Keymap(clip_pairs(clip_settings["num_hidden_layers"]))
        clip, clip_used = _component("CLIP tower", clip_settings, tensors, [(CLIP_PREFIX, clip_map)])
        unmapped_keys = {each for component in (unet, vae, clip) for each in component.unmapped_keys}
        ignored = tuple(sorted(tensors.keys() - unet_used - vae_used - clip_used - unmapped_keys))
        yield OpenCheckpoint(name, facts, unet, vae, clip, ignored, files.check_unchanged)


def encoder_prefix(names: Any) -> str:
    """Below which prefix the encoder is that the reference encodes the conditioning image with.

    That is the second VAE's, with its quant_conv (generative-models scripts/sampling/configs/svd.yaml, the embedder of
    cond_frames); a file without it has the first VAE's, which needs none.
    """
    second = CONDITIONING_VAE_PREFIX + "encoder."
    return CONDITIONING_VAE_PREFIX if any(name.startswith(second) for name in names) else VAE_PREFIX


def _component(
    title: str,
    config: dict[str, Any],
    tensors: Tensors,
    places: list[tuple[str, Keymap]],
    expected: tuple[str, ...] = (),
) -> tuple[Component, set[str]]:
    """A component from the tensors below each prefix, renamed by its table; and the file's names it uses.

    Names that begin as one of `expected` may lie below the prefixes and not be used.
    """
    renamed: Tensors = {}
    used: set[str] = set()
    for prefix, keymap in places:
        found, names = keymap.to_module(tensors, prefix)
        renamed.update(found)
        used |= names

    def shown(name: str) -> str:
        for prefix, keymap in places:
            place = keymap.file_name(name)
            if place is not None:
                return prefix + place[0]
        return name

    below = tuple(prefix for prefix, _ in places)
    unused = (name for name in tensors.keys() - used if name.startswith(below) and not name.startswith(expected))
    return Component(title, config, renamed, shown, tuple(sorted(unused))), used


def _vae(file: str, tensors: Tensors, config: dict[str, Any]) -> tuple[Component, set[str]]:
    levels, prefix = len(config["block_out_channels"]), encoder_prefix(tensors)
    encoder = (prefix, Keymap(vae_encoder_pairs(levels, VAE_LAYERS)))
    decoder = (VAE_PREFIX, Keymap(vae_decoder_pairs(levels, VAE_LAYERS)))
    expected = SECOND_DECODER if prefix == VAE_PREFIX else (*SECOND_DECODER, FIRST_ENCODER)
    component, used = _component("VAE", config, tensors, [encoder, decoder], expected)
    if prefix == VAE_PREFIX and not any(name.startswith("quant_conv.") for name in component.tensors):
        identity = identity_quant_conv(2 * config["latent_channels"], _encoder_dtype(component))
        component = replace(component, tensors={**component.tensors, **identity})
    return component, used


def _encoder_dtype(component: Component) -> str:
    last = component.tensors.get("encoder.conv_out.weight")
    return last.dtype if last is not None and last.dtype in torch_dtypes() else "F32"


def identity_quant_conv(channels: int, dtype: str) -> Tensors:
    """The quant_conv that changes nothing, for a file whose encoder has none."""
    import torch

    kind = torch_dtypes()[dtype]
    return {
        "quant_conv.weight": LazyTensor(
            dtype, (channels, channels, 1, 1), lambda: torch.eye(channels, dtype=kind)[:, :, None, None]
        ),
        "quant_conv.bias": LazyTensor(dtype, (channels,), lambda: torch.zeros(channels, dtype=kind)),
    }


def write_single_file(opened: OpenCheckpoint, path: Path, on_tensor: Callable[[], None]) -> None:
    """Write `opened` in Stability's layout to `path`, one tensor at a time, with its facts in the metadata.

    `on_tensor` is called after each tensor. Raises CheckpointError for a shape of model that the layout has no names
    for, and for a setting that it has no place for.
    """
    refuse_what_is_lost(opened)
    layout = _unet_layout(opened)
    facts = replace(
        opened.facts,
        clip_heads=opened.clip.config["num_attention_heads"],
        unet_head_width=_head_width(opened),
        unet_attention=layout.attention,
        unet_layers=layout.layers,
        unet_transformers=_transformer_layers(opened),
        vae_levels=len(opened.vae.config["block_out_channels"]),
        clip_layers=opened.clip.config["num_hidden_layers"],
    )
    write_safetensors(path, single_file_tensors(opened), {"format": "pt", METADATA_KEY: facts.as_text()}, on_tensor)


def single_file_tensors(opened: OpenCheckpoint) -> Tensors:
    """The tensors of `opened` by their names in Stability's layout, still to be read.

    The encoder and quant_conv go below the second VAE's prefix as they are, and with quant_conv folded into the
    encoder below the first VAE's, as ComfyUI's core reads it.
    """
    unet = Keymap(unet_pairs(_unet_layout(opened)))
    encoder, decoder = _vae_maps(opened)
    clip = Keymap(clip_pairs(opened.clip.config["num_hidden_layers"]))
    conditioning = {
        name: tensor for name, tensor in opened.vae.tensors.items() if name.startswith(("encoder.", "quant_conv."))
    }
    return {
        **unet.to_file(opened.unet.tensors, UNET_PREFIX),
        **decoder.to_file(opened.vae.tensors, VAE_PREFIX),
        **encoder.to_file(fold_quant_conv(conditioning), VAE_PREFIX),
        **encoder.to_file(conditioning, CONDITIONING_VAE_PREFIX),
        **clip.to_file(opened.clip.tensors, CLIP_PREFIX),
    }


def fold_quant_conv(encoder: Tensors) -> Tensors:
    """The encoder alone, equal to the encoder followed by quant_conv: a 1x1 convolution of a convolution is one.

    quant_conv(conv_out(x)) = (Q W) x + (Q b + q), computed in float64 and stored in conv_out's own type.
    """
    weight, bias = encoder["encoder.conv_out.weight"], encoder["encoder.conv_out.bias"]
    quant_weight, quant_bias = encoder["quant_conv.weight"], encoder["quant_conv.bias"]

    def folded_weight():
        import torch

        mixed = torch.einsum("om,mihw->oihw", quant_weight.read().double()[:, :, 0, 0], weight.read().double())
        return mixed.to(torch_dtypes()[weight.dtype])

    def folded_bias():
        mixed = quant_weight.read().double()[:, :, 0, 0] @ bias.read().double() + quant_bias.read().double()
        return mixed.to(torch_dtypes()[bias.dtype])

    folded = {name: tensor for name, tensor in encoder.items() if not name.startswith("quant_conv.")}
    folded["encoder.conv_out.weight"] = replace(weight, read=folded_weight)
    folded["encoder.conv_out.bias"] = replace(bias, read=folded_bias)
    return folded


def _unet_layout(opened: OpenCheckpoint) -> UNetLayout:
    config = opened.unet.config
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        layers = layers[0] if len(set(layers)) == 1 else None
    if layers is None:
        raise _no_names(opened, "its UNet's levels have different numbers of layers")
    return UNetLayout(layers, tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"]))


def refuse_what_is_lost(opened: OpenCheckpoint) -> None:
    """Raise CheckpointError when the CLIP tower computes otherwise than who reads the one file will think."""
    config: Any = empty_clip(opened).config
    for key, held in CLIP_COMPUTES.items():
        if getattr(config, key) != held:
            raise _no_names(
                opened, f"its CLIP tower has {key} {getattr(config, key)}, and every tower in the layout has {held}"
            )


def _transformer_layers(opened: OpenCheckpoint) -> int:
    layers = opened.unet.config.get("transformer_layers_per_block", 1)
    numbers = {layers} if isinstance(layers, int) else set(layers)
    if len(numbers) != 1 or not isinstance(number := numbers.pop(), int):
        raise _no_names(opened, "its UNet's attentions have different numbers of transformer layers")
    return number


def _head_width(opened: OpenCheckpoint) -> int:
    widths, heads = opened.unet.config["block_out_channels"], opened.unet.config["num_attention_heads"]
    counts = [heads] * len(widths) if isinstance(heads, int) else heads
    head_widths = {width // count for width, count in zip(widths, counts, strict=True)}
    if len(head_widths) != 1:
        raise _no_names(opened, "its UNet's attention heads are not of one width")
    return head_widths.pop()


def _vae_maps(opened: OpenCheckpoint) -> tuple[Keymap, Keymap]:
    config = opened.vae.config
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    if layers != VAE_LAYERS:
        raise _no_names(opened, f"its VAE has {layers} layers a level, and the layout has {VAE_LAYERS}")
    return Keymap(vae_encoder_pairs(levels, layers)), Keymap(vae_decoder_pairs(levels, layers))


def _no_names(opened: OpenCheckpoint, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{opened.name} cannot be written as one file: {reason}. Keep it as a diffusers folder.",
        code="checkpoint.layout",
    )
