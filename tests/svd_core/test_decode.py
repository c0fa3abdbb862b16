"""Windows keep every frame once; a window's result is the decoder's own on its frames."""

from __future__ import annotations

import pytest
import torch
from svd_stages.svd_core.decode import decode_windows, plan_windows, whole_clip
from svd_stages.svd_core.errors import MemoryBudgetError, SettingError
from svd_stages.svd_core.images import to_images

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
        assert torch.equal(images[window.start : window.stop], kept)


def test_context_brings_windows_closer_to_the_whole_clip(tiny, latents):
    whole = decode_windows(tiny.vae, latents, plan_windows(7, 7, 0), CPU)

    def error(context: int) -> float:
        return (decode_windows(tiny.vae, latents, plan_windows(7, 4, context), CPU) - whole).abs().mean().item()

    assert error(7) < 1e-6 < error(2) < error(0)


def test_the_observer_sees_every_window_and_can_stop(tiny, latents):
    seen = []

    def stop_at_two(window):
        seen.append((window.start, window.stop))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_windows(tiny.vae, latents, plan_windows(7, 2, 0), CPU, stop_at_two)
    assert seen == [(0, 2), (2, 4)]


def test_exact_refuses_with_the_need_and_the_way_out(tiny, latents):
    assert [(w.start, w.stop, w.first, w.last) for w in whole_clip(tiny.vae, latents, 2**40)] == [(0, 7, 0, 7)]
    with pytest.raises(MemoryBudgetError, match=r"7 frames of 64x64 .* MiB.*windowed with chunk_size \d+"):
        whole_clip(tiny.vae, latents, 2**20)


def test_the_published_decoder_is_counted_as_measured():
    """1.125 GiB a frame at 1024x576 in fp16: a tracker over storages, on the published architecture."""
    from types import SimpleNamespace

    from svd_stages.svd_core.checkpoint.parts import SVDVae
    from svd_stages.svd_core.memory import decode_bytes

    vae = SVDVae(
        SimpleNamespace(
            config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)),
            decoder=torch.nn.Linear(1, 1, dtype=torch.float16),
        )
    )
    assert decode_bytes(vae, 25, 576, 1024) == pytest.approx(28.1 * 2**30, rel=0.01)
