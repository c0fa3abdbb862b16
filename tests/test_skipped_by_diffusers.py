"""Three laws of diffusers' tests that it long skipped for Stable Video Diffusion, on our nodes.

From diffusers, tests/pipelines/stable_video_diffusion/test_stable_video_diffusion.py and
tests/pipelines/test_pipelines_common.py (Apache-2.0): batch_single_identical, float16_inference and batch_consistent,
with their tolerances, on their small networks and on ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from chain import Settings, decoded, sampled
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae
from tiny import IMAGE_MEAN, IMAGE_STD, tiny_checkpoint

SINGLE_IDENTICAL = 1e-4
FLOAT16 = 5e-2
SETTINGS = Settings(width=64, height=64, frames=2, steps=2, seed=0, max_guidance=2.5)


def diffusers_components() -> Checkpoint:
    """The networks of diffusers' own test, as torch initialises them; four levels of the VAE, for a scale of 8."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64), layers_per_block=2, sample_size=32, in_channels=8, out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=32, num_attention_heads=8, projection_class_embeddings_input_dim=96,
            addition_time_embed_dim=32,
        )  # fmt: skip
        torch.manual_seed(0)
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
        )
        torch.manual_seed(0)
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32, projection_dim=32, num_hidden_layers=5, num_attention_heads=4, image_size=32,
                intermediate_size=37, patch_size=1,
            )
        )  # fmt: skip
    for module in (unet, vae, clip):
        module.eval().requires_grad_(False)
    return Checkpoint(
        model=SVDModel(unet, 0.18215, 0.002, 700.0, VideoDefaults(num_frames=2, width=64, height=64)),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )


NETWORKS: dict[str, Callable[[], Checkpoint]] = {"diffusers'": diffusers_components, "ours": tiny_checkpoint}


@pytest.fixture(scope="module", params=NETWORKS)
def checkpoint(request) -> Checkpoint:
    return NETWORKS[request.param]()


def pictures(count: int) -> torch.Tensor:
    """Different pictures (count, 64, 64, 3)."""
    return torch.rand((count, 64, 64, 3), generator=torch.Generator().manual_seed(0))


def frames_of(checkpoint: Checkpoint, images: torch.Tensor, settings: Settings = SETTINGS) -> list[torch.Tensor]:
    """The whole chain: (F, 64, 64, 3) of each picture."""
    return decoded(checkpoint, sampled(checkpoint, images, settings))


def test_a_video_of_a_batch_is_the_video_of_its_picture_alone(checkpoint):
    """test_inference_batch_single_identical. Video i has seed + i, so the alike picture stands first, as there."""
    images = pictures(2)
    together = frames_of(checkpoint, torch.cat([images[:1], images[:1]]))
    alone = frames_of(checkpoint, images[:1])
    assert len(together) == 2
    assert (together[0] - alone[0]).abs().max() < SINGLE_IDENTICAL
    assert torch.equal(together[0], alone[0])  # ours are to the bit
    assert not torch.equal(together[1], alone[0])  # another seed


def test_batches_of_any_size_give_a_video_of_each_picture():
    """test_inference_batch_consistent: as many videos as pictures, each of its picture."""
    checkpoint, images = diffusers_components(), pictures(3)
    seeds = [replace(SETTINGS, seed=SETTINGS.seed + index) for index in range(3)]
    alone = [frames_of(checkpoint, images[index : index + 1], each)[0] for index, each in enumerate(seeds)]
    for size in (2, 3):
        videos = frames_of(checkpoint, images[:size])
        assert [tuple(video.shape) for video in videos] == [(SETTINGS.frames, 64, 64, 3)] * size
        assert all(map(torch.equal, videos, alone))


def in_float16(checkpoint: Checkpoint) -> Checkpoint:
    """Return the weights, rounded."""
    unet, vae, clip = (
        copy.deepcopy(part.module).to(torch.float16)
        for part in (checkpoint.model, checkpoint.vae, checkpoint.clip_vision)
    )
    model = checkpoint.model
    return Checkpoint(
        model=SVDModel(unet, model.scaling_factor, model.sigma_min, model.sigma_max, model.defaults),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )


def test_half_precision_gives_nearly_the_same_frames(checkpoint):
    """test_float16_inference."""
    (full,) = frames_of(checkpoint, pictures(1))
    (half,) = frames_of(in_float16(checkpoint), pictures(1))
    difference = (full - half).abs().max().item()
    assert 0 < difference < FLOAT16
