"""Our checkpoint as ComfyUI's own MODEL, CLIP_VISION and VAE: the tensors by Stability's names, read by core."""

from __future__ import annotations

from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models

from ...svd_core.checkpoint.keymap import CONDITIONING_VAE_PREFIX, UNET_PREFIX
from ...svd_core.checkpoint.opened import open_in_memory
from ...svd_core.checkpoint.parts import Checkpoint
from ...svd_core.checkpoint.single_file import single_file_tensors
from ...svd_core.errors import SettingError

CORE_SCALING_FACTOR = 0.18215  # comfy/latent_formats.py, SD15
CORE_VAE_WIDTH = 128  # comfy/sd.py, VAE: the one temporal decoder it can build
CORE_CLIP_WIDTH = 1280  # comfy/clip_vision_config_h.json


def own_parts(checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP_VISION, VAE). Core copies the weights: both forms are in memory while both are used.

    Raises SettingError for a model of other widths than core can build.
    """
    tensors = {
        name: tensor.read()
        for name, tensor in single_file_tensors(open_in_memory(checkpoint)).items()
        if not name.startswith(CONDITIONING_VAE_PREFIX)
    }
    _check_known(checkpoint, tensors)
    model, _, vae, clip_vision = comfy.sd.load_state_dict_guess_config(
        tensors, output_clip=False, output_clipvision=True
    )
    ours = checkpoint.model
    model.model.model_sampling.set_parameters(ours.sigma_min, ours.sigma_max, 1.0)
    clip_vision.image_mean = list(checkpoint.clip_vision.image_mean)
    clip_vision.image_std = list(checkpoint.clip_vision.image_std)
    return model, clip_vision, vae


def _check_known(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    detected = comfy.model_detection.model_config_from_unet(tensors, UNET_PREFIX)
    clip_config: Any = checkpoint.clip_vision.encoder.config
    refused = {
        "its UNet's widths or depths": not isinstance(detected, comfy.supported_models.SVD_img2vid),
        "its VAE's widths": checkpoint.vae.first_width != CORE_VAE_WIDTH,
        "its CLIP tower's width": clip_config.hidden_size != CORE_CLIP_WIDTH,
        "its scaling factor": checkpoint.model.scaling_factor != CORE_SCALING_FACTOR,
    }
    found = [what for what, is_refused in refused.items() if is_refused]
    if found:
        raise SettingError(
            f"ComfyUI's core cannot build this model: {', '.join(found)} are not SVD's published ones (svd-nano is "
            f"such a model). Sample it with SVDEulerSampler and decode it with SVDTemporalVAEDecode"
        )
