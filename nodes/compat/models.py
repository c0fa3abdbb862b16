"""Compat nodes that load a checkpoint and set the guidance of a MODEL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...svd_core.runtime.runtime import get_runtime
from ..base import Node
from ..loading import validate_checkpoint_name
from . import inputs
from .values import Guidance, Model, read_model


class ImageOnlyCheckpointLoader(Node):
    """Checkpoint name -> MODEL, CLIP_VISION, VAE."""

    DESCRIPTION = (
        "Opens a Stable Video Diffusion checkpoint. Beside ComfyUI's checkpoint files it also takes diffusers folders "
        "and the built-in svd-nano."
    )
    CATEGORY = "loaders/video_models"
    RETURN_TYPES = ("MODEL", "CLIP_VISION", "VAE")
    OUTPUT_TOOLTIPS = ("The denoising network.", "The CLIP image encoder.", "The temporal VAE.")
    FILE_INPUTS = ("ckpt_name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A file of models/checkpoints, a folder of models/diffusers, or svd-nano."
        return {"required": {"ckpt_name": (get_runtime().library.names(), {"tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str | None = None) -> bool | str:
        """Return True for a known or linked name, else a message with similar names."""
        return validate_checkpoint_name(ckpt_name)

    def run(self, ckpt_name: str) -> tuple:
        """Load the checkpoint in the precision of the run."""
        from ...svd_core import execution

        loaded = execution.load(get_runtime(), ckpt_name, "auto")
        return (Model(loaded.model), loaded.clip_vision, loaded.vae)


class VideoLinearCFGGuidance(Node):
    """MODEL -> MODEL whose guidance is linear from min_cfg on the first frame to the sampler's cfg on the last.

    Unlike ComfyUI's core this is also correct if cfg is 1 and min_cfg is not: core then skips the negative conditioning
    but still multiplies by the weights.
    """

    DESCRIPTION = "Guidance that goes evenly from min_cfg on the first frame to the sampler's cfg on the last."
    CATEGORY = "sampling/video_models"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The same network, guided so.",)
    SHAPE = "linear"
    INPUTS = {
        "model": inputs.MODEL,
        "min_cfg": inputs.number(
            1.0, 0.0, 100.0, 0.5, "Guidance weight where it is least; 1 is no guidance.", round_to=0.01
        ),
    }

    def run(self, model: Any, min_cfg: float) -> tuple[Model]:
        """Return a copy of the MODEL. Its former guidance is replaced."""
        return (replace(read_model(model), guidance=Guidance(self.SHAPE, min_cfg)),)


class VideoTriangleCFGGuidance(VideoLinearCFGGuidance):
    """MODEL -> MODEL whose guidance rises from min_cfg to the sampler's cfg on the middle frame and falls again."""

    DESCRIPTION = "Guidance that goes from min_cfg up to the sampler's cfg on the middle frame, and down again."
    SHAPE = "triangle"
