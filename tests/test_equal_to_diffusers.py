"""Our chain of nodes against diffusers' StableVideoDiffusionPipeline: same weights, same picture, same seed, float32.

The pipeline and its scheduler are the second implementation; the chain under test imports neither (a test in
test_architecture.py enforces that).
"""

from __future__ import annotations

import pytest
import torch
from chain import Settings, conditioned, decoded, pipeline_frames, sampled
from tiny import mini_checkpoint, tiny_pipeline

# Three steps or more: with two, one step leads from sigma 700 to 0.002 and rounds x, then about 2000, to 1.2e-4 in
# float32 in both programs; a difference of 1e-6 in the image latent then shows as one such unit.
LATENT_TOLERANCE = 1e-5  # relative to the largest latent
FRAME_TOLERANCE = 2e-5  # absolute, frames in [0, 1]

CASES = [
    Settings(frames=14, width=64, height=64, steps=25),
    Settings(frames=14, width=128, height=64, fps=7, motion_bucket_id=127, noise_aug_strength=0.02),
    Settings(frames=14, width=64, height=64, fps=12, motion_bucket_id=180, noise_aug_strength=0.1, min_guidance=1.5),
    Settings(frames=14, width=128, height=64, fps=3, motion_bucket_id=20, noise_aug_strength=0.0, max_guidance=2.5),
    Settings(frames=25, width=64, height=64, seed=7, fps=7, motion_bucket_id=127, noise_aug_strength=0.02),
    Settings(frames=25, width=128, height=64, fps=12, motion_bucket_id=180, noise_aug_strength=0.1, min_guidance=1.5),
    Settings(frames=25, width=64, height=64, fps=3, motion_bucket_id=20, noise_aug_strength=0.0, max_guidance=2.5),
    Settings(frames=14, width=64, height=64, min_guidance=3.0, max_guidance=1.5),
    Settings(frames=14, width=64, height=64, min_guidance=1.0, max_guidance=1.0),
]


def name(settings: Settings) -> str:
    return "-".join(str(value) for value in vars(settings).values())


def run_pipeline(checkpoint, picture, settings: Settings, output_type: str, chunk: int | None = None) -> torch.Tensor:
    return pipeline_frames(tiny_pipeline(checkpoint), picture, settings, output_type, chunk)


@pytest.mark.parametrize("settings", CASES, ids=name)
def test_latents_equal_the_pipelines(tiny, picture, images, settings):
    wanted = run_pipeline(tiny, picture, settings, "latent")[0]
    ours = sampled(tiny, images, settings)["samples"] * tiny.model.scaling_factor
    assert (ours - wanted).abs().max() <= LATENT_TOLERANCE * wanted.abs().max()


LIVELY = {"fps": 12, "motion_bucket_id": 180, "noise_aug_strength": 0.1, "min_guidance": 1.5}
CALM = {"fps": 3, "motion_bucket_id": 20, "noise_aug_strength": 0.0, "max_guidance": 2.5}


@pytest.mark.parametrize(
    ("settings", "chunk"),
    [
        (Settings(frames=14), 7),
        (Settings(frames=14), 14),
        (Settings(frames=25), 5),
        (Settings(frames=25), 8),
        (Settings(frames=14, width=128, height=64, **LIVELY), 5),
        (Settings(frames=25, width=64, height=128, **CALM), 8),
    ],
    ids=lambda value: name(value) if isinstance(value, Settings) else str(value),
)
def test_frames_equal_the_pipelines(tiny, picture, images, settings, chunk):
    wanted = run_pipeline(tiny, picture, settings, "pt", chunk)[0].movedim(1, -1)
    (ours,) = decoded(tiny, sampled(tiny, images, settings), "windowed", chunk_size=chunk, context=0)
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= FRAME_TOLERANCE


def test_exact_decoding_is_the_pipelines_whole_clip(tiny, picture, images):
    settings = Settings()
    wanted = run_pipeline(tiny, picture, settings, "pt")[0].movedim(1, -1)
    (ours,) = decoded(tiny, sampled(tiny, images, settings), "exact")
    assert (ours - wanted).abs().max() <= FRAME_TOLERANCE


def test_half_precision_gives_nearly_the_same_frames(images):
    """diffusers' test_float16_inference, with its tolerance, which is skipped there for this pipeline."""
    settings = Settings(frames=2, max_guidance=2.5)
    full, half = (
        decoded(checkpoint, sampled(checkpoint, images, settings))[0]
        for checkpoint in map(mini_checkpoint, (torch.float32, torch.float16))
    )
    assert 0 < (full - half).abs().max() < 5e-2


def test_guidance_is_kept_where_the_pipeline_switches_it_off(tiny, images):
    """With max <= 1 < min diffusers drops guidance (huggingface/diffusers#13627); ours rises towards frame 0."""
    falling = sampled(tiny, images, Settings(min_guidance=3.0, max_guidance=1.0))["samples"]
    off = sampled(tiny, images, Settings(min_guidance=1.0, max_guidance=1.0))["samples"]
    assert (falling[0] - off[0]).abs().max() > 0.05 * off.abs().max()


def test_clip_embedding_equals_the_pipelines(tiny, picture, images):
    pipeline = tiny_pipeline(tiny)
    wanted = pipeline._encode_image(picture, torch.device("cpu"), 1, False)
    positive, negative, _ = conditioned(tiny, images, Settings())
    assert (positive[0][0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not negative[0][0].any() and not negative[0][1]["concat_latent_image"].any()


@pytest.mark.parametrize("strength", [0.0, 0.02, 0.3])
def test_image_latent_equals_the_pipelines(tiny, picture, images, strength):
    pipeline = tiny_pipeline(tiny)
    pixels = pipeline.video_processor.preprocess(picture, height=64, width=128)
    generator = torch.Generator("cpu").manual_seed(42)
    pixels = pixels + strength * torch.randn(pixels.shape, generator=generator)
    wanted = pipeline._encode_vae_image(pixels, torch.device("cpu"), 1, False)
    settings = Settings(width=128, height=64, noise_aug_strength=strength)
    positive, _, _ = conditioned(tiny, images, settings)
    latent = positive[0][1]["concat_latent_image"]
    assert (latent - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_time_ids_equal_the_pipelines(tiny, images):
    from svd_stages.svd_core.diffusion.conditioning import MicroConditioning

    pipeline = tiny_pipeline(tiny)
    wanted = pipeline._get_add_time_ids(12 - 1, 180, 0.1, torch.float32, 1, 1, False)
    assert torch.equal(MicroConditioning(12, 180, 0.1).time_ids(), wanted)
