"""The nodes that open a checkpoint and say how its network is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..svd_core.errors import CheckpointError
from ..svd_core.models.options import CHOICES, DEFAULT, ModelOptions, merged
from ..svd_core.runtime.runtime import get_runtime
from . import sockets, wire_formats
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
        names = get_runtime().library.names()
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
    def VALIDATE_INPUTS(cls, checkpoint: str | None = None) -> bool | str:
        """Either path separator is understood, and an unknown name is answered with the nearest ones."""
        if checkpoint is None:
            return True
        try:
            get_runtime().library.find(checkpoint)
        except CheckpointError as error:
            return str(error).rstrip(".")
        return True

    def run(self, checkpoint: str, precision: str) -> tuple:
        from ..svd_core import execution

        opened = execution.load(get_runtime(), checkpoint, precision)
        return (opened.model, opened.clip_vision, opened.vae)


class SVDModelOptions(StageNode):
    """SVD_MODEL -> the same network, to be run otherwise."""

    DESCRIPTION = (
        "How the network is run: where its weights are, in pieces or not, compiled or not. No option changes the "
        "video. The weights are shared with the model that came in. Several such nodes add up: what one leaves at its "
        "default stays as it came."
    )
    RETURN_TYPES = (sockets.SVD_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The same network with these options, for SVDEulerSampler.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def option(name: str, tooltip: str) -> sockets.Input:
            return sockets.choice(list(CHOICES[name]), getattr(DEFAULT, name), tooltip)

        return {
            "required": {
                "model": sockets.socket(sockets.SVD_MODEL, "The network of SVDCheckpointLoader."),
                "memory": option(
                    "memory",
                    "auto: what fits. resident: the weights stay on the card. offload: there only while sampling. "
                    "stream: block by block, least memory.",
                ),
                "forward_chunking": option(
                    "forward_chunking",
                    "auto: feed-forward and attention in pieces that save memory and cost no time. off: all at once.",
                ),
                "compile": option(
                    "compile",
                    "torch.compile. regional: the repeated pieces, seconds to minutes once. full: a whole step, "
                    "minutes for every new size.",
                ),
                "attention": option(
                    "attention",
                    "auto: cuDNN's kernel on Hopper cards and later, else torch's choice. sdpa: torch's choice.",
                ),
            }
        }

    def run(self, model, memory: str, forward_chunking: str, compile: str, attention: str) -> tuple:
        before = wire_formats.own_model(model)
        options = merged(before.options, ModelOptions(memory, forward_chunking, compile, attention))
        return (replace(before, options=options),)
