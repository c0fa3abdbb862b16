"""Loading: a diffusers folder or a one-file checkpoint becomes the three parts that travel on wires."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, SettingError
from .folder import INDEX, open_folder
from .modules import check, empty_clip, empty_unet, empty_vae, fill, left_over
from .opened import Component, OpenCheckpoint
from .parts import Checkpoint, SVDClipVision, SVDModel, SVDVae
from .single_file import open_single_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
ENCODER = ("encoder.", "quant_conv.")
"""The VAE's tensors that stay in float32 where the checkpoint asks for it (force_upcast)."""


def load_checkpoint(path: str | Path, precision: str = "auto", device: torch.device | str | None = None) -> Checkpoint:
    """The checkpoint at `path`, a one-file .safetensors in Stability's layout or a diffusers folder, told by content.

    precision  auto, fp16, bf16 or fp32. auto is fp16 when the stages compute on CUDA, or bf16 there when the checkpoint
               is stored in bf16 (its numbers may be too large for fp16), and fp32 on every other device
    device     where the stages will compute; None asks the host. Only `auto` looks at it

    The modules are on the CPU, frozen, in evaluation mode, in memory of their own. Where the checkpoint asks for it
    (force_upcast), the VAE's encoder and quant_conv are float32 whatever the precision. Raises CheckpointError when the
    checkpoint is missing, damaged, of another family or not complete, and SettingError for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise SettingError(f'precision must be one of {", ".join(PRECISIONS)}, and is "{precision}".')
    kind = _device_type(device) if precision == "auto" else ""
    with open_checkpoint(path, "fp16" if kind == "cuda" else "fp32" if precision == "auto" else precision) as opened:
        return _load(opened, _dtype(precision, kind, opened.stored_dtypes()))


def open_checkpoint(path: str | Path, precision: str) -> AbstractContextManager[OpenCheckpoint]:
    """Open either form for reading. `precision` chooses among a folder's variants: fp16, bf16 or fp32.

    Raises CheckpointError when there is nothing at `path`, or a folder that is no diffusers folder.
    """
    path = Path(path)
    if not path.is_dir():
        return open_single_file(path)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f'the folder "{path}" has no {INDEX}, which a diffusers folder begins with. Choose the folder that has it, '
            "or a .safetensors file.",
            code="checkpoint.family",
        )
    return open_folder(path, precision)


def _device_type(device: torch.device | str | None) -> str:
    import torch

    if device is None:
        from ..host import current

        device = current().device()
    return torch.device(device).type


def _dtype(precision: str, device_type: str, stored: set[str]) -> torch.dtype:
    import torch

    if precision == "auto":
        if device_type != "cuda":
            return torch.float32
        return torch.bfloat16 if "BF16" in stored else torch.float16
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _load(opened: OpenCheckpoint, dtype: torch.dtype) -> Checkpoint:
    facts = opened.facts
    parts: list[tuple[Component, Any]] = [
        (opened.unet, empty_unet(opened)),
        (opened.vae, empty_vae(opened)),
        (opened.clip, empty_clip(opened)),
    ]
    ignored = list(opened.ignored)
    for component, module in parts:
        check(opened, component, module)
        ignored += left_over(opened, component, module)
    _report_ignored(opened.name, ignored)
    unet, vae, clip = (module for _, module in parts)
    fill(opened.unet, unet, dtype)
    fill(opened.vae, vae, dtype, float32=ENCODER if facts.force_upcast else ())
    fill(opened.clip, clip, dtype)
    return Checkpoint(
        model=SVDModel(unet, facts.scaling_factor, facts.sigma_min, facts.sigma_max, facts.defaults()),
        clip_vision=SVDClipVision(clip, _three(facts.image_mean), _three(facts.image_std)),
        vae=SVDVae(vae),
    )


def _three(row: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = row
    return first, second, third


def _report_ignored(name: str, ignored: list[str]) -> None:
    if ignored:
        logger.info("%s: %d tensors belong to no part that is used: %s", name, len(ignored), ", ".join(sorted(ignored)))
