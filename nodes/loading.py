"""The node that opens a checkpoint."""

from __future__ import annotations

from typing import Any

from ..svd_core import host
from ..svd_core.errors import CheckpointError
from . import sockets
from .base import StageNode


class SVDCheckpointLoader(StageNode):
    """Checkpoint name -> the three parts."""

    DESCRIPTION = (
        "Opens a Stable Video Diffusion checkpoint: one .safetensors file in Stability's layout or a diffusers folder. "
        "svd-nano is built in: a small model of drawn scenes to try the nodes with, not for photographs."
    )
    RETURN_TYPES = (sockets.SVD_MODEL, sockets.SVD_CLIP_VISION, sockets.SVD_VAE)
    RETURN_NAMES = ("model", "clip_vision", "vae")
    OUTPUT_TOOLTIPS = ("The denoising network.", "The CLIP image encoder.", "The temporal VAE.")
    FILE_INPUTS = ("checkpoint",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = host.current().library.names()
        return {
            "required": {
                "checkpoint": sockets.choice(
                    names, names[0], "A file of models/checkpoints, a folder of models/diffusers, or svd-nano."
                ),
                "precision": sockets.choice(
                    ["auto", "fp16", "bf16", "fp32"],
                    "auto",
                    "Numbers the weights are kept in. auto: fp16 on CUDA (bf16 for a bf16 file), fp32 elsewhere.",
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint: str | None) -> bool | str:
        """Either path separator is understood, and an unknown name is answered with the nearest ones."""
        if checkpoint is None:
            return True
        try:
            host.current().library.find(checkpoint)
        except CheckpointError as error:
            return str(error).rstrip(".")
        return True

    def run(self, checkpoint: str, precision: str) -> tuple:
        from ..svd_core import stages

        opened = stages.load(host.current(), checkpoint, precision)
        return (opened.model, opened.clip_vision, opened.vae)
