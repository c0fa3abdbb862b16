"""An even smaller SVD than `tiny`, of the real classes, for tests that run it hundreds of times."""

from __future__ import annotations

import torch
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae
from tiny import CLIP_CONFIG, IMAGE_MEAN, IMAGE_STD, UNET_CONFIG, VAE_CONFIG, fill

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
    """A checkpoint of the same numbers whatever its precision; its VAE asks for a float32 encoder."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**UNET, num_frames=2)
        vae = AutoencoderKLTemporalDecoder(**VAE, force_upcast=force_upcast)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP))
    for seed, module in enumerate((unet, vae, clip)):
        fill(module, seed)
        module.eval().requires_grad_(False).to(dtype)
    defaults = VideoDefaults(num_frames=2, width=64, height=64)
    return Checkpoint(
        model=SVDModel(unet, scaling_factor=0.18215, sigma_min=0.002, sigma_max=700.0, defaults=defaults),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )
