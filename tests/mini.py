"""An SVD of diffusers' classes that is smaller than `tiny`, for tests that run it hundreds of times."""

from __future__ import annotations

import torch
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.models.components import Checkpoint
from tiny import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, random_checkpoint

UNET = {
    **UNET_CONFIG,
    "block_out_channels": (32, 64),
    "num_attention_heads": (1, 1),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
VAE = {**VAE_CONFIG, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
CLIP = {**CLIP_CONFIG, "num_hidden_layers": 2, "patch_size": 112}


def mini_checkpoint(dtype: torch.dtype = torch.float32, force_upcast: bool = True) -> Checkpoint:
    """Create a checkpoint with the same weights in any dtype; its VAE needs a float32 encoder by default."""
    defaults = VideoDefaults(num_frames=2, width=64, height=64)
    return random_checkpoint(UNET, {**VAE, "force_upcast": force_upcast}, CLIP, defaults, dtype=dtype)
