"""Detect the model family and the module configurations of a single file from its tensor names and shapes.

Families: generative-models and ComfyUI's supported_models.py use the same widths (label_emb of the UNet: 768 SVD,
256 SV3D_u, 1280 SV3D_p, 2816 SDXL, 2560 its refiner).

Configurations: widths come from shapes, depths from the file's metadata. Depths are not counted from the tensors, so
that an incomplete file is an error instead of a smaller model. Where several tensors have the same width, the majority
decides, so that one damaged tensor is reported and not all the others.

Needs no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from functools import partial
from math import isqrt
from typing import Any

from ..errors import CheckpointError
from .keymap import CLIP_PREFIX, CONDITIONING_VAE_PREFIX, UNET_PREFIX, VAE_PREFIX, UNetLayout
from .model_metadata import ModelMetadata
from .safetensors_header import TensorInfo

Infos = Mapping[str, TensorInfo]
Shapes = Mapping[str, tuple[int, ...]]

CONV_IN = UNET_PREFIX + "input_blocks.0.0.weight"
LABELS = UNET_PREFIX + "label_emb.0.0.weight"
TEXT_KEYS = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
LORA_MARK = re.compile(r"\.lora_[AB]\.|\.lora[._](down|up)\.|lora_unet_")
CLIP_HEAD_WIDTH = 80  # ViT-H-14: 16 heads of 80
VAE_LAYERS = 2
"""ResNet layers per VAE level. The middle has two in the single-file layout, and as many as a level in diffusers."""


FOLDER_COMPONENT = "it is one component of a diffusers folder. Choose the folder, the one with model_index.json in it"
TEXT_TO_IMAGE = "it makes images from text. Load it with ComfyUI's Load Checkpoint"
PUBLISHED = "Choose a complete SVD: svd.safetensors, svd_xt.safetensors, or a diffusers folder"
ONE_COMPONENT = f"it is a single component of a checkpoint. {PUBLISHED}"
ORBIT = "it makes orbital videos of an object. Load it with ComfyUI's own nodes for SV3D"
IMAGE_DECODER = (
    "its VAE decodes frame by frame, without the temporal layers. Use the temporal file of the same model: "
    "svd.safetensors in place of svd_image_decoder.safetensors, svd_xt.safetensors in place of "
    "svd_xt_image_decoder.safetensors"
)
ADAPTER = "it is an adapter for another model, and not a model. Choose the checkpoint it was made for"


class Family(Enum):
    """A model family: its common name, and the reason and fix for errors."""

    SVD = ("SVD", "")
    SVD_IMAGE_DECODER = ("SVD image decoder", IMAGE_DECODER)
    SV3D_U = ("SV3D_u", ORBIT)
    SV3D_P = ("SV3D_p", ORBIT)
    SD1 = ("SD 1.x", TEXT_TO_IMAGE)
    SD2 = ("SD 2.x", TEXT_TO_IMAGE)
    SDXL = ("SDXL", TEXT_TO_IMAGE)
    LORA = ("LoRA", ADAPTER)
    DIFFUSERS_SVD_UNET = ("diffusers UNet of an SVD", FOLDER_COMPONENT)
    DIFFUSERS_UNET = ("diffusers UNet", FOLDER_COMPONENT)
    DIFFUSERS_VAE = ("diffusers VAE", FOLDER_COMPONENT)
    VAE = ("VAE", ONE_COMPONENT)
    CLIP_TOWER = ("CLIP image tower", ONE_COMPONENT)
    EMPTY = ("empty", f"it holds no tensors. {PUBLISHED}")
    UNKNOWN = ("unknown", f"its tensors are of no known model. {PUBLISHED}")

    def __init__(self, label: str, suggestion: str) -> None:
        self.label, self.suggestion = label, suggestion


def detect_family(tensors: Infos) -> Family:
    """Return the family of a file with these tensors."""
    if not tensors:
        return Family.EMPTY
    if CONV_IN not in tensors and any(map(LORA_MARK.search, tensors)):
        return Family.LORA  # first, because some have the full model's prefixes
    if any(name.startswith(UNET_PREFIX) for name in tensors):
        return _family_of_unet(tensors)
    if "conv_in.weight" in tensors and any(name.startswith("down_blocks.0.") for name in tensors):
        temporal = any(".temporal_transformer_blocks." in name for name in tensors)
        return Family.DIFFUSERS_SVD_UNET if temporal else Family.DIFFUSERS_UNET
    if "encoder.conv_in.weight" in tensors and "decoder.conv_in.weight" in tensors:
        return Family.VAE if any(name.startswith("decoder.up.") for name in tensors) else Family.DIFFUSERS_VAE
    if all(name.startswith(VAE_PREFIX) for name in tensors):
        return Family.VAE
    if any(name.endswith("visual_projection.weight") for name in tensors):
        return Family.CLIP_TOWER
    return Family.UNKNOWN


def _family_of_unet(tensors: Infos) -> Family:
    labels = _in_features(tensors, LABELS)
    temporal = any(name.startswith(UNET_PREFIX) and ".time_stack." in name for name in tensors)
    if temporal:
        if labels in (768, None) and _in_features(tensors, CONV_IN) in (8, None):
            return Family.SVD if _has_temporal_decoder(tensors) else Family.SVD_IMAGE_DECODER
        return {256: Family.SV3D_U, 1280: Family.SV3D_P}.get(labels or 0, Family.UNKNOWN)
    if labels in (2816, 2560):
        return Family.SDXL
    if labels is None:
        return {768: Family.SD1, 1024: Family.SD2}.get(_in_features(tensors, TEXT_KEYS) or 0, Family.UNKNOWN)
    return Family.UNKNOWN


def _in_features(tensors: Infos, name: str) -> int | None:
    """Return the number of input channels of a weight. None if there is no such weight."""
    info = tensors.get(name)
    return info.shape[1] if info is not None and len(info.shape) > 1 else None


def _has_temporal_decoder(tensors: Infos) -> bool:
    """Return True if the decoder has temporal layers, or if there is no decoder."""
    decoder = [name for name in tensors if name.startswith(VAE_PREFIX + "decoder.")]
    return not decoder or any(".time_stack." in name or "time_mix_conv" in name for name in decoder)


def group_by_component(tensors: Infos) -> dict[str, list[str]]:
    """Group the tensor names of a single file by component; the rest is "other"."""
    prefixes = {
        "UNet": UNET_PREFIX,
        "VAE": VAE_PREFIX,
        "conditioning VAE": CONDITIONING_VAE_PREFIX,
        "CLIP tower": CLIP_PREFIX,
    }
    groups: dict[str, list[str]] = {}
    for name in tensors:
        component = next((title for title, prefix in prefixes.items() if name.startswith(prefix)), "other")
        groups.setdefault(component, []).append(name)
    return groups


def require_svd(file: str, tensors: Infos) -> None:
    """Raise CheckpointError, with the detected family, unless these are the tensors of a complete SVD checkpoint."""
    family = detect_family(tensors)
    if family is not Family.SVD:
        raise CheckpointError(
            f'an SVD checkpoint is needed, and "{file}" is of another kind ({family.label}): {family.suggestion}.',
            code="checkpoint.family",
        )
    present = group_by_component(tensors)
    missing = [title for title in ("UNet", "VAE", "CLIP tower") if title not in present]
    if missing:
        raise CheckpointError(
            f'"{file}" has the UNet of an SVD, but no {" and no ".join(missing)}. A complete checkpoint is needed: '
            "svd.safetensors, svd_xt.safetensors, or a diffusers folder.",
            code="checkpoint.missing_parts",
        )


def _majority_size(file: str, prefix: str, shapes: Shapes, axis: int, *names: str) -> int:
    """Return the most frequent size along `axis` of the tensors `names` below `prefix`.

    Raises:
        CheckpointError: None of them exists.
    """
    present = [shapes[prefix + name] for name in names if prefix + name in shapes]
    sizes = Counter(shape[axis] for shape in present if len(shape) > axis)
    if not sizes:
        raise CheckpointError(
            f'{file} has no tensor "{prefix}{names[0]}" to read a size from: the checkpoint is not complete. Download '
            "it again, or the published file of the same model.",
            code="checkpoint.missing_tensors",
        )
    return sizes.most_common(1)[0][0]


def unet_config(file: str, shapes: Shapes, metadata: ModelMetadata) -> tuple[dict[str, Any], UNetLayout]:
    """Return arguments for UNetSpatioTemporalConditionModel, and the layout that its tensor names depend on.

    Raises:
        CheckpointError: A tensor that decides a size is missing, or a width is not a multiple of the head width.
    """
    size = partial(_majority_size, file, UNET_PREFIX, shapes)
    layout = UNetLayout(metadata.unet_layers, metadata.unet_attention)
    firsts = [1 + level * (layout.layers + 1) for level in range(len(layout.attention))]  # + 1: the downsampler
    names = ("out_layers.3.weight", "out_layers.3.bias", "out_layers.0.weight", "in_layers.2.bias", "emb_layers.1.bias")
    widths = tuple(size(0, *(f"input_blocks.{first}.0.{name}" for name in names)) for first in firsts)
    cross_blocks = [f"input_blocks.{first}.1" for first, has in zip(firsts, layout.attention, strict=True) if has]
    cross_blocks.append("middle_block.1")
    keys = [f"{block}.transformer_blocks.0.attn2.to_{each}.weight" for block in cross_blocks for each in "kv"]
    vector = size(1, "label_emb.0.0.weight")
    config = {
        "sample_size": _latent_side(metadata),
        "in_channels": size(1, "input_blocks.0.0.weight"),
        "out_channels": size(0, "out.2.bias", "out.2.weight"),
        "down_block_types": tuple(_block_type("Down", has) for has in layout.attention),
        "up_block_types": tuple(_block_type("Up", has) for has in reversed(layout.attention)),
        "block_out_channels": widths,
        "addition_time_embed_dim": vector // 3,  # fps, motion bucket, noise augmentation
        "projection_class_embeddings_input_dim": vector,
        "layers_per_block": layout.layers,
        "cross_attention_dim": size(1, *keys),
        "transformer_layers_per_block": metadata.unet_transformers,
        "num_attention_heads": tuple(_heads(file, "UNet", width, metadata.unet_head_width) for width in widths),
        "num_frames": metadata.defaults().num_frames,
    }
    return config, layout


def _latent_side(metadata: ModelMetadata) -> int:
    """Return the side of a square of latent pixels with the area of the trained size, 96 in SVD's unet/config.json."""
    return max(1, isqrt(metadata.width * metadata.height) // 2 ** (metadata.vae_levels - 1))


def _block_type(side: str, attention: bool) -> str:
    return f"{'CrossAttn' if attention else ''}{side}BlockSpatioTemporal"


def _heads(file: str, component: str, width: int, head_width: int) -> int:
    if width % head_width:
        raise CheckpointError(
            f"the width of the {component} of {file} must be a multiple of {head_width}, the width of an attention "
            f'head in the published models, got {width}. Set the head count in the file\'s "svd_stages" metadata '
            "(unet_head_width, clip_heads).",
            code="checkpoint.heads",
        )
    return width // head_width


def vae_config(file: str, shapes: Shapes, metadata: ModelMetadata, encoder_prefix: str) -> dict[str, Any]:
    """Return arguments for AutoencoderKLTemporalDecoder, with the encoder below `encoder_prefix`.

    Raises:
        CheckpointError: A tensor that decides a size is missing.
    """
    encoder = partial(_majority_size, file, encoder_prefix, shapes)
    decoder = partial(_majority_size, file, VAE_PREFIX, shapes)
    names = ("conv2.weight", "conv2.bias", "norm2.weight", "conv1.bias")
    widths = tuple(
        decoder(0, *(f"decoder.up.{level}.block.0.{name}" for name in names)) for level in range(metadata.vae_levels)
    )
    return {
        "in_channels": encoder(1, "encoder.conv_in.weight"),
        "out_channels": decoder(0, "decoder.conv_out.bias", "decoder.conv_out.weight"),
        "down_block_types": ("DownEncoderBlock2D",) * metadata.vae_levels,
        "block_out_channels": widths,
        "layers_per_block": VAE_LAYERS,
        "latent_channels": decoder(1, "decoder.conv_in.weight"),
        "sample_size": 768,  # SVD vae/config.json; only for diffusers' own tiling, which is not used
        "scaling_factor": metadata.scaling_factor,
        "force_upcast": metadata.force_upcast,
    }


def clip_config(file: str, shapes: Shapes, metadata: ModelMetadata) -> dict[str, Any]:
    """Return arguments for transformers' CLIPVisionConfig.

    Raises:
        CheckpointError: A tensor that decides a size is missing, or the width is not a multiple of the head count.
    """
    size = partial(_majority_size, file, CLIP_PREFIX, shapes)
    width = size(0, "class_embedding", "ln_pre.weight", "ln_post.weight", "conv1.weight")
    patch = size(2, "conv1.weight")
    heads = metadata.clip_heads or _heads(file, "CLIP tower", width, CLIP_HEAD_WIDTH)
    if width % heads:
        raise CheckpointError(
            f'the width of the CLIP tower of {file}, {width}, must be a multiple of "clip_heads" in its metadata, got '
            f'{heads}. Correct the "svd_stages" metadata.',
            code="checkpoint.heads",
        )
    layer = "transformer.resblocks.0"
    return {
        "hidden_size": width,
        "intermediate_size": size(0, f"{layer}.mlp.c_fc.weight", f"{layer}.mlp.c_fc.bias"),
        "num_hidden_layers": metadata.clip_layers,
        "num_attention_heads": heads,
        "num_channels": size(1, "conv1.weight"),
        "patch_size": patch,
        "image_size": patch * isqrt(max(size(0, "positional_embedding") - 1, 1)),
        "projection_dim": size(1, "proj"),
        "hidden_act": "gelu",  # open_clip ViT-H-14; CLIPVisionConfig has another default
    }
