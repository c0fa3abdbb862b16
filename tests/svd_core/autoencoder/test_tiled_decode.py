"""Tiles: seams are blended, frames do not see each other. Beside core's tiling: tests/comfyui."""

from __future__ import annotations

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.autoencoder.decode import decode_windows, plan_windows
from svd_stages.svd_core.autoencoder.tiled_decode import decode_in_tiles
from svd_stages.svd_core.errors import SettingError

CPU = torch.device("cpu")


def latents(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn((frames, 4, height, width), generator=torch.Generator("cpu").manual_seed(2))


def frame_by_frame(vae, clip: torch.Tensor) -> torch.Tensor:
    return decode_windows(vae, clip, plan_windows(len(clip), 1, 0), CPU)


def test_a_tile_that_holds_the_frame_is_the_frame_decoded_alone(tiny):
    clip = latents(2, 8, 8)
    assert torch.allclose(decode_in_tiles(tiny.vae, clip, 64, 16, CPU), frame_by_frame(tiny.vae, clip), atol=1e-6)


def test_a_frame_does_not_depend_on_the_others(tiny):
    clip = latents(2, 8, 8)
    whole = decode_in_tiles(tiny.vae, clip, 8, 0, CPU)
    assert torch.equal(whole[1:], decode_in_tiles(tiny.vae, clip[1:], 8, 0, CPU))


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "scale"), [(8, 12, 8, 2, 8), (9, 21, 8, 0, 4), (17, 8, 8, 3, 8)]
)
def test_where_tiles_agree_blending_changes_nothing(height, width, tile, overlap, scale):
    """A decoder that sees one latent pixel at a time gives the same in any tile."""

    class Enlarging:
        def __init__(self):
            self.scale = scale

        def decode_clip(self, latents: torch.Tensor) -> torch.Tensor:
            return latents[:, :3].tanh().repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    clip = latents(2, height, width)
    tiled = decode_in_tiles(Enlarging(), clip, tile, overlap, CPU)  # pyright: ignore[reportArgumentType]
    whole = (Enlarging().decode_clip(clip) / 2 + 0.5).movedim(1, -1)
    assert torch.allclose(tiled, whole, atol=1e-6)


def test_it_tells_of_each_frame_and_can_be_stopped(tiny):
    told = []

    def stop_at_two(done: int) -> None:
        told.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_in_tiles(tiny.vae, latents(3, 8, 8), 64, 16, CPU, stop_at_two)
    assert told == [1, 2]


def test_tiles_that_would_not_move_on_are_refused(tiny):
    with raises(SettingError, "setting", 8, 4):
        decode_in_tiles(tiny.vae, latents(1, 8, 8), 8, 4, CPU)
