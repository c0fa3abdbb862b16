"""Read and write Stability's single-file layout, with tensors under the modules' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .build_modules import build_clip
from .detect import VAE_LAYERS, clip_config, require_svd, unet_config, vae_config
from .keymap import (
    CONDITIONING_VAE_PREFIX,
    FIRST_ENCODER,
    SECOND_DECODER,
    VAE_PREFIX,
    Keymap,
    UNetLayout,
    clip_keymap,
    unet_keymap,
    vae_decoder_keymap,
    vae_encoder_keymap,
)
from .model_metadata import METADATA_KEY, read_file_metadata
from .reader import Component, LazyTensor, OpenCheckpoint, Tensors, open_tensors, torch_dtypes
from .safetensors_writer import write_safetensors

IMPLIED_CLIP_SETTINGS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
"""Settings of the CLIP image encoder that the layout cannot store. Its readers assume open_clip's ViT-H-14."""


@contextmanager
def open_single_file(path: Path) -> Iterator[OpenCheckpoint]:
    """Open the single-file checkpoint at `path` for reading inside the `with`.

    Raises:
        CheckpointError: The file is damaged, of another family, or lacks tensors that decide the modules' sizes.
    """
    with open_tensors([path]) as files:
        tensors, (header,), file = files.tensors, files.headers, files.files[0].name
        require_svd(file, header.tensors)
        metadata = read_file_metadata(path, header)
        shapes = {name: info.shape for name, info in header.tensors.items()}
        config, layout = unet_config(file, shapes, metadata)
        unet = _component("UNet", config, tensors, [unet_keymap(layout)])
        vae = _vae(tensors, vae_config(file, shapes, metadata, encoder_prefix(shapes)))
        config = clip_config(file, shapes, metadata)
        clip = _component("CLIP tower", config, tensors, [clip_keymap(config["num_hidden_layers"])])
        known = {key for each in (unet, vae, clip) for key in (*map(each.file_key, each.tensors), *each.unmapped_keys)}
        ignored = tuple(sorted(tensors.keys() - known))
        yield OpenCheckpoint(file, metadata, unet, vae, clip, ignored, files.check_unchanged)


def encoder_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the VAE whose encoder the reference implementation encodes the conditioning image with.

    This is the second VAE, with its quant_conv (generative-models scripts/sampling/configs/svd.yaml, the embedder of
    cond_frames). In a file without it, it is the first VAE, whose encoder has no quant_conv.
    """
    second = CONDITIONING_VAE_PREFIX + "encoder."
    return CONDITIONING_VAE_PREFIX if any(name.startswith(second) for name in names) else VAE_PREFIX


def _component(
    title: str, config: dict[str, Any], tensors: Tensors, keymaps: list[Keymap], unused: tuple[str, ...] = ()
) -> Component:
    """Make a component of the tensors in `keymaps`. File names that begin with one of `unused` are no errors."""
    renamed = {name: tensor for keymap in keymaps for name, tensor in keymap.to_module(tensors).items()}

    def file_key(name: str) -> str:
        return next((target[0] for keymap in keymaps if (target := keymap.file_name(name))), name)

    prefixes = tuple(keymap.prefix for keymap in keymaps)
    unmapped = (
        name
        for name in tensors.keys() - set(map(file_key, renamed))
        if name.startswith(prefixes) and not name.startswith(unused)
    )
    return Component(title, config, renamed, file_key, tuple(sorted(unmapped)))


def _vae(tensors: Tensors, config: dict[str, Any]) -> Component:
    levels, prefix = len(config["block_out_channels"]), encoder_prefix(tensors)
    keymaps = [vae_encoder_keymap(levels, VAE_LAYERS, prefix), vae_decoder_keymap(levels, VAE_LAYERS)]
    unused = SECOND_DECODER if prefix == VAE_PREFIX else (*SECOND_DECODER, FIRST_ENCODER)
    component = _component("VAE", config, tensors, keymaps, unused)
    if prefix == VAE_PREFIX and not any(name.startswith("quant_conv.") for name in component.tensors):
        last = component.tensors.get("encoder.conv_out.weight")
        dtype = last.dtype if last is not None and last.dtype in torch_dtypes() else "F32"
        identity = _identity_quant_conv(2 * config["latent_channels"], dtype)
        component = replace(component, tensors={**component.tensors, **identity})
    return component


def _identity_quant_conv(channels: int, dtype: str) -> Tensors:
    """Make the quant_conv that returns its input, for a file whose encoder has none."""
    import torch

    kind = torch_dtypes()[dtype]
    weight = LazyTensor(dtype, (channels, channels, 1, 1), lambda: torch.eye(channels, dtype=kind)[:, :, None, None])
    bias = LazyTensor(dtype, (channels,), lambda: torch.zeros(channels, dtype=kind))
    return {"quant_conv.weight": weight, "quant_conv.bias": bias}


def write_single_file(opened: OpenCheckpoint, path: Path, on_tensor: Callable[[], None]) -> None:
    """Write `opened` in Stability's layout to `path`, one tensor at a time, with its metadata.

    `on_tensor` is called after each tensor.

    Raises:
        CheckpointError: The layout has no names for this architecture, or cannot store a setting.
    """
    check_clip_settings(opened)
    layout = _unet_layout(opened)
    heads = _per_level(opened, "num_attention_heads")
    head_widths = [width // count for width, count in zip(opened.unet.config["block_out_channels"], heads, strict=True)]
    metadata = replace(
        opened.metadata,
        clip_heads=opened.clip.config["num_attention_heads"],
        unet_head_width=_common(opened, "attention head widths", head_widths),
        unet_attention=layout.attention,
        unet_layers=layout.layers,
        unet_transformers=_common(opened, "transformer layers", _per_level(opened, "transformer_layers_per_block")),
        vae_levels=len(opened.vae.config["block_out_channels"]),
        clip_layers=opened.clip.config["num_hidden_layers"],
    )
    write_safetensors(path, single_file_tensors(opened), {"format": "pt", METADATA_KEY: metadata.to_json()}, on_tensor)


def single_file_tensors(opened: OpenCheckpoint) -> Tensors:
    """Return the tensors of `opened` by their names in Stability's layout, still unread.

    Encoder and quant_conv are stored unchanged below the second VAE's prefix. Below the first VAE's prefix, as
    ComfyUI's core reads them, quant_conv is folded into the encoder.
    """
    vae = opened.vae.tensors
    layers, levels = opened.vae.config["layers_per_block"], len(opened.vae.config["block_out_channels"])
    if layers != VAE_LAYERS:
        raise _unsupported(opened, f"the layout has {VAE_LAYERS} layers in each level of the VAE, got {layers}")
    encoder = {name: tensor for name, tensor in vae.items() if name.startswith(("encoder.", "quant_conv."))}
    return {
        **unet_keymap(_unet_layout(opened)).to_file(opened.unet.tensors),
        **vae_decoder_keymap(levels, layers).to_file(vae),
        **vae_encoder_keymap(levels, layers, VAE_PREFIX).to_file(fold_quant_conv(encoder)),
        **vae_encoder_keymap(levels, layers, CONDITIONING_VAE_PREFIX).to_file(encoder),
        **clip_keymap(opened.clip.config["num_hidden_layers"]).to_file(opened.clip.tensors),
    }


def fold_quant_conv(encoder: Tensors) -> Tensors:
    """Fold quant_conv into the encoder's last convolution: a 1x1 convolution of a convolution is one convolution.

    quant_conv(conv_out(x)) = (Q W) x + (Q b + q), computed in float64 and stored in conv_out's dtype.
    """
    weight, bias = encoder["encoder.conv_out.weight"], encoder["encoder.conv_out.bias"]
    quant_weight, quant_bias = encoder["quant_conv.weight"], encoder["quant_conv.bias"]

    def folded_weight():
        import torch

        product = torch.einsum("om,mihw->oihw", quant_weight.read().double()[:, :, 0, 0], weight.read().double())
        return product.to(torch_dtypes()[weight.dtype])

    def folded_bias():
        product = quant_weight.read().double()[:, :, 0, 0] @ bias.read().double()
        return (product + quant_bias.read().double()).to(torch_dtypes()[bias.dtype])

    folded = {name: tensor for name, tensor in encoder.items() if not name.startswith("quant_conv.")}
    folded["encoder.conv_out.weight"] = replace(weight, read=folded_weight)
    folded["encoder.conv_out.bias"] = replace(bias, read=folded_bias)
    return folded


def check_clip_settings(opened: OpenCheckpoint) -> None:
    """Raise CheckpointError if the CLIP image encoder has settings that readers of the layout would replace."""
    config: Any = build_clip(opened).config
    for key, implied in IMPLIED_CLIP_SETTINGS.items():
        if getattr(config, key) != implied:
            raise _unsupported(
                opened, f"the {key} of its CLIP tower must be {implied}, as in all of them, got {getattr(config, key)}"
            )


def _unet_layout(opened: OpenCheckpoint) -> UNetLayout:
    attention = tuple(kind.startswith("CrossAttn") for kind in opened.unet.config["down_block_types"])
    return UNetLayout(_common(opened, "ResNet layers", _per_level(opened, "layers_per_block")), attention)


def _per_level(opened: OpenCheckpoint, key: str) -> list[int]:
    """Return a setting of the UNet for each level. Sequences are per level already."""
    setting = opened.unet.config.get(key, 1)
    return [setting] * len(opened.unet.config["block_out_channels"]) if isinstance(setting, int) else list(setting)


def _common(opened: OpenCheckpoint, title: str, values: list[int]) -> int:
    """Return the value of all levels. Raises CheckpointError if they differ: the layout has one number for all."""
    if len(set(values)) != 1 or not isinstance(values[0], int):
        raise _unsupported(opened, f"{title} must be equal in all levels of the UNet, got {values}")
    return values[0]


def _unsupported(opened: OpenCheckpoint, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{opened.name} cannot be written as one file: {reason}. Keep it as a diffusers folder.",
        code="checkpoint.layout",
    )
