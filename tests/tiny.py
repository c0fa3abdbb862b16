"""A small Stable Video Diffusion of diffusers' classes with random weights, for the tests.

The architecture is that of the published models (four levels, two layers per block, 64 channels per head in the UNet)
with fewer channels. All parameters are random, norms and mix factors too, so that swapped tensors change the result.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

UNET_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (64, 64, 128, 128),
    "num_attention_heads": (1, 1, 2, 2),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
}
VAE_CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 2,
    "sample_size": 64,
}
CLIP_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 32,
    "image_size": 224,
    "projection_dim": 32,
    "hidden_act": "gelu",
}
SCHEDULER_CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


MINI_UNET_CONFIG = {
    **UNET_CONFIG,
    "block_out_channels": (32, 64),
    "num_attention_heads": (1, 1),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
MINI_VAE_CONFIG = {**VAE_CONFIG, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
MINI_CLIP_CONFIG = {**CLIP_CONFIG, "patch_size": 112}


def tiny_checkpoint(num_frames: int = 14, seed: int = 0, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Create a tiny SVD on the CPU, the same for the same arguments; its VAE needs a float32 encoder."""
    low, high = (1.0, 2.5) if num_frames == 14 else (1.5, 3.0)
    defaults = VideoDefaults(num_frames=num_frames, width=64, height=64, min_guidance=low, max_guidance=high)
    return random_checkpoint(UNET_CONFIG, VAE_CONFIG, CLIP_CONFIG, defaults, seed, dtype)


def mini_checkpoint(dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Create a smaller one, for tests that run it hundreds of times, with the same weights in any dtype."""
    defaults = VideoDefaults(num_frames=2, width=64, height=64)
    return random_checkpoint(MINI_UNET_CONFIG, MINI_VAE_CONFIG, MINI_CLIP_CONFIG, defaults, dtype=dtype)


def random_checkpoint(
    unet_config: dict,
    vae_config: dict,
    clip_config: dict,
    defaults: VideoDefaults,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Create a checkpoint of these configs with random weights, drawn in float32 and then converted."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**unet_config, num_frames=defaults.num_frames)
        vae = AutoencoderKLTemporalDecoder(**vae_config)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**clip_config))
    for offset, module in enumerate((unet, vae, clip)):
        fill(module, seed=3 * seed + offset)
        module.eval().requires_grad_(False).to(dtype)
    return Checkpoint(
        model=SVDModel(unet, scaling_factor=0.18215, sigma_min=0.002, sigma_max=700.0, defaults=defaults),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a float32 tensor on the CPU."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def fill(module: torch.nn.Module, seed: int) -> None:
    """Draw all parameters: weights that keep the scale of activations, norms around 1, biases around 0."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("mix_factor"):
            value = drawn
        elif parameter.ndim > 1:
            value = drawn / math.sqrt(parameter[0].numel())
        elif name.endswith("weight"):
            value = 1 + 0.1 * drawn
        else:
            value = 0.1 * drawn
        parameter.data.copy_(value)


def tiny_pipeline(checkpoint: Checkpoint):
    """Create diffusers' StableVideoDiffusionPipeline with the modules of `checkpoint`, as the reference."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    pipeline = StableVideoDiffusionPipeline(
        vae=checkpoint.vae.vae,
        image_encoder=checkpoint.clip_vision.encoder,
        unet=checkpoint.model.unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULER_CONFIG),
        feature_extractor=CLIPImageProcessor(
            image_mean=list(checkpoint.clip_vision.image_mean), image_std=list(checkpoint.clip_vision.image_std)
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_be_saved(module):
    """Copy a module with contiguous weights: older diffusers refuse the channels-last ones that a run leaves."""
    module = copy.deepcopy(module)
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    return module


def save_tiny_folder(path: Path, checkpoint: Checkpoint, variant: str | None = None) -> Path:
    """Save `checkpoint` as a diffusers folder with diffusers."""
    defaults = checkpoint.model.defaults
    model, vae = checkpoint.model, checkpoint.vae
    checkpoint = replace(
        checkpoint, model=replace(model, unet=to_be_saved(model.unet)), vae=replace(vae, vae=to_be_saved(vae.vae))
    )
    tiny_pipeline(checkpoint).save_pretrained(path, variant=variant)
    index = path / "model_index.json"
    size = {"width": defaults.width, "height": defaults.height}
    index.write_text(json.dumps({**json.loads(index.read_text()), "_svd_stages": size}, indent=2))
    return path
