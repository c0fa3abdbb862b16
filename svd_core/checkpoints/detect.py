"""Which family of models a file is, from the names and shapes of its tensors alone. Needs no torch.

What tells them apart: generative-models and ComfyUI's supported_models.py describe the same widths (label_emb of the
UNet: 768 SVD, 256 SV3D_u, 1280 SV3D_p, 2816 SDXL, 2560 its refiner).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from ..errors import CheckpointError
from .keymap import CLIP_PREFIX, CONDITIONING_VAE_PREFIX, UNET_PREFIX, VAE_PREFIX
from .safetensors_header import TensorInfo

Infos = Mapping[str, TensorInfo]

CONV_IN = UNET_PREFIX + "input_blocks.0.0.weight"
LABELS = UNET_PREFIX + "label_emb.0.0.weight"
TEXT_KEYS = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
LORA_MARK = re.compile(r"\.lora_[AB]\.|\.lora[._](down|up)\.|lora_unet_")


class Family(Enum):
    """A family of models, by the name that people know it by."""

    SVD = "SVD"
    SVD_IMAGE_DECODER = "SVD image decoder"
    SV3D_U = "SV3D_u"
    SV3D_P = "SV3D_p"
    SD1 = "SD 1.x"
    SD2 = "SD 2.x"
    SDXL = "SDXL"
    LORA = "LoRA"
    DIFFUSERS_SVD_UNET = "diffusers UNet of an SVD"
    DIFFUSERS_UNET = "diffusers UNet"
    DIFFUSERS_VAE = "diffusers VAE"
    VAE = "VAE"
    CLIP_TOWER = "CLIP image tower"
    EMPTY = "empty"
    UNKNOWN = "unknown"


PART_OF_FOLDER = "it is one part of a diffusers folder. Choose the folder, the one with model_index.json in it"
FROM_TEXT = "it makes single pictures from text. Load it with ComfyUI's Load Checkpoint"
PUBLISHED = "Choose a whole SVD: svd.safetensors, svd_xt.safetensors, or a diffusers folder"
ONE_PART = f"it is one part of a checkpoint alone. {PUBLISHED}"
TURNTABLE = "it turns an object before the camera. Load it with ComfyUI's own nodes for SV3D"
WAY_OUT = {
    Family.SVD_IMAGE_DECODER: (
        "its VAE decodes frame by frame, without the temporal layers. Use the temporal file of the same model: "
        "svd.safetensors in place of svd_image_decoder.safetensors, svd_xt.safetensors in place of "
        "svd_xt_image_decoder.safetensors"
    ),
    Family.SV3D_U: TURNTABLE,
    Family.SV3D_P: TURNTABLE,
    Family.SD1: FROM_TEXT,
    Family.SD2: FROM_TEXT,
    Family.SDXL: FROM_TEXT,
    Family.LORA: "it is a small change to another model, and no model by itself. Choose the checkpoint it was made for",
    Family.DIFFUSERS_SVD_UNET: PART_OF_FOLDER,
    Family.DIFFUSERS_UNET: PART_OF_FOLDER,
    Family.DIFFUSERS_VAE: PART_OF_FOLDER,
    Family.VAE: ONE_PART,
    Family.CLIP_TOWER: ONE_PART,
    Family.EMPTY: f"it holds no tensor at all. {PUBLISHED}",
    Family.UNKNOWN: f"it holds no model that is known here. {PUBLISHED}",
}


def family_of(tensors: Infos) -> Family:
    """The family of a file with these tensors."""
    if not tensors:
        return Family.EMPTY
    if CONV_IN not in tensors and any(map(LORA_MARK.search, tensors)):
        return Family.LORA  # first: some carry the full model's prefixes
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
    labels = _width(tensors, LABELS)
    temporal = any(name.startswith(UNET_PREFIX) and ".time_stack." in name for name in tensors)
    if temporal:
        if labels in (768, None) and _width(tensors, CONV_IN) in (8, None):
            return Family.SVD if _decodes_clips(tensors) else Family.SVD_IMAGE_DECODER
        return {256: Family.SV3D_U, 1280: Family.SV3D_P}.get(labels or 0, Family.UNKNOWN)
    if labels in (2816, 2560):
        return Family.SDXL
    if labels is None:
        return {768: Family.SD1, 1024: Family.SD2}.get(_width(tensors, TEXT_KEYS) or 0, Family.UNKNOWN)
    return Family.UNKNOWN


def _width(tensors: Infos, name: str) -> int | None:
    """How many values a layer takes in: the second size of its weight. None when there is no such weight."""
    info = tensors.get(name)
    return info.shape[1] if info is not None and len(info.shape) > 1 else None


def _decodes_clips(tensors: Infos) -> bool:
    """Whether the decoder has temporal layers; a file without any decoder is not an image decoder either."""
    decoder = [name for name in tensors if name.startswith(VAE_PREFIX + "decoder.")]
    return not decoder or any(".time_stack." in name or "time_mix_conv" in name for name in decoder)


def parts_of(tensors: Infos) -> dict[str, list[str]]:
    """The tensors of a one-file checkpoint by the part they belong to, and the rest."""
    prefixes = {
        "UNet": UNET_PREFIX,
        "VAE": VAE_PREFIX,
        "conditioning VAE": CONDITIONING_VAE_PREFIX,
        "CLIP tower": CLIP_PREFIX,
    }
    parts: dict[str, list[str]] = {}
    for name in tensors:
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), "other")
        parts.setdefault(part, []).append(name)
    return parts


def require_svd(file: str, tensors: Infos) -> None:
    """Raise CheckpointError, naming what it is, unless these are the tensors of a whole SVD checkpoint."""
    family = family_of(tensors)
    if family is not Family.SVD:
        raise CheckpointError(
            f'an SVD checkpoint is needed, and "{file}" is of another kind ({family.value}): {WAY_OUT[family]}.',
            code="checkpoint.family",
        )
    present = parts_of(tensors)
    lacking = [part for part in ("UNet", "VAE", "CLIP tower") if part not in present]
    if lacking:
        raise CheckpointError(
            f'"{file}" has the UNet of an SVD, but no {" and no ".join(lacking)}. A whole checkpoint is needed: '
            "svd.safetensors, svd_xt.safetensors, or a diffusers folder.",
            code="checkpoint.missing_parts",
        )
