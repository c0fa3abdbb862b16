"""The decoder layer by layer, against diffusers' decoder on the whole clip in one call."""

from __future__ import annotations

import itertools

import pytest
import torch
from svd_stages.svd_core.models import layers, vae_decoder
from svd_stages.svd_core.models.components import SVDVae
from svd_stages.svd_core.models.group_norm import GroupNormStatistics
from tiny import randn, tiny_checkpoint

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vae():
    return tiny_checkpoint().vae.vae


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    return randn(frames, 4, height, width, seed=frames) / 0.18215


def reference(vae, latents: torch.Tensor) -> torch.Tensor:
    """Decode all frames in one call of diffusers' decoder, in float64."""
    decoder, indicator = vae.decoder.double(), torch.zeros(1, len(latents))
    try:
        return decoder(latents.double(), num_frames=len(latents), image_only_indicator=indicator)
    finally:
        decoder.float()


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).abs().max() / truth.std()).item()


@pytest.mark.parametrize("tile", [2**26, 50_000, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 9, 13), (5, 5, 7), (14, 8, 8)])
def test_tiles_of_any_size_give_the_pixels_of_the_whole_clip(vae, monkeypatch, frames, height, width, tile):
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", tile)
    latents = clip(frames, height, width)
    assert difference(vae_decoder.decode(vae.decoder, latents), reference(vae, latents)) < TOLERANCE


def test_tile_sizes_agree_and_one_tile_size_is_deterministic(vae, monkeypatch):
    latents, results = clip(7, 8, 8), []
    for tile in (2**26, 100_000, 100_000, 2_000):
        monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", tile)
        results.append(vae_decoder.decode(vae.decoder, latents))
    assert torch.equal(results[1], results[2])
    for pixels in results[1:]:
        assert (pixels - results[0]).abs().max() <= 1e-5 * results[0].abs().max()


@pytest.mark.parametrize("tile", [2**26, 20_000])
def test_the_memory_format_of_other_devices(vae, monkeypatch, tile):
    """Where Triton's group norm does not work, other devices run the same code on other strides."""
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", tile)
    latents = clip(5, 8, 12)
    pixels = SVDVae(vae, channels_last="off").decode_clip(latents)
    assert not layers.is_channels_last(vae.decoder.up_blocks[0].resnets[0].spatial_res_block.conv1.weight)
    assert difference(pixels, reference(vae, latents)) < TOLERANCE


@pytest.mark.parametrize(("dtype", "deviation"), [(torch.float32, 1e-2), (torch.bfloat16, 0.25), (torch.float16, 0.02)])
def test_groups_with_a_small_variance_are_normalized(dtype, deviation):
    """The variance is tiny beside the mean: a difference of squares would lose it or become negative."""
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    x = (10 + deviation * randn(1, 8, 40, 50, seed=1)).to(dtype)
    statistics = GroupNormStatistics(norm)
    for rows in x.split(7, dim=2):
        statistics.update(rows)
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 4, eps=1e-6))
    assert (statistics.normalize_silu(x).double() - expected).abs().max() < 0.02


def test_bfloat16_is_no_less_exact_than_diffusers():
    ours, theirs = 0.0, 0.0
    for seed in range(3):
        vae, latents = tiny_checkpoint(seed=seed).vae.vae, clip(5 + seed, 8, 8)
        truth = reference(vae, latents)
        vae.decoder.bfloat16()
        indicator, half = torch.zeros(1, len(latents)), latents.bfloat16()
        stock = vae.decoder(half, num_frames=len(half), image_only_indicator=indicator)
        theirs += ((stock - truth).norm() / truth.norm()).item()
        ours += ((vae_decoder.decode(vae.decoder, half) - truth).norm() / truth.norm()).item()
    assert ours <= 1.05 * theirs


def test_progress_comes_in_small_steps_up_to_1(vae, monkeypatch):
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", 20_000)
    progress: list[float] = []
    vae_decoder.decode(vae.decoder, clip(5, 8, 8), on_progress=progress.append)
    assert progress == sorted(progress) and progress[-1] == pytest.approx(1.0)
    assert max(after - before for before, after in itertools.pairwise(progress)) < 0.1


def test_an_exception_of_on_progress_ends_the_decoding(vae):
    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vae_decoder.decode(vae.decoder, clip(2, 8, 8), on_progress=stop)


def test_a_modified_decoder_is_not_streamed():
    decoder = tiny_checkpoint().vae.vae.decoder
    assert vae_decoder.can_stream(decoder)
    hook = decoder.up_blocks[0].resnets[0].register_forward_hook(lambda *arguments: None)
    assert not vae_decoder.can_stream(decoder)
    hook.remove()
    assert vae_decoder.can_stream(decoder)
    convolution = decoder.up_blocks[0].resnets[0].temporal_res_block.conv1
    convolution.forward = lambda x: x
    assert not vae_decoder.can_stream(decoder)
    del convolution.forward
    assert vae_decoder.can_stream(decoder)
    decoder.conv_in = torch.nn.Sequential(decoder.conv_in)
    assert not vae_decoder.can_stream(decoder)
