"""Prints what svd-nano can do, measured on scenes it never saw: python -m svd_stages.training.svd_nano.evaluate."""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ...svd_core.autoencoder.decode import decode_windows, plan_windows
from ...svd_core.autoencoder.encode import embed_images, encode_images
from ...svd_core.diffusion.conditioning import Conditioning, MicroConditioning, prepare_conditioning
from ...svd_core.diffusion.denoiser import make_denoiser
from ...svd_core.diffusion.guidance import GuidanceCurve
from ...svd_core.diffusion.noise_augmentation import augment_images
from ...svd_core.diffusion.sampling import sample_euler, starting_noise, starting_point
from ...svd_core.diffusion.schedules import make_sigmas
from ...svd_core.errors import SettingError
from ...svd_core.models.components import Checkpoint
from .architecture import FACTS
from .clips import FASTEST, HELD_OUT, KINDS, MovingScene, make_scene, positions, render_clip
from .tracking import along, cosine, moved, psnr, sharpness, stays_inside, track

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
FRAMES, STEPS = 14, 25
BUCKET, FPS = 127.0, 7.0
BUCKETS = (32.0, 80.0, 127.0, 190.0, 255.0)
STRENGTHS = (0.0, 0.1, 0.5, 1.0)
GROUPS = ("tracker", "vae", "time", "motion", "distance", "noise", "guidance", "kinds")


class Row(NamedTuple):
    """One line of the table."""

    measure: str
    must_be: str
    is_: str


def usual_guidance() -> GuidanceCurve:
    """The curve that svd-nano names as its own."""
    defaults = FACTS.defaults()
    return GuidanceCurve("linear", defaults.min_guidance, defaults.max_guidance)


@dataclass(frozen=True)
class Settings:
    """How clips are made while measuring: `quick` settings take fewer frames and steps."""

    frames: int = FRAMES
    steps: int = STEPS
    micro: MicroConditioning = field(default_factory=lambda: MicroConditioning(FPS, BUCKET, 0.02))
    curve: GuidanceCurve = field(default_factory=usual_guidance)

    def told(self, **changed: float) -> Settings:
        """These settings with another fps, motion_bucket_id or noise_aug_strength."""
        return replace(self, micro=replace(self.micro, **changed))


def held_out_scenes(count: int, kinds: Sequence[str] = KINDS, width: int = 128, height: int = 128) -> list[MovingScene]:
    """`count` scenes whose things stay in the picture at bucket 255, the kinds in turn; seeds that training never sees.

    Raises SettingError when fewer of the seeds below 1000 give such scenes.
    """
    seeds, turn = iter(range(1000)), itertools.cycle(kinds)
    found: list[MovingScene] = []
    kind = next(turn)
    while len(found) < count:
        seed = next(seeds, None)
        if seed is None:
            raise SettingError(f"there are {len(found)} held-out scenes of these kinds, not {count}; ask for fewer")
        scene = make_scene(seed, width, height, (kind,))
        if stays_inside(scene, FRAMES, FASTEST, FPS):
            found.append(scene)
            kind = next(turn)
    return found


Make = Callable[[MovingScene, Settings], torch.Tensor]
"""(scene, settings) -> the clip that the model makes of the scene's first frame, (F, H, W, 3)."""


def remembering(checkpoint: Checkpoint) -> Make:
    """`generate` from the first frame of a scene, with a seed of the scene's own, each clip once; logs their times."""

    @functools.cache
    def make(scene: MovingScene, settings: Settings) -> torch.Tensor:
        began = time.monotonic()
        clip = generate(checkpoint, render_clip(scene, 1, BUCKET, FPS)[0], settings, scene.mover.seed)
        logger.info("clip %d: %.1f s", make.cache_info().misses, time.monotonic() - began)
        return clip

    return make


def generate(checkpoint: Checkpoint, image: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """The video of an image (H, W, 3): images (F, H, W, 3), by the same functions as the nodes."""
    latents = sample_clip(checkpoint, image[None], settings, seed)
    windows = plan_windows(settings.frames, settings.frames, 0)
    return decode_windows(checkpoint.vae, latents, windows, CPU)


def sample_clip(checkpoint: Checkpoint, images: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Unscaled latents (F, 4, h, w) of the video of images (1, H, W, 3)."""
    model = checkpoint.model
    embedding = embed_images(checkpoint.clip_vision, images, "reference", CPU).image_embeds
    augmented = augment_images(images, settings.micro.noise_aug_strength, seed)
    embeds, image_latent = prepare_conditioning(embedding, encode_images(checkpoint.vae, augmented, CPU))
    positive = Conditioning(embeds, image_latent, settings.micro)
    negative = Conditioning(torch.zeros_like(embeds), torch.zeros_like(image_latent), settings.micro)
    denoise = make_denoiser(model.unet, positive, negative, settings.curve.weights(settings.frames), CPU)
    sigmas = make_sigmas("karras", settings.steps, model.sigma_min, model.sigma_max)
    noise = starting_noise("comfyui", seed, settings.frames, *image_latent.shape[-2:])
    x = starting_point(torch.zeros_like(noise), noise, sigmas[0], model.sigma_max)[None]
    return sample_euler(denoise, x, sigmas)[0] / model.scaling_factor


def true_clip(scene: MovingScene, settings: Settings) -> torch.Tensor:
    """What the scene does at these settings: images (F, H, W, 3)."""
    return render_clip(scene, settings.frames, settings.micro.motion_bucket_id, settings.micro.fps)


def followed(scene: MovingScene, images: torch.Tensor) -> torch.Tensor:
    """The places (2, 2) of the scene's thing in the first and the last frame of a clip of it."""
    return track(images[[0, -1]], scene)


def tracking_error(scene: MovingScene, other: MovingScene, settings: Settings) -> float:
    """How far the tracker is off the true way of `scene`, in widths, when it is given the true clip of `other`."""
    micro = settings.micro
    way = moved(positions(scene.mover, settings.frames, micro.motion_bucket_id, micro.fps))
    return float((moved(followed(other, true_clip(other, settings))) - way).norm()) * scene.height / scene.width


def tracker_rows(scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """The measuring itself, on true clips and on clips of another scene."""
    buckets = [settings.told(motion_bucket_id=bucket) for bucket in BUCKETS]
    worst = max(tracking_error(scene, scene, told) for scene in scenes for told in buckets)
    yield Row("object tracker, true clips of 5 buckets: largest error", "<= 1 % of width", _percent(worst))
    pairs = zip(scenes, [*scenes[1:], scenes[0]], strict=True)
    shuffled = statistics.median(tracking_error(scene, other, settings) for scene, other in pairs)
    yield Row("object tracker, shuffled pairs: median error", "> 8 % of width", _percent(shuffled))


def reconstruct(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    """Images (F, H, W, 3) of a clip through the VAE and back."""
    latents = encode_images(checkpoint.vae, images, CPU)
    return decode_windows(checkpoint.vae, latents, plan_windows(len(images), len(images), 0), CPU)


def vae_rows(checkpoint: Checkpoint, scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """How well clips come back, and the deviation of scaled latents."""
    clips = [true_clip(scene, settings) for scene in scenes]
    quality = statistics.mean(psnr(clip, reconstruct(checkpoint, clip)) for clip in clips)
    latents = torch.cat([encode_images(checkpoint.vae, clip[:1], CPU) for clip in clips])
    yield Row("VAE reconstruction, PSNR", ">= 28 dB", f"{quality:.1f} dB")
    deviation = float(latents.std() * checkpoint.model.scaling_factor)
    yield Row("deviation of scaled latents", "about 1", f"{deviation:.2f}")


def motion_rows(make: Make, scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """First frame, direction and place of the last frame at one setting."""
    clips = [make(scene, settings) for scene in scenes]
    truths = [true_clip(scene, settings) for scene in scenes]
    first = statistics.mean(psnr(clip[0], truth[0]) for clip, truth in zip(clips, truths, strict=True))
    off = [place_error(*each) for each in zip(scenes, clips, truths, strict=True)]
    yield Row("first frame against the image, PSNR", ">= 24 dB", f"{first:.1f} dB")
    yield Row("direction, mean cosine", ">= 0.9", f"{_mean_cosine(scenes, clips):.3f}")
    yield Row("place at the last frame, median error", "<= 8 % of width", _percent(statistics.median(off)))


def place_error(scene: MovingScene, clip: torch.Tensor, truth: torch.Tensor) -> float:
    """How far the thing is from its true place in the last frame, in widths; infinite where it is lost."""
    off = float((followed(scene, clip)[-1] - followed(scene, truth)[-1]).norm()) * scene.height / scene.width
    return math.inf if math.isnan(off) else off


def way_of(scene: MovingScene, clip: torch.Tensor) -> torch.Tensor:
    """The way (2,) of the scene's thing in a clip of it; none where it is lost."""
    return moved(followed(scene, clip)).nan_to_num(0.0)


def kind_rows(make: Make, count: int, settings: Settings) -> Iterator[Row]:
    """Direction for kinds of things that training never saw, and in a wide picture."""
    strange = held_out_scenes(count, HELD_OUT)
    wide = held_out_scenes(count, KINDS, 192, 128)
    for name, scenes in (("kinds kept out of training", strange), ("192x128", wide)):
        clips = [make(scene, settings) for scene in scenes]
        said = f"direction, mean cosine, {name} ({count} scenes)"
        yield Row(said, "reported", f"{_mean_cosine(scenes, clips):.3f}")


def time_rows(checkpoint: Checkpoint, scene: MovingScene, settings: Settings) -> Iterator[Row]:
    """The time of one clip, from the image to decoded frames."""
    image = true_clip(scene, settings)[0]
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        generate(checkpoint, image, settings, scene.mover.seed)
        seconds.append(time.monotonic() - began)
    took = f"{statistics.median(seconds):.1f} s on {torch.get_num_threads()} threads"
    yield Row(f"{settings.frames} frames, {settings.steps} steps, decoded", "<= 25 s", took)


def distance_rows(make: Make, scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """Distance moved over the buckets, over fps and over noise_aug_strength."""

    def distances(**changed: float) -> list[float]:
        told = settings.told(**changed)
        return [along(way_of(scene, make(scene, told)), scene) for scene in scenes]

    over_buckets = [distances(motion_bucket_id=bucket) for bucket in BUCKETS]
    ratio = statistics.median(over_buckets[-1]) / max(statistics.median(over_buckets[0]), 1e-9)
    rising = statistics.mean(all(a < b for a, b in itertools.pairwise(row)) for row in zip(*over_buckets, strict=True))
    by_fps = statistics.median(distances(fps=7.0)) / max(statistics.median(distances(fps=15.0)), 1e-9)
    noisy = statistics.median(distances(noise_aug_strength=0.5)) / max(statistics.median(distances()), 1e-9)
    yield Row("distance, bucket 255 / 32", ">= 2.5", f"{ratio:.2f}")
    yield Row("distance rises over 5 buckets", ">= 90 % of scenes", _percent(rising))
    yield Row("distance per frame, fps 7 / 15", "1.5 ... 2.8", f"{by_fps:.2f}")
    yield Row("distance, noise_aug_strength 0.5 / 0.02", "reported", f"{noisy:.2f}")


def noise_rows(make: Make, scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """Resemblance of the first frame to the image over noise_aug_strength."""

    def resemblance(strength: float) -> float:
        told = settings.told(noise_aug_strength=strength)
        return statistics.mean(psnr(make(scene, told)[0], true_clip(scene, told)[0]) for scene in scenes)

    found = " / ".join(f"{resemblance(strength):.1f}" for strength in STRENGTHS)
    yield Row("first frame, PSNR at noise_aug_strength 0 / 0.1 / 0.5 / 1", "falling", f"{found} dB")


def guidance_rows(make: Make, scenes: list[MovingScene], settings: Settings) -> Iterator[Row]:
    """The last frame without guidance, with the model's own, and with guidance 1 -> 3."""
    for largest in (1.0, usual_guidance().largest, 3.0):
        name, told = f"1->{largest:g}", replace(settings, curve=GuidanceCurve("linear", 1.0, largest))
        last = [make(scene, told)[-1] for scene in scenes]
        error = statistics.mean(
            psnr(frame, true_clip(scene, told)[-1]) for frame, scene in zip(last, scenes, strict=True)
        )
        energy = statistics.mean(sharpness(frame) for frame in last)
        must_be = "compare" if name == "1->1" else "error not worse, sharper"
        yield Row(f"last frame, guidance {name}: PSNR, gradient energy", must_be, f"{error:.2f} dB, {energy:.5f}")


def measure(
    checkpoint: Checkpoint,
    count: int,
    settings: Settings,
    write: Callable[[str], object],
    wanted: Sequence[str] = GROUPS,
) -> None:
    """Write the table's groups that are `wanted`, a line at a time, over `count` held-out scenes."""
    scenes = held_out_scenes(count)
    make = remembering(checkpoint)
    groups = {
        "tracker": tracker_rows(scenes, settings),
        "vae": vae_rows(checkpoint, scenes, settings),
        "time": time_rows(checkpoint, scenes[0], settings),
        "motion": motion_rows(make, scenes, settings),
        "distance": distance_rows(make, scenes, settings),
        "noise": noise_rows(make, scenes, settings),
        "guidance": guidance_rows(make, scenes, settings),
        "kinds": kind_rows(make, max(1, count // 4), settings),
    }
    write("| measure | must be | is |\n|---|---|---|\n")
    for row in itertools.chain.from_iterable(groups[name] for name in wanted):
        write(f"| {row.measure} | {row.must_be} | {row.is_} |\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    from ...svd_core.checkpoints.library import EMBEDDED_FILE
    from ...svd_core.checkpoints.load import load_checkpoint

    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.evaluate", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=EMBEDDED_FILE, help="default: the model that ships")
    parser.add_argument("--scenes", type=int, default=32, help="how many scenes to measure (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="sampling steps (%(default)s)")
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=GROUPS, help="groups of rows (default: all)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with torch.inference_mode():
        settings = Settings(steps=given.steps)
        checkpoint = load_checkpoint(given.file, "fp32", CPU)
        measure(checkpoint, given.scenes, settings, _write_at_once, given.rows)
    return 0


def _mean_cosine(scenes: list[MovingScene], clips: list[torch.Tensor]) -> float:
    return statistics.mean(cosine(way_of(scene, clip), scene) for scene, clip in zip(scenes, clips, strict=True))


def _write_at_once(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())
