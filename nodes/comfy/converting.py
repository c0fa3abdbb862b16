"""Convert a checkpoint to ComfyUI's MODEL, CLIP_VISION and VAE: core loads the tensors by Stability's names."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import torch

from ...svd_core.checkpoints.convert import open_in_memory
from ...svd_core.checkpoints.keymap import CONDITIONING_VAE_PREFIX, UNET_PREFIX
from ...svd_core.checkpoints.single_file import check_clip_settings, single_file_tensors
from ...svd_core.errors import SettingError
from ...svd_core.models.components import Checkpoint
from ...svd_core.models.options import DEFAULT

logger = logging.getLogger(__name__)

CORE_VAE_WIDTHS = [128, 256, 512, 512]  # comfy/sd.py, VAE: the only temporal decoder it can build
CORE_CLIP = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14}
"""comfy/clip_vision_config_h.json"""


def convert_checkpoint(checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
    """Return (MODEL, CLIP_VISION, VAE) with copies of the weights. Memory holds both forms while both are used.

    Raises:
        SettingError: Core cannot build this model.
        CheckpointError: Stability's format cannot represent a setting of this model.
    """
    if checkpoint.model.options != DEFAULT:
        logger.warning("SVDModelOptions has no effect on ComfyUI's samplers")
    opened = open_in_memory(checkpoint)
    check_clip_settings(opened)
    tensors = {
        name: tensor.read()
        for name, tensor in single_file_tensors(opened).items()
        if not name.startswith(CONDITIONING_VAE_PREFIX)
    }
    _check_supported(checkpoint, tensors)
    shared = {tensor.data_ptr() for tensor in tensors.values()}
    model, _, vae, clip_vision = comfy.sd.load_state_dict_guess_config(
        tensors, output_clip=False, output_clipvision=True
    )
    for module in (model.model, vae.first_stage_model, clip_vision.model):
        _copy_shared_weights(module, shared)
    model.model.model_sampling.set_parameters(checkpoint.model.sigma_min, checkpoint.model.sigma_max, 1.0)
    clip_vision.image_mean = list(checkpoint.clip_vision.image_mean)
    clip_vision.image_std = list(checkpoint.clip_vision.image_std)
    return model, clip_vision, vae


def _copy_shared_weights(module: torch.nn.Module, shared: set[int]) -> None:
    """Copy the parameters whose storage is in `shared`. Newer cores keep loaded tensors and patch them in place."""
    for parameter in module.parameters():
        if parameter.data_ptr() in shared:
            parameter.data = parameter.data.clone()


def _check_supported(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    core = comfy.supported_models.SVD_img2vid
    detected = comfy.model_detection.model_config_from_unet(tensors, UNET_PREFIX)
    unet: Any = checkpoint.model.unet.config
    vae: Any = checkpoint.vae.vae.config
    clip: Any = checkpoint.clip_vision.encoder.config
    heads, widths = unet.num_attention_heads, unet.block_out_channels
    counts = [heads] * len(widths) if isinstance(heads, int) else heads
    head_widths = {width / count for width, count in zip(widths, counts, strict=True)}
    supported = {
        "its UNet's widths or depths": isinstance(detected, core),
        "its attention heads": head_widths == {core.unet_extra_config["num_head_channels"]},
        "its VAE's widths": list(vae.block_out_channels) == CORE_VAE_WIDTHS,
        "its CLIP tower": all(getattr(clip, name) == value for name, value in CORE_CLIP.items()),
        "its scaling factor": checkpoint.model.scaling_factor == core.latent_format().scale_factor,
    }
    unsupported = [part for part, is_supported in supported.items() if not is_supported]
    if unsupported:
        raise SettingError(
            f"ComfyUI's core cannot build this model, because it differs from the published SVD in "
            f"{', '.join(unsupported)} (as svd-nano does). Sample it with SVDEulerSampler and decode it with "
            f"SVDTemporalVAEDecode."
        )
