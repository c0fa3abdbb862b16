"""The decoder layer by layer over the whole clip, against diffusers' decoder on the whole clip at once."""

from __future__ import annotations

import itertools

import pytest
import torch
from svd_stages.svd_core.models import vae_decoder as streaming
from svd_stages.svd_core.models.group_norm import GroupNormStatistics
from tiny import tiny_checkpoint

CPU = torch.device("cpu")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vae():
    return tiny_checkpoint().vae.vae


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(frames)
    return torch.randn((frames, 4, height, width), generator=generator) / 0.18215


def whole(vae, latents: torch.Tensor) -> torch.Tensor:
    """All frames in one call of diffusers' decoder, in float64: what both approximate."""
    decoder, indicator = vae.decoder.double(), torch.zeros(1, len(latents))
    try:
        return decoder(latents.double(), num_frames=len(latents), image_only_indicator=indicator)
    finally:
        decoder.float()


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).abs().max() / truth.std()).item()


@pytest.mark.parametrize("slab", [2**26, 50_000, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 9, 13), (5, 5, 7), (14, 8, 8)])
def test_every_cut_gives_the_whole_clips_pixels(vae, monkeypatch, frames, height, width, slab):
    monkeypatch.setattr(streaming, "TILE_NUMEL", slab)
    latents = clip(frames, height, width)
    assert difference(streaming.decode(vae.decoder, latents, CPU), whole(vae, latents)) < TOLERANCE


def test_two_cuts_agree_and_one_cut_repeats_to_the_bit(vae, monkeypatch):
    latents, found = clip(7, 8, 8), []
    for slab in (2**26, 100_000, 100_000, 2_000):
        monkeypatch.setattr(streaming, "TILE_NUMEL", slab)
        found.append(streaming.decode(vae.decoder, latents, CPU))
    assert torch.equal(found[1], found[2])
    for each in found[1:]:
        assert (each - found[0]).abs().max() <= 1e-5 * found[0].abs().max()


def test_what_is_kept_instead_of_computed_again_is_the_same_to_the_bit(vae, monkeypatch):
    monkeypatch.setattr(streaming, "TILE_NUMEL", 20_000)
    latents = clip(7, 8, 8)
    once, again = (streaming.decode(vae.decoder, latents, CPU, keep_hidden=keep) for keep in (True, False))
    assert torch.equal(once, again)


@pytest.mark.parametrize("slab", [2**26, 20_000])
def test_the_layout_of_other_devices(vae, monkeypatch, slab):
    """Channels are last on a CPU only; elsewhere the same work is done on other strides."""
    monkeypatch.setattr(streaming, "TILE_NUMEL", slab)
    monkeypatch.setattr(streaming, "_uses_channels_last", lambda device: False)
    latents = clip(5, 8, 12)
    assert difference(streaming.decode(vae.decoder, latents, CPU), whole(vae, latents)) < TOLERANCE


@pytest.mark.parametrize(("dtype", "deviation"), [(torch.float32, 1e-2), (torch.bfloat16, 0.25), (torch.float16, 0.02)])
def test_groups_that_hardly_vary_are_normalised(dtype, deviation):
    """Their variance is tiny beside their mean: what a difference of squares loses, or makes negative."""
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    part = (10 + deviation * torch.randn((1, 8, 40, 50), generator=torch.Generator("cpu").manual_seed(1))).to(dtype)
    statistics = GroupNormStatistics(norm)
    for rows in part.split(7, dim=2):
        statistics.add(rows)
    wanted = torch.nn.functional.silu(torch.nn.functional.group_norm(part.double(), 4, eps=1e-6))
    assert (statistics.normalize_silu(part).double() - wanted).abs().max() < 0.02


def test_bfloat16_is_no_less_exact_than_diffusers():
    ours, theirs = 0.0, 0.0
    for seed in range(3):
        vae, latents = tiny_checkpoint(seed=seed).vae.vae, clip(5 + seed, 8, 8)
        truth = whole(vae, latents)
        vae.decoder.bfloat16()
        indicator, half = torch.zeros(1, len(latents)), latents.bfloat16()
        stock = vae.decoder(half, num_frames=len(half), image_only_indicator=indicator)
        theirs += ((stock - truth).norm() / truth.norm()).item()
        ours += ((streaming.decode(vae.decoder, half, CPU) - truth).norm() / truth.norm()).item()
    assert ours <= 1.05 * theirs


def test_the_work_is_told_in_small_parts_up_to_all_of_it(vae, monkeypatch):
    monkeypatch.setattr(streaming, "TILE_NUMEL", 20_000)
    told: list[float] = []
    streaming.decode(vae.decoder, clip(5, 8, 8), CPU, on_progress=told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)
    assert max(after - before for before, after in itertools.pairwise(told)) < 0.1


def test_what_an_observer_raises_ends_the_work(vae):
    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.decode(vae.decoder, clip(2, 8, 8), CPU, on_progress=stop)


def test_a_changed_decoder_is_not_streamed():
    decoder = tiny_checkpoint().vae.vae.decoder
    assert streaming.can_stream(decoder)
    hook = decoder.up_blocks[0].resnets[0].register_forward_hook(lambda *told: None)
    assert not streaming.can_stream(decoder)
    hook.remove()
    assert streaming.can_stream(decoder)
    convolution = decoder.up_blocks[0].resnets[0].temporal_res_block.conv1
    convolution.forward = lambda x: x
    assert not streaming.can_stream(decoder)
    del convolution.forward
    assert streaming.can_stream(decoder)
    decoder.conv_in = torch.nn.Sequential(decoder.conv_in)
    assert not streaming.can_stream(decoder)
