"""A small Stable Video Diffusion of the real classes with random weights: what the tests compute with.

Same architecture as the published models (four levels, two layers a block, heads 64 wide in the UNet), only narrow.
Every parameter is drawn, norms and mix factors too, so that two tensors in each other's place give other numbers.
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


def tiny_checkpoint(num_frames: int = 14, seed: int = 0) -> Checkpoint:
    """A tiny float32 SVD on the CPU, the same for the same arguments; its VAE asks for a float32 encoder."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**UNET_CONFIG, num_frames=num_frames)
        vae = AutoencoderKLTemporalDecoder(**VAE_CONFIG)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_CONFIG))
    for offset, module in enumerate((unet, vae, clip)):
        fill(module, seed=3 * seed + offset)
        module.eval().requires_grad_(False)
    low, high = (1.0, 2.5) if num_frames == 14 else (1.5, 3.0)
    defaults = VideoDefaults(num_frames=num_frames, width=64, height=64, min_guidance=low, max_guidance=high)
    return Checkpoint(
        model=SVDModel(unet, scaling_factor=0.18215, sigma_min=0.002, sigma_max=700.0, defaults=defaults),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )


def fill(module: torch.nn.Module, seed: int) -> None:
    """Draw every parameter: weights that keep the scale of what goes through, norms around 1, biases around 0."""
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
    """diffusers' own StableVideoDiffusionPipeline over the very modules of `checkpoint`: the second implementation."""
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
    """A copy whose weights are contiguous: a run may have laid them out otherwise, which older diffusers refuse."""
    module = copy.deepcopy(module)
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    return module


def save_tiny_folder(path: Path, checkpoint: Checkpoint, variant: str | None = None) -> Path:
    """Write `checkpoint` as a diffusers folder, by diffusers itself."""
    defaults = checkpoint.model.defaults
    model, vae = checkpoint.model, checkpoint.vae
    checkpoint = replace(
        checkpoint, model=replace(model, unet=to_be_saved(model.unet)), vae=replace(vae, vae=to_be_saved(vae.vae))
    )
    tiny_pipeline(checkpoint).save_pretrained(path, variant=variant)
    index = path / "model_index.json"
    facts = {"width": defaults.width, "height": defaults.height}
    index.write_text(json.dumps({**json.loads(index.read_text()), "_svd_stages": facts}, indent=2))
    return path
