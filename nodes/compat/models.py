"""The checkpoint's three parts on core's wires, and guidance over the frames."""

from __future__ import annotations

from typing import Any

from ...svd_core.errors import CheckpointError
from ...svd_core.runtime.runtime import get_runtime
from . import inputs
from .values import Guidance, Model, model_of


class ImageOnlyCheckpointLoader:
    """Checkpoint name -> MODEL, CLIP_VISION and VAE that carry our parts."""

    DESCRIPTION = (
        "Opens a Stable Video Diffusion checkpoint. Beside ComfyUI's checkpoint files it also takes diffusers folders "
        "and the built-in svd-nano."
    )
    CATEGORY = "loaders/video_models"
    RETURN_TYPES = ("MODEL", "CLIP_VISION", "VAE")
    OUTPUT_TOOLTIPS = ("The denoising network.", "The CLIP image encoder.", "The temporal VAE.")
    FUNCTION = "load_checkpoint"
    FILE_INPUTS = ("ckpt_name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A file of models/checkpoints, a folder of models/diffusers, or svd-nano."
        return {"required": {"ckpt_name": (get_runtime().library.names(), {"tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str | None = None) -> bool | str:
        """True, or why the name means no checkpoint, with the nearest ones."""
        if ckpt_name is None:
            return True
        try:
            get_runtime().library.find(ckpt_name)
        except CheckpointError as error:
            return str(error).rstrip(".")
        return True

    def load_checkpoint(self, ckpt_name: str) -> tuple:
        """The three parts, in the precision of the run."""
        from ...svd_core import execution

        opened = execution.load(get_runtime(), ckpt_name, "auto")
        return (Model(opened.model), opened.clip_vision, opened.vae)


class VideoLinearCFGGuidance:
    """MODEL -> MODEL whose guidance goes evenly from min_cfg on the first frame to the sampler's cfg on the last.

    Also right where the sampler's cfg is 1 and min_cfg is not: ComfyUI's core leaves the negative side out there, and
    multiplies by the weights all the same.
    """

    DESCRIPTION = "Guidance that goes evenly from min_cfg on the first frame to the sampler's cfg on the last."
    CATEGORY = "sampling/video_models"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The same network, guided so.",)
    FUNCTION = "patch"
    SHAPE = "linear"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "Guidance weight where it is least; 1 is no guidance."
        least = {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.5, "round": 0.01, "tooltip": tooltip}
        return {"required": {"model": inputs.model(), "min_cfg": ("FLOAT", least)}}

    def patch(self, model: Any, min_cfg: float) -> tuple[Model]:
        """A copy of the MODEL; a guidance that it had before gives way."""
        return (model_of(model).guided(Guidance(self.SHAPE, min_cfg)),)


class VideoTriangleCFGGuidance(VideoLinearCFGGuidance):
    """MODEL -> MODEL whose guidance goes from min_cfg up to the sampler's cfg in the middle, and down again."""

    DESCRIPTION = "Guidance that goes from min_cfg up to the sampler's cfg on the middle frame, and down again."
    SHAPE = "triangle"
