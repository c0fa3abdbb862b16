"""Inputs that several core nodes have alike, with core's options and our tooltips."""

from __future__ import annotations

from .. import sockets
from ..sockets import Input, socket
from .values import EULER_NAMES, SAMPLER_NAMES, SCHEDULER_NAMES


def model() -> Input:
    """An SVD model."""
    return socket("MODEL", "The network of ImageOnlyCheckpointLoader.")


def vae() -> Input:
    """A temporal VAE."""
    return socket("VAE", "The temporal VAE of ImageOnlyCheckpointLoader.")


def positive() -> Input:
    """Conditioning with the picture."""
    return socket("CONDITIONING", "The conditioning with the picture.")


def negative() -> Input:
    """Conditioning without it."""
    return socket("CONDITIONING", "The conditioning without it.")


def latent_image() -> Input:
    """What is sampled."""
    return socket("LATENT", "The empty video, or a latent to go on from; not one with a noise mask.")


def sigmas() -> Input:
    """A row of noise levels."""
    return socket("SIGMAS", "The row of noise levels.")


def seed() -> Input:
    """The seed of the starting noise; the page adds its own control."""
    return sockets.seed("Seed of the starting noise.")


def steps(default: int = 20) -> Input:
    """How many steps."""
    return ("INT", {"default": default, "min": 1, "max": 10000, "tooltip": "How many steps are sampled."})


def cfg() -> Input:
    """The sampler's guidance weight."""
    tooltip = "Guidance weight; the largest one where the model is guided over the frames. SVD wants 2.5 to 3."
    return ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01, "tooltip": tooltip})


def denoise() -> Input:
    """How much of a schedule is walked."""
    tooltip = "1 walks the whole schedule, less its last part: for a latent that holds a video already."
    return ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip})


def sampler_name() -> Input:
    """A sampler of ComfyUI's."""
    tooltip = f"How a step is made. Without ComfyUI {' or '.join(EULER_NAMES)}, which are the same for SVD."
    return (list(SAMPLER_NAMES), {"tooltip": tooltip})


def scheduler() -> Input:
    """A schedule of ComfyUI's."""
    return (list(SCHEDULER_NAMES), {"tooltip": "Which noise levels are walked; karras is the reference's."})


def sigma(default: float, name: str) -> Input:
    """One end of a range of noise levels."""
    tooltip = f"{name} noise level. SVD's range is 0.002 to 700."
    return (
        "FLOAT",
        {"default": default, "min": 0.0, "max": 5000.0, "step": 0.01, "round": False, "tooltip": tooltip},
    )
