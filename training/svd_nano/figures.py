"""Draw the pictures of the documentation from videos of svd-nano: python -m svd_stages.training.svd_nano.figures."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...svd_core.checkpoints.library import EMBEDDED_FILE
from ...svd_core.checkpoints.load import load_checkpoint
from ...svd_core.pipeline import VideoSettings, image_to_video
from ...svd_core.runtime.runtime import LocalRuntime
from .evaluate import held_out_scenes, true_clip

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
ROCKET = ROOT / "example_workflows" / "rocket.png"
SHOWN = (0, 3, 6, 9, 13)  # frames of a strip
LABELS, GAP = 150, 2  # pixels: width of the column of labels, distance between frames
STRIPS: dict[str, dict[str, dict[str, Any]]] = {
    "motion_bucket_id": {
        "32": {"motion_bucket_id": 32},
        "127 (default)": {},
        "255": {"motion_bucket_id": 255},
    },
    "fps": {"7 (default)": {}, "15": {"fps": 15}, "30": {"fps": 30}},
    "noise_aug_strength": {
        "0.02 (default)": {},
        "0.3": {"noise_aug_strength": 0.3},
        "1.0": {"noise_aug_strength": 1.0},
    },
    "guidance": {
        "1 to 1": {"min_guidance": 1.0, "max_guidance": 1.0},
        "1 to 2.5 (default)": {},
        "1 to 5": {"min_guidance": 1.0, "max_guidance": 5.0},
    },
    "seeds": {"0 (default)": {}, "1": {"seed": 1}, "2": {"seed": 2}},
    "fit": {"crop (default)": {}, "stretch": {"fit": "stretch"}, "pad": {"fit": "pad"}},
}
"""Names of images in docs/images: labels of rows, and what they change in the defaults."""
ANIMATED_BUCKETS = (60, 255)  # motion_bucket_id of rocket.png in the animation
ANIMATED_SCENES = (2, 7)  # of the held-out scenes: a ball and a fish
SCALE = 2

Make = Callable[[VideoSettings], torch.Tensor]
"""Settings -> the video of rocket.png, (F, H, W, 3)."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.figures", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=EMBEDDED_FILE, help="default: the built-in model")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with docs/images and example_workflows")
    parser.add_argument("--steps", type=int, help="sampling steps (default: those of the model's preset)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for path in draw_figures(arguments.file, arguments.root, VideoSettings(steps=arguments.steps)):
        logger.info("wrote %s", path)
    return 0


def draw_figures(file: Path, root: Path, settings: VideoSettings) -> list[Path]:
    """Draw all pictures from videos of the checkpoint `file` into `root`, and return their paths."""
    from PIL import Image

    checkpoint, runtime = load_checkpoint(file, "fp32", "cpu"), LocalRuntime(device_name="cpu")

    def animate(image: torch.Tensor, changed: VideoSettings) -> torch.Tensor:
        return image_to_video(checkpoint, image[None], changed, runtime)[0]

    with Image.open(ROCKET) as opened:
        rocket = opened.convert("RGB")
    pixels = torch.from_numpy(np.array(rocket)).float() / 255
    make = functools.cache(functools.partial(animate, pixels))
    images = {name: draw_strips(make, rows, settings) for name, rows in STRIPS.items()}
    images["first_video"] = _beside(rocket, make(settings))
    paths = [root / "docs" / "images" / f"{name}.png" for name in images]
    for path, image in zip(paths, images.values(), strict=True):
        image.quantize(256).save(path, optimize=True)
    scenes = held_out_scenes(8)
    firsts = [true_clip(scenes[index], replace(settings, num_frames=1))[0] for index in ANIMATED_SCENES]
    clips = [make(replace(settings, fit="stretch", motion_bucket_id=bucket)) for bucket in ANIMATED_BUCKETS]
    clips += [animate(first, settings) for first in firsts]
    paths.append(root / "example_workflows" / "svd_nano.webp")
    save_animation(clips, settings.fps, paths[-1])
    return paths


def draw_strips(make: Make, rows: dict[str, dict[str, Any]], settings: VideoSettings) -> Image:
    """Draw a strip of frames for each of `rows`, with its label at the left."""
    from PIL import Image, ImageDraw, ImageFont

    clips = [make(replace(settings, **changes)) for changes in rows.values()]
    side = clips[0].shape[1] + GAP
    image = Image.new("RGB", (LABELS + len(SHOWN) * side, len(clips) * side), "white")
    draw = ImageDraw.Draw(image)
    for row, (label, clip) in enumerate(zip(rows, clips, strict=True)):
        draw.text((6, row * side + side // 2), label, "black", ImageFont.load_default(14), anchor="lm")
        for column, frame in enumerate(shown(clip)):
            image.paste(frame, (LABELS + column * side, row * side + GAP // 2))
    return image


def _beside(picture: Image, clip: torch.Tensor) -> Image:
    """Draw a picture and a strip of frames beside it."""
    from PIL import Image

    height, side = clip.shape[1], clip.shape[2] + GAP
    left = picture.resize((picture.width * height // picture.height, height), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (left.width + 5 * GAP + len(SHOWN) * side, height + GAP), "white")
    image.paste(left, (0, GAP // 2))
    for column, frame in enumerate(shown(clip)):
        image.paste(frame, (left.width + 5 * GAP + column * side, GAP // 2))
    return image


def shown(clip: torch.Tensor) -> list[Image]:
    """Return the frames SHOWN of a clip (F, H, W, 3), or the last one where the clip is shorter."""
    return [to_image(clip[min(frame, len(clip) - 1)]) for frame in SHOWN]


def to_image(frame: torch.Tensor) -> Image:
    """Convert a frame (H, W, 3) in [0, 1] to an image."""
    from PIL import Image

    return Image.fromarray((frame * 255).round().byte().numpy())


def save_animation(clips: Sequence[torch.Tensor], fps: float, path: Path) -> None:
    """Write clips (F, H, W, 3) side by side as an animated WebP at `fps`, SCALE times as large."""
    from PIL import Image

    frames = [to_image(frame) for frame in torch.cat(list(clips), dim=2)]
    large = [each.resize((SCALE * each.width, SCALE * each.height), Image.Resampling.BICUBIC) for each in frames]
    large[0].save(path, save_all=True, append_images=large[1:], duration=round(1000 / fps), loop=0, quality=85)


if __name__ == "__main__":
    raise SystemExit(main())
