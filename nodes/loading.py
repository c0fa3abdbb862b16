"""Nodes that load a checkpoint and set the options of its UNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..svd_core.errors import CheckpointError
from ..svd_core.models.options import CHOICES, DEFAULT, ModelOptions
from ..svd_core.models.step_cache import StepCache
from ..svd_core.runtime.runtime import get_runtime
from . import sockets, wire_formats
from .base import StageNode


def validate_checkpoint_name(name: str | None) -> bool | str:
    """Return True if a checkpoint has this name, or if it is None (linked); else a message with similar names."""
    try:
        if name is not None:
            get_runtime().library.find(name)
    except CheckpointError as error:
        return str(error).rstrip(".")
    return True


PRECISION = sockets.choice(
    ["auto", "fp16", "bf16", "fp32"],
    "auto",
    "Numbers the weights are kept in. auto: fp16 on CUDA (bf16 for a bf16 file), fp32 elsewhere.",
)


class SVDCheckpointLoader(StageNode):
    """Checkpoint name -> SVD_MODEL, SVD_CLIP_VISION, SVD_VAE."""

    DESCRIPTION = (
        "Opens a Stable Video Diffusion checkpoint: one .safetensors file in Stability's layout or a diffusers folder. "
        "svd-nano is built in: a small model of drawn scenes to try the nodes with, not for photographs."
    )
    RETURN_TYPES = ("SVD_MODEL", "SVD_CLIP_VISION", "SVD_VAE")
    RETURN_NAMES = ("model", "clip_vision", "vae")
    OUTPUT_TOOLTIPS = ("The denoising network.", "The CLIP image encoder.", "The temporal VAE.")
    FILE_INPUTS = ("checkpoint",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = get_runtime().library.names()
        tooltip = "A file of models/checkpoints, a folder of models/diffusers, or svd-nano."
        return {"required": {"checkpoint": sockets.choice(names, names[0], tooltip), "precision": PRECISION}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint: str | None = None) -> bool | str:
        """Return True for a known or linked name, else a message with similar names."""
        return validate_checkpoint_name(checkpoint)

    def run(self, checkpoint: str, precision: str) -> tuple:
        from ..svd_core import execution

        loaded = execution.load(get_runtime(), checkpoint, precision)
        return (loaded.model, loaded.clip_vision, loaded.vae)


def _option(name: str, tooltip: str) -> sockets.Input:
    return sockets.choice(list(CHOICES[name]), getattr(DEFAULT, name), tooltip)


class SVDModelOptions(StageNode):
    """SVD_MODEL -> SVD_MODEL with other options and the same weights."""

    DESCRIPTION = (
        "How the network is run: where its weights are, in pieces or not, compiled or not. No option changes the "
        "video. The weights are shared with the model that came in. Several such nodes add up: what one leaves at its "
        "default stays as it came."
    )
    RETURN_TYPES = ("SVD_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The same network with these options, for SVDEulerSampler.",)
    INPUTS = {
        "model": sockets.socket("SVD_MODEL", "The network of SVDCheckpointLoader."),
        "memory": _option(
            "memory",
            "auto: what fits. resident: the weights stay on the card. offload: there only while sampling. "
            "stream: block by block, least memory.",
        ),
        "forward_chunking": _option(
            "forward_chunking",
            "auto: feed-forward and attention in pieces that save memory and cost no time. off: all at once.",
        ),
        "compile": _option(
            "compile",
            "torch.compile. regional: the repeated pieces, seconds to minutes once. full: a whole step, "
            "minutes for every new size.",
        ),
        "attention": _option(
            "attention",
            "auto: cuDNN's kernel on Hopper cards and later, else torch's choice. sdpa: torch's choice.",
        ),
    }

    def run(self, model, memory: str, forward_chunking: str, compile: str, attention: str) -> tuple:
        svd_model = wire_formats.svd_model(model)
        return (svd_model.with_options(ModelOptions(memory, forward_chunking, compile, attention)),)


class SVDStepCache(StageNode):
    """SVD_MODEL -> SVD_MODEL that reuses deep features between steps."""

    DESCRIPTION = (
        "Faster sampling, and another video: of `interval` network calls one computes the whole UNet, the others only "
        "its first and last blocks (DeepCache). On svd-nano with 25 Euler steps interval 3 adds a tenth to the error "
        "of sampling; published weights were not measured. Compare with interval 1 on your own picture."
    )
    RETURN_TYPES = ("SVD_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The same network with the cache, for SVDEulerSampler.",)
    INPUTS = {
        "model": sockets.socket("SVD_MODEL", "The network of SVDCheckpointLoader or SVDModelOptions."),
        "mode": sockets.choice(["deepcache", "off"], "deepcache", "deepcache: reuse features. off: reuse none."),
        "interval": sockets.integer(3, 1, 100, "Of so many network calls one is whole. 1 changes nothing."),
        "sigma_from": sockets.number(10000.0, 0.0, 10000.0, 0.01, "Largest noise level at which features are reused."),
        "sigma_to": sockets.number(0.0, 0.0, 10000.0, 0.01, "They are reused above this noise level."),
    }

    def run(self, model, mode: str, interval: int, sigma_from: float, sigma_to: float) -> tuple:
        svd_model = wire_formats.svd_model(model)
        step_cache = StepCache(interval, sigma_from, sigma_to)
        reuses = mode == "deepcache" and interval > 1
        return (replace(svd_model, step_cache=step_cache if reuses else None),)
