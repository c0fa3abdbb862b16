"""Socket types, and how an input is declared: one short call each, so that no option is forgotten.

ComfyUI reads `(type, options)`. Every input has a tooltip in plain words, every number its range and its step.
"""

from __future__ import annotations

from typing import Any

IMAGE = "IMAGE"
INT = "INT"
FLOAT = "FLOAT"
LATENT = "LATENT"
CONDITIONING = "CONDITIONING"
CLIP_VISION_OUTPUT = "CLIP_VISION_OUTPUT"
SIGMAS = "SIGMAS"
MODEL = "MODEL"
CLIP_VISION = "CLIP_VISION"
VAE = "VAE"
GUIDER = "GUIDER"
SAMPLER = "SAMPLER"
SVD_MODEL = "SVD_MODEL"
SVD_CLIP_VISION = "SVD_CLIP_VISION"
SVD_VAE = "SVD_VAE"
SVD_GUIDANCE = "SVD_GUIDANCE"
SVD_VIDEOS = "SVD_VIDEOS"

EITHER_MODEL = f"{SVD_MODEL},{MODEL}"
EITHER_CLIP_VISION = f"{SVD_CLIP_VISION},{CLIP_VISION}"
EITHER_VAE = f"{SVD_VAE},{VAE}"
"""Our part or ComfyUI's own: such a socket takes wires of both types."""

LARGEST_SEED = 2**64 - 1
LARGEST_SIDE = 16384

Input = tuple[Any, dict[str, Any]]


def socket(kind: str, tooltip: str) -> Input:
    """An input that only a wire fills."""
    return (kind, {"tooltip": tooltip})


def integer(default: int, low: int, high: int, tooltip: str, step: int = 1) -> Input:
    """A whole number from low to high."""
    return (INT, {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})


def number(default: float, low: float, high: float, step: float, tooltip: str, round_to: float | bool = False) -> Input:
    """A number from low to high. `round_to` False keeps every digit: 0.002 must stay 0.002."""
    options = {"default": default, "min": low, "max": high, "step": step, "round": round_to, "tooltip": tooltip}
    return (FLOAT, options)


def choice(options: list[str], default: str, tooltip: str) -> Input:
    """One of a few words."""
    return (options, {"default": default, "tooltip": tooltip})


def seed(tooltip: str) -> Input:
    """A seed; the page adds its own control for what happens to it after a run."""
    options = {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True, "tooltip": tooltip}
    return (INT, options)


def pixels(default: int, name: str) -> Input:
    """A width or height of the video."""
    return integer(
        default, 64, LARGEST_SIDE, f"{name} of the video in pixels. A multiple of 64; SVD was trained at 1024x576.", 64
    )


def fit() -> Input:
    """How a picture comes to the video's shape."""
    return choice(
        ["stretch", "crop", "pad"],
        "stretch",
        "stretch: the whole picture, shape not kept (as diffusers). crop: shape kept, edges cut. "
        "pad: shape kept, edge colours repeated.",
    )


def decode_mode() -> Input:
    """As one clip or in windows."""
    return choice(
        ["exact", "windowed"],
        "exact",
        "exact: as one clip; 25 frames of 1024x576 take 4.6 GiB in fp16. windowed: in chunks, in less.",
    )


def chunk_size() -> Input:
    """Frames that a window of the decoder keeps."""
    return integer(8, 1, 4096, "windowed: frames decoded and kept at a time.")


def context() -> Input:
    """Frames that a window of the decoder sees beside those."""
    return integer(2, 0, 64, "windowed: neighbour frames seen on both sides of a chunk, against seams; 0 as diffusers.")


def frames() -> Input:
    """How many frames the video has."""
    return integer(25, 1, 4096, "Frames of the video. SVD was trained on 14, SVD-XT and 1.1 on 25.")


def fps() -> Input:
    """Frames per second as a condition."""
    return integer(7, 1, 1024, "Frames per second the motion is made for. The model is told one less, by its training.")


def motion_bucket_id() -> Input:
    """How much motion, as a condition."""
    return integer(127, 1, 1023, "How much motion: 127 is the middle of the training, 180 is lively, 30 is calm.")


def noise_aug_strength() -> Input:
    """Standard deviation of the noise on the input image, in [-1, 1]."""
    return number(
        0.02,
        0.0,
        10.0,
        0.01,
        "Noise on the input image: more of it, less like the image and more motion. 0.02 is usual.",
    )


def steps() -> Input:
    """How many sampling steps."""
    return integer(25, 1, 10000, "Sampling steps. 25 is the reference's number; 10 do with align_your_steps.")


def guidance_curve() -> Input:
    """A curve that takes the place of the two weights."""
    return socket(SVD_GUIDANCE, "Guidance curve; overrides the two weights.")


def guidance(default: float, name: str, where: str) -> Input:
    """One end of the guidance curve."""
    return number(default, 0.0, 100.0, 0.1, f"{name} guidance weight, {where}. 1 is no guidance.")
