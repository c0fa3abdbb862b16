"""Input declarations that several compat nodes share: core's options with this package's tooltips."""

from __future__ import annotations

from ...svd_core.pipeline import SAMPLERS
from .. import sockets
from ..sockets import Input, socket
from .values import SAMPLER_NAMES, SCHEDULER_NAMES


def integer(default: int, low: int, high: int, tooltip: str, step: int | None = None) -> Input:
    """Declare an integer from low to high. `step` is left out where core leaves it out."""
    options = {"default": default, "min": low, "max": high}
    return ("INT", {**options, **({} if step is None else {"step": step}), "tooltip": tooltip})


def number(
    default: float, low: float, high: float, step: float, tooltip: str, round_to: float | bool | None = None
) -> Input:
    """Declare a float from low to high. `round_to` is left out where core leaves it out."""
    options = {"default": default, "min": low, "max": high, "step": step}
    return ("FLOAT", {**options, **({} if round_to is None else {"round": round_to}), "tooltip": tooltip})


def fps(default: float, low: float, high: float, step: float = 0.01) -> Input:
    """Declare the frames per second of a file."""
    return number(default, low, high, step, "Frames per second.")


def scale_by(default: float) -> Input:
    """Declare the factor of both sides of an image."""
    return number(default, 0.01, 8.0, 0.01, "2 is twice as wide and high.")


def steps(default: int = 20) -> Input:
    """Declare the number of sampling steps."""
    return integer(default, 1, 10000, "How many steps are sampled.")


def sigma(default: float, name: str) -> Input:
    """Declare one end of a range of noise levels."""
    return number(default, 0.0, 5000.0, 0.01, f"{name} noise level. SVD's range is 0.002 to 700.", round_to=False)


MODEL = socket("MODEL", "The network of ImageOnlyCheckpointLoader.")
CLIP_VISION = socket("CLIP_VISION", "The CLIP tower of ImageOnlyCheckpointLoader.")
VAE = socket("VAE", "The temporal VAE of ImageOnlyCheckpointLoader.")
POSITIVE = socket("CONDITIONING", "The conditioning with the picture.")
NEGATIVE = socket("CONDITIONING", "The conditioning without it.")
LATENT_IMAGE = socket("LATENT", "The empty video, or a latent to go on from; not one with a noise mask.")
SIGMAS = socket("SIGMAS", "The row of noise levels.")
SAMPLER = socket("SAMPLER", "From KSamplerSelect or SVDSamplerSelect.")
SEED = sockets.seed("Seed of the starting noise, and of noise that a sampler adds.")
CFG = number(
    8.0, 0.0, 100.0, 0.1,
    "Guidance weight; the largest one where the model is guided over the frames. SVD wants 2.5 to 3.",
    round_to=0.01,
)  # fmt: skip
DENOISE = number(
    1.0, 0.0, 1.0, 0.01, "1 walks the whole schedule, less its last part: for a latent that holds a video already."
)
SAMPLER_NAME = (
    list(SAMPLER_NAMES),
    {"tooltip": f"How a step is made. Without ComfyUI: {', '.join(SAMPLERS)}."},
)
SCHEDULER = (list(SCHEDULER_NAMES), {"tooltip": "Which noise levels are walked; karras is the reference's."})
