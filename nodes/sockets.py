"""Declarations of node inputs. ComfyUI reads an input as `(type, options)`.

Every input has a tooltip, every number its range and step.
"""

from __future__ import annotations

from typing import Any

from ..svd_core.pipeline import SAMPLERS

EITHER_MODEL = "SVD_MODEL,MODEL"
EITHER_CLIP_VISION = "SVD_CLIP_VISION,CLIP_VISION"
EITHER_VAE = "SVD_VAE,VAE"
"""Sockets that accept this package's type and ComfyUI's own."""

LARGEST_SEED = 2**64 - 1
LARGEST_SIDE = 16384

Input = tuple[Any, dict[str, Any]]


def socket(kind: str, tooltip: str) -> Input:
    """Declare an input that only a link can fill."""
    return (kind, {"tooltip": tooltip})


def integer(default: int, low: int, high: int, tooltip: str, step: int = 1) -> Input:
    """Declare an integer from low to high."""
    return ("INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip})


def number(default: float, low: float, high: float, step: float, tooltip: str) -> Input:
    """Declare a float from low to high. The page does not round it: 0.002 stays 0.002."""
    options = {"default": default, "min": low, "max": high, "step": step, "round": False, "tooltip": tooltip}
    return ("FLOAT", options)


def choice(options: list[str], default: str, tooltip: str) -> Input:
    """Declare a combo."""
    return (options, {"default": default, "tooltip": tooltip})


def seed(tooltip: str) -> Input:
    """Declare a seed. The page adds its widget that changes the seed after each run."""
    options = {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True, "tooltip": tooltip}
    return ("INT", options)


def size() -> dict[str, Input]:
    """Declare width and height of the video in pixels."""
    tooltip = "of the video in pixels. A multiple of 64; SVD was trained at 1024x576."
    return {
        "width": integer(1024, 64, LARGEST_SIDE, f"Width {tooltip}", 64),
        "height": integer(576, 64, LARGEST_SIDE, f"Height {tooltip}", 64),
    }


def fit() -> Input:
    """Declare the method that resizes an image of another aspect ratio."""
    return choice(
        ["stretch", "crop", "pad"],
        "stretch",
        "stretch: the whole picture, shape not kept (as diffusers). crop: shape kept, edges cut. "
        "pad: shape kept, edge colours repeated.",
    )


def decode_mode() -> Input:
    """Declare the decoder's mode: one clip or windows."""
    return choice(
        ["exact", "windowed"],
        "exact",
        "exact: as one clip; 25 frames of 1024x576 take 4.6 GiB in fp16. windowed: in chunks, in less.",
    )


def decode_window() -> dict[str, Input]:
    """Declare the frames of a window: those that are kept, and those that are decoded as context only."""
    return {
        "chunk_size": integer(8, 1, 4096, "windowed: frames decoded and kept at a time."),
        "context": integer(
            2, 0, 64, "windowed: neighbour frames seen on both sides of a chunk, against seams; 0 as diffusers."
        ),
    }


def frames() -> Input:
    """Declare the number of frames."""
    return integer(25, 1, 4096, "Frames of the video. SVD was trained on 14, SVD-XT and 1.1 on 25.")


def fps() -> Input:
    """Declare the frames per second that the model is conditioned on."""
    return integer(7, 1, 1024, "Frames per second the motion is made for. The model is told one less, by its training.")


def motion_bucket_id() -> Input:
    """Declare the amount of motion that the model is conditioned on."""
    return integer(127, 1, 1023, "How much motion: 127 is the middle of the training, 180 is lively, 30 is calm.")


def noise_aug_strength() -> Input:
    """Declare the standard deviation of the noise on the input image, in the scale of [-1, 1]."""
    return number(
        0.02,
        0.0,
        10.0,
        0.01,
        "Noise on the input image: more of it, less like the image and more motion. 0.02 is usual.",
    )


def steps() -> Input:
    """Declare the number of sampling steps."""
    return integer(25, 1, 10000, "Sampling steps. 25 is the reference's number; 10 do with align_your_steps.")


def sampler_name() -> Input:
    """Declare the name of a solver."""
    return choice(
        list(SAMPLERS),
        "dpmpp_2m",
        "euler, ddim: the reference. dpmpp_2m: fewer steps, with align_your_steps. heun: two network calls a step. "
        "Names with sde or ancestral, and lcm for distilled networks, add noise in each step.",
    )


def guidance_range(last: str = "on the last frame") -> dict[str, Input]:
    """Declare both ends of the guidance curve."""

    def weight(default: float, name: str, frame: str) -> Input:
        return number(default, 0.0, 100.0, 0.1, f"{name} guidance weight, {frame}. 1 is no guidance.")

    return {
        "min_guidance": weight(1.0, "Smallest", "on the first frame"),
        "max_guidance": weight(3.0, "Largest", last),
    }


def guidance_curve() -> Input:
    """Declare a guidance curve that replaces the two weights."""
    return socket("SVD_GUIDANCE", "Guidance curve; overrides the two weights.")
