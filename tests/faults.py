"""Inject faults into the calls that compute: shared by the tests of broken runs, short memory and NaN."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from svd_stages.svd_core.models.components import SVDClipVision, SVDVae
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.runtime.runtime import LocalRuntime

Call = Callable[..., Any]

CALLS: dict[str, tuple[type, str]] = {
    "clip": (SVDClipVision, "embed"),
    "encoder": (SVDVae, "_posterior_mode"),
    "prepare": (PreparedUNet, "__init__"),
    "network": (PreparedUNet, "__call__"),
    "block": (PreparedUNet, "_resnet"),
    "decoder": (SVDVae, "decode_clip"),
}
"""Stage -> the call that computes it."""


class NamedCuda(LocalRuntime):
    """A runtime with a large GPU by its name. Everything computes on the CPU."""

    def device(self) -> torch.device:
        return torch.device("cuda")

    @contextlib.contextmanager
    def on_device(self, component: Any, need: int = 0, after: str = "default") -> Iterator[torch.device]:
        yield torch.device("cpu")

    reserve_memory = on_device

    def free_memory(self, device: torch.device) -> int:
        return 2**40

    def release(self) -> None:
        pass


def wrap(patch: pytest.MonkeyPatch, stage: str, wrapper: Callable[[Call], Call]) -> None:
    """Replace the call of a stage by `wrapper(call)`."""
    owner, name = CALLS[stage]
    patch.setattr(owner, name, wrapper(getattr(owner, name)))


def change(patch: pytest.MonkeyPatch, stage: str, edit: Callable[[Any], Any]) -> None:
    """Replace the result of a stage by `edit(result)`."""
    wrap(patch, stage, lambda call: lambda *arguments, **options: edit(call(*arguments, **options)))


def fail(patch: pytest.MonkeyPatch, stage: str, error: Callable[[], BaseException]) -> None:
    """Let a stage raise `error()`."""
    wrap(patch, stage, lambda call: raising(error))


def raising(error: Callable[[], BaseException]) -> Call:
    """Return a function that raises `error()`."""

    def call(*_: Any, **__: Any) -> Any:
        raise error()

    return call


def stage_graph(sampler: dict[str, Any] | None = None, **decoder: Any) -> dict[str, dict[str, Any]]:
    """Return nodes from an image ("load") and a checkpoint ("ckpt"), which the caller adds, to frames ("decode").

    Args:
        sampler: Inputs of SVDEulerSampler besides the links.
        decoder: Inputs of SVDTemporalVAEDecode besides the links.
    """
    links = {"positive": ["cond", 0], "negative": ["cond", 1], "latent": ["cond", 2], "model": ["ckpt", 0]}
    embeds = {"clip_vision_output": ["seen", 0], "image_latent": ["enc", 0], "video_frames": 2}
    return {
        "seen": node("SVDCLIPVisionEncode", clip_vision=["ckpt", 1], image=["load", 0]),
        "enc": node("SVDVAEEncode", vae=["ckpt", 2], image=["load", 0]),
        "cond": node("SVDImageConditioning", **embeds),
        "sample": node("SVDEulerSampler", **links, **(sampler or {})),
        "decode": node("SVDTemporalVAEDecode", vae=["ckpt", 2], latent=["sample", 0], **decoder),
    }


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of a graph in API format."""
    return {"class_type": class_type, "inputs": inputs}
