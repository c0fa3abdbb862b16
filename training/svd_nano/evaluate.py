"""Print a table of svd-nano's abilities, measured on unseen scenes: python -m svd_stages.training.svd_nano.evaluate."""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch

from ...svd_core.autoencoder.decode import decode_windows, plan_windows
from ...svd_core.autoencoder.encode import encode_images
from ...svd_core.errors import SettingError
from ...svd_core.media.image_ops import psnr
from ...svd_core.models.components import Checkpoint
from ...svd_core.pipeline import VideoSettings, image_to_video
from ...svd_core.runtime.runtime import LocalRuntime
from ...svd_core.sampler_comparison import FORM, Candidate
from .architecture import METADATA, NanoModules
from .clips import FASTEST, HELD_OUT, KINDS, MovingScene, make_scene, positions, render_clip
from .frontier import TITLE, draw_frontier, read_points
from .sampler_rows import CANDIDATES, sampler_rows, schedule_rows
from .tracking import along, cosine, displacement, moving_part, sharpness, stays_inside, track
from .train_unet import ClipSize, denoising_error, encode_clips

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
BUCKETS = (32, 80, 127, 190, 255)
STRENGTHS = (0.0, 0.1, 0.5, 1.0)
OBLONG = ((192, 128), (128, 192))
LEVELS = (1.0, 10.0, 100.0)
SEEN, UNSEEN = 160_000, 5_000
"""First seeds of clips of 128x128 that the UNet was trained on, and of clips that no part was trained on."""
GROUPS = (
    "tracker",
    "vae",
    "time",
    "denoising",
    "motion",
    "distance",
    "noise",
    "guidance",
    "kinds",
    "samplers",
    "schedule",
)
DEFAULT_GROUPS = tuple(name for name in GROUPS if name not in ("samplers", "schedule"))

SETTINGS = VideoSettings(num_frames=14, noise="comfyui", preset="reference", steps=25)
Row = tuple[str, str, str]
"""A row of the table: measure, required value, measured value."""


def held_out_scenes(count: int, kinds: Sequence[str] = KINDS, width: int = 128, height: int = 128) -> list[MovingScene]:
    """Draw `count` scenes of `kinds` in turn whose objects stay in the image at bucket 255, with seeds for evaluation.

    Raises:
        SettingError: The seeds below 1000 give fewer such scenes.
    """
    scenes: list[MovingScene] = []
    for seed in range(1000):
        if len(scenes) == count:
            break
        scene = make_scene(seed, width, height, (kinds[len(scenes) % len(kinds)],))
        if stays_inside(scene, 14, FASTEST, SETTINGS.fps):
            scenes.append(scene)
    if len(scenes) < count:
        raise SettingError(f"at most {len(scenes)} held-out scenes of these kinds exist, got {count}. Ask for fewer.")
    return scenes


Make = Callable[[MovingScene, VideoSettings], torch.Tensor]
"""(scene, settings) -> the model's clip from the scene's first frame, (F, H, W, 3)."""


def cached_generate(checkpoint: Checkpoint) -> Make:
    """Return `generate` from a scene's first frame with the scene's seed, which caches clips and logs their times."""

    @functools.cache
    def make(scene: MovingScene, settings: VideoSettings) -> torch.Tensor:
        start = time.monotonic()
        clip = generate(checkpoint, true_clip(scene, replace(settings, num_frames=1))[0], settings, scene.mover.seed)
        logger.info("clip %d: %.1f s", make.cache_info().misses, time.monotonic() - start)
        return clip

    return make


def generate(checkpoint: Checkpoint, image: torch.Tensor, settings: VideoSettings, seed: int) -> torch.Tensor:
    """Generate the video (F, H, W, 3) of an image (H, W, 3) in its size."""
    height, width = image.shape[:2]
    settings = replace(settings, seed=seed, width=width, height=height)
    return image_to_video(checkpoint, image[None], settings, LocalRuntime(device_name="cpu"))[0]


def true_clip(scene: MovingScene, settings: VideoSettings) -> torch.Tensor:
    """Render the scene at these settings: images (F, H, W, 3)."""
    return render_clip(scene, settings.num_frames, settings.motion_bucket_id, settings.fps)


def track_ends(scene: MovingScene, images: torch.Tensor) -> torch.Tensor:
    """Find the scene's object in the first and the last frame of a clip: (2, 2)."""
    return track(images[[0, -1]], scene)


def tracking_error(scene: MovingScene, other: MovingScene, settings: VideoSettings) -> float:
    """Compare the motion tracked in the true clip of `other` with that of `scene`, in image widths."""
    frames, bucket, fps = settings.num_frames, settings.motion_bucket_id, settings.fps
    expected = displacement(positions(scene.mover, frames, bucket, fps))
    tracked = displacement(track_ends(other, true_clip(other, settings)))
    return float((tracked - expected).norm()) * scene.height / scene.width


def tracker_rows(scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the tracker on true clips, and on clips of another scene."""
    by_bucket = [replace(settings, motion_bucket_id=bucket) for bucket in BUCKETS]
    worst = max(tracking_error(scene, scene, each) for scene in scenes for each in by_bucket)
    yield "object tracker, true clips of 5 buckets: largest error", "<= 1 % of width", _percent(worst)
    pairs = zip(scenes, [*scenes[1:], scenes[0]], strict=True)
    shuffled = median(tracking_error(scene, other, settings) for scene, other in pairs)
    yield "object tracker, shuffled pairs: median error", "> 8 % of width", _percent(shuffled)


def reconstruct(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    """Encode and decode the images (F, H, W, 3) of a clip."""
    latents = encode_images(checkpoint.vae, images, CPU)
    return decode_windows(checkpoint.vae, latents, plan_windows(len(images), len(images), 0), CPU)


def vae_rows(checkpoint: Checkpoint, scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the reconstruction of clips and of their moving parts, and the standard deviation of scaled latents."""
    clips = [true_clip(scene, settings) for scene in scenes]
    decoded = [reconstruct(checkpoint, clip) for clip in clips]
    quality = mean(psnr(*pair) for pair in zip(decoded, clips, strict=True))
    first, last = (mean(_moving_psnr(*pair, frame) for pair in zip(decoded, clips, strict=True)) for frame in (0, -1))
    latents = torch.cat([encode_images(checkpoint.vae, clip[:1], CPU) for clip in clips])
    deviation = float(latents.std() * checkpoint.model.scaling_factor)
    yield "VAE reconstruction, PSNR", ">= 28 dB", f"{quality:.1f} dB"
    yield "VAE reconstruction, moving part of the first / last frame, PSNR", "reported", f"{first:.2f} / {last:.2f} dB"
    yield "deviation of scaled latents", "about 1", f"{deviation:.2f}"


def denoising_rows(checkpoint: Checkpoint, count: int, settings: VideoSettings) -> Iterator[Row]:
    """Measure one step of the UNet on encoded clips: much more error on unseen ones calls for more clips."""
    modules = NanoModules(checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder)
    size = ClipSize(METADATA.width, METADATA.height, count, count)
    seen, unseen = (encode_clips(modules, size, seed, settings.num_frames) for seed in (SEEN, UNSEEN))
    for level in LEVELS:
        value = " / ".join(f"{denoising_error(modules.unet, each, level):.3f}" for each in (seen, unseen))
        yield f"squared error of moving latents at sigma {level:g}, trained / other clips", "reported", value


def motion_rows(make: Make, scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the first and the last frame, the direction and the last position at one setting."""
    clips = [make(scene, settings) for scene in scenes]
    truths = [true_clip(scene, settings) for scene in scenes]
    first = mean(psnr(clip[0], truth[0]) for clip, truth in zip(clips, truths, strict=True))
    last = mean(psnr(clip[-1], truth[-1]) for clip, truth in zip(clips, truths, strict=True))
    moving = mean(_moving_psnr(clip, truth, -1) for clip, truth in zip(clips, truths, strict=True))
    errors = [position_error(*each) for each in zip(scenes, clips, truths, strict=True)]
    yield "first frame against the image, PSNR", ">= 24 dB", f"{first:.1f} dB"
    yield "last frame / its moving part, PSNR", "reported", f"{last:.2f} / {moving:.2f} dB"
    yield "direction, mean cosine", ">= 0.9", f"{_mean_cosine(scenes, clips):.3f}"
    yield "place at the last frame, median error", "<= 8 % of width", _percent(median(errors))


def position_error(scene: MovingScene, clip: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the error of the object's last position in image widths, infinite if the object is lost."""
    error = float((track_ends(scene, clip)[-1] - track_ends(scene, truth)[-1]).norm()) * scene.height / scene.width
    return math.inf if math.isnan(error) else error


def motion_of(scene: MovingScene, clip: torch.Tensor) -> torch.Tensor:
    """Return the displacement (2,) of the scene's object in a clip, zero if the object is lost."""
    return displacement(track_ends(scene, clip)).nan_to_num(0.0)


def kind_rows(make: Make, count: int, settings: VideoSettings) -> Iterator[Row]:
    """Measure the direction for kinds of objects that are not in training, and in oblong images."""
    unseen = held_out_scenes(count, HELD_OUT)
    oblong = [(f"{width}x{height}", held_out_scenes(count, KINDS, width, height)) for width, height in OBLONG]
    for name, scenes in (("kinds kept out of training", unseen), *oblong):
        value = _mean_cosine(scenes, [make(scene, settings) for scene in scenes])
        yield f"direction, mean cosine, {name} ({count} scenes)", "reported", f"{value:.3f}"


def time_rows(checkpoint: Checkpoint, scene: MovingScene, settings: VideoSettings) -> Iterator[Row]:
    """Measure the time of one clip, from the image to decoded frames."""
    image = true_clip(scene, settings)[0]
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        generate(checkpoint, image, settings, scene.mover.seed)
        seconds.append(time.monotonic() - start)
    value = f"{median(seconds):.1f} s on {torch.get_num_threads()} threads"
    yield f"{settings.num_frames} frames, {settings.steps} steps, decoded", "<= 25 s", value


def distance_rows(make: Make, scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the distance moved over motion_bucket_id, fps and noise_aug_strength."""

    def distances(**changes: float) -> list[float]:
        changed = replace(settings, **changes)
        return [along(motion_of(scene, make(scene, changed)), scene) for scene in scenes]

    def ratio(numerator: list[float], denominator: list[float]) -> str:
        return f"{median(numerator) / max(median(denominator), 1e-9):.2f}"

    by_bucket = [distances(motion_bucket_id=bucket) for bucket in BUCKETS]
    rising = mean(all(a < b for a, b in itertools.pairwise(row)) for row in zip(*by_bucket, strict=True))
    by_fps = ratio(distances(fps=7), distances(fps=15))
    by_noise = ratio(distances(noise_aug_strength=0.5), distances())
    yield "distance, bucket 255 / 32", ">= 2.5", ratio(by_bucket[-1], by_bucket[0])
    yield "distance rises over 5 buckets", ">= 90 % of scenes", _percent(rising)
    yield "distance per frame, fps 7 / 15", "1.5 ... 2.8", by_fps
    yield "distance, noise_aug_strength 0.5 / 0.02", "reported", by_noise


def noise_rows(make: Make, scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the similarity of the first frame to the image over noise_aug_strength."""

    def similarity(strength: float) -> float:
        changed = replace(settings, noise_aug_strength=strength)
        return mean(psnr(make(scene, changed)[0], true_clip(scene, changed)[0]) for scene in scenes)

    values = " / ".join(f"{similarity(strength):.1f}" for strength in STRENGTHS)
    yield "first frame, PSNR at noise_aug_strength 0 / 0.1 / 0.5 / 1", "falling", f"{values} dB"


def guidance_rows(make: Make, scenes: list[MovingScene], settings: VideoSettings) -> Iterator[Row]:
    """Measure the last frame without guidance, with the model's default, and with guidance 1 -> 3."""
    for largest in (1.0, METADATA.max_guidance, 3.0):
        changed = replace(settings, min_guidance=1.0, max_guidance=largest)
        last = [make(scene, changed)[-1] for scene in scenes]
        error = mean(psnr(frame, true_clip(scene, changed)[-1]) for frame, scene in zip(last, scenes, strict=True))
        energy = mean(sharpness(frame) for frame in last)
        required = "compare" if largest == 1.0 else "error not worse, sharper"
        name = f"last frame, guidance 1->{largest:g}: PSNR, gradient energy"
        yield name, required, f"{error:.2f} dB, {energy:.5f}"


def measure(
    checkpoint: Checkpoint,
    count: int,
    settings: VideoSettings,
    write: Callable[[str], object],
    groups: Sequence[str] = DEFAULT_GROUPS,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> None:
    """Write these groups of rows over `count` held-out scenes, one row at a time. `candidates`: samplers."""
    scenes = held_out_scenes(count)
    make = cached_generate(checkpoint)
    rows = {
        "tracker": tracker_rows(scenes, settings),
        "vae": vae_rows(checkpoint, scenes, settings),
        "time": time_rows(checkpoint, scenes[0], settings),
        "denoising": denoising_rows(checkpoint, count, settings),
        "motion": motion_rows(make, scenes, settings),
        "distance": distance_rows(make, scenes, settings),
        "noise": noise_rows(make, scenes, settings),
        "guidance": guidance_rows(make, scenes, settings),
        "kinds": kind_rows(make, max(1, count // 4), settings),
        "samplers": sampler_rows(
            checkpoint, scenes, [true_clip(scene, settings) for scene in scenes], settings, position_error, candidates
        ),
        "schedule": schedule_rows(
            checkpoint, scenes, [true_clip(scene, replace(settings, num_frames=1)) for scene in scenes], settings
        ),
    }
    write("| measure | must be | is |\n|---|---|---|\n")
    for row in itertools.chain.from_iterable(rows[name] for name in groups):
        write(f"| {' | '.join(row)} |\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    from ...svd_core.checkpoints.library import EMBEDDED_FILE
    from ...svd_core.checkpoints.load import load_checkpoint

    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.evaluate", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=EMBEDDED_FILE, help="default: the built-in model")
    parser.add_argument("--scenes", type=int, default=32, help="number of scenes (%(default)s)")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="sampling steps (%(default)s)")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=GROUPS,
        default=DEFAULT_GROUPS,
        help="groups of rows (default: all but samplers and schedule)",
    )
    parser.add_argument(
        "--candidates", nargs="+", type=_candidate, default=CANDIDATES, metavar="CANDIDATE",
        help=f"rows of samplers, in place of those of sampler_rows.py: {FORM}",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="draw the rows of samplers: network calls, latent error"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    table: list[str] = []

    def write(text: str) -> None:
        table.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    with torch.inference_mode():
        checkpoint = load_checkpoint(arguments.file, "fp32", CPU)
        settings = replace(SETTINGS, steps=arguments.steps)
        measure(checkpoint, arguments.scenes, settings, write, arguments.rows, arguments.candidates)
    if arguments.plot is not None:
        arguments.plot.write_text(draw_frontier(read_points("".join(table)), TITLE), encoding="utf-8")
    return 0


def _candidate(text: str) -> Candidate:
    """Read a candidate. The type of an option."""
    try:
        return Candidate.parse(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mean_cosine(scenes: list[MovingScene], clips: list[torch.Tensor]) -> float:
    return mean(cosine(motion_of(scene, clip), scene) for scene, clip in zip(scenes, clips, strict=True))


def _moving_psnr(clip: torch.Tensor, truth: torch.Tensor, frame: int) -> float:
    """Return the PSNR of the moving part of one frame of a clip."""
    mask = moving_part(truth)
    return psnr(clip[frame][mask], truth[frame][mask])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())
