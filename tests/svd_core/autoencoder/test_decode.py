"""Windows keep every frame once; a window's result is the decoder's own on its frames."""

from __future__ import annotations

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.autoencoder.decode import decode_windows, place_activations, plan_windows
from svd_stages.svd_core.errors import MemoryBudgetError, SettingError
from svd_stages.svd_core.media.image_ops import to_images
from svd_stages.svd_core.runtime.memory import decode_bytes, offloaded_decode_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn((7, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(0)) / 0.18215


@pytest.mark.parametrize("frames", [1, 2, 7, 14, 25])
@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 30])
@pytest.mark.parametrize("context", [0, 1, 2, 40])
def test_every_frame_is_kept_once_and_seen_with_its_context(frames, chunk, context):
    windows = plan_windows(frames, chunk, context)
    kept = [frame for window in windows for frame in range(window.start, window.stop)]
    assert kept == list(range(frames))
    for window in windows:
        assert window.stop - window.start <= chunk
        assert window.first == max(0, window.start - context)
        assert window.last == min(frames, window.stop + context)


@pytest.mark.parametrize(("chunk", "context"), [(0, 0), (-1, 0), (4, -1)])
def test_a_plan_that_keeps_nothing_is_refused(chunk, context):
    with pytest.raises(SettingError):
        plan_windows(7, chunk, context)


@pytest.mark.parametrize(("chunk", "context"), [(3, 0), (3, 1), (7, 0), (2, 2)])
def test_a_window_is_the_decoders_own_answer(tiny, latents, chunk, context):
    images = decode_windows(tiny.vae, latents, plan_windows(7, chunk, context), CPU)
    assert images.shape == (7, 64, 64, 3) and images.dtype == torch.float32
    for window in plan_windows(7, chunk, context):
        seen = latents[window.first : window.last]
        wanted = to_images(tiny.vae.vae.decode(seen, num_frames=len(seen)).sample)
        kept = wanted[window.start - window.first :][: window.stop - window.start]
        assert (images[window.start : window.stop] - kept).abs().max() < 2e-5


def test_context_brings_windows_closer_to_the_whole_clip(tiny, latents):
    whole = decode_windows(tiny.vae, latents, plan_windows(7, 7, 0), CPU)

    def error(context: int) -> float:
        return (decode_windows(tiny.vae, latents, plan_windows(7, 4, context), CPU) - whole).abs().mean().item()

    assert error(7) < 1e-6 < error(2) < error(0)


def test_the_observer_sees_frames_go_by_and_can_stop(tiny, latents):
    seen = []

    def stop_in_the_second_window(done):
        seen.append(done)
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_windows(tiny.vae, latents, plan_windows(7, 2, 0), CPU, stop_in_the_second_window)
    assert sorted(seen) == seen and set(seen) == {0, 1, 2, 3}


def test_a_device_that_is_too_small_keeps_activations_elsewhere_and_the_plan_says_so(tiny, caplog):
    caplog.set_level("INFO")
    cuda, whole = torch.device("cuda"), plan_windows(25, 25, 0)
    need = decode_bytes(tiny.vae, 25, 576, 1024)
    least = offloaded_decode_bytes(tiny.vae, 25, 576, 1024)
    assert least < need
    kept = 25 * tiny.vae.base_channels * 576 * 1024 * tiny.vae.itemsize
    sizes = (need + kept, need + kept - 1, need, need - 1, least)
    wanted = ["keep", "recompute", "recompute", "offload", "offload"]
    assert [place_activations(tiny.vae, whole, 72, 128, cuda, free) for free in sizes] == wanted
    assert [record.args[1].split("(")[1] for record in caplog.records] == [f"{each})" for each in wanted]
    assert place_activations(tiny.vae, whole, 72, 128, CPU, need + kept) == "recompute"
    with pytest.raises(MemoryBudgetError):
        place_activations(tiny.vae, whole, 72, 128, cuda, least - 1)


def test_a_vae_that_does_not_stream_is_refused_on_a_device_that_is_too_small():
    class Core:
        base_channels, itemsize, scale, streams = 128, 2, 8, False

    cuda, free = torch.device("cuda"), 12 * 2**30
    with raises(MemoryBudgetError, "memory", "1024x576", "windowed"):
        place_activations(Core(), plan_windows(25, 25, 0), 72, 128, cuda, free)
    assert place_activations(Core(), plan_windows(25, 8, 2), 72, 128, cuda, free) == "recompute"
