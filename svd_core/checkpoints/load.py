"""Loading: a diffusers folder or a one-file checkpoint becomes the three parts that travel on wires."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, SettingError, printable
from ..models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae
from .build_modules import SHOWN, check, empty_clip, empty_unet, empty_vae, fill, readable
from .config_validation import check_settings
from .deferred_weights import DeferredWeights, leave_out
from .diffusers_format import INDEX, open_folder
from .keymap import LEFTOVERS
from .reader import OpenCheckpoint
from .single_file import open_single_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
ENCODER = ("encoder.", "quant_conv.")
"""The VAE's tensors on the encoder's side."""


@dataclass(frozen=True)
class Dtypes:
    """What the modules compute in, and what the VAE's encoder and quant_conv do."""

    compute: torch.dtype
    encoder: torch.dtype


def load_checkpoint(
    path: str | Path, precision: str = "auto", device: torch.device | str | None = None, defer_unused: bool = False
) -> Checkpoint:
    """The checkpoint at `path`, a one-file .safetensors in Stability's layout or a diffusers folder, told by content.

    precision  auto, fp16, bf16 or fp32; see `resolve_dtypes`
    device     where the stages will compute; None asks the host. Only `auto` looks at it
    lean       leave on the disk what a video of one CLIP token does not use; `model.complete()` reads it. Until then
               the UNet is for our sampler alone: its own forward lacks weights

    The modules are on the CPU, frozen, in evaluation mode, in memory of their own. Raises CheckpointError when the
    checkpoint is missing, damaged, of another family, not complete or not finite, and SettingError for an unknown
    precision.
    """
    import torch

    where = _device(device)
    variant = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    wanted = variant.get(resolve_dtypes(precision, where, torch.float32, force_upcast=True).compute, "fp32")
    with open_checkpoint(path, wanted) as opened, torch.inference_mode(False), torch.no_grad():
        stored = torch.bfloat16 if "BF16" in opened.stored_dtypes() else torch.float32
        dtypes = resolve_dtypes(precision, where, stored, opened.facts.force_upcast)
        checkpoint, names = _load(opened, dtypes, bf16_instead=precision == "auto", defer_unused=defer_unused)
    if not names:
        return checkpoint
    model, path = checkpoint.model, Path(path)
    left_out = DeferredWeights(path, functools.partial(open_checkpoint, path, wanted), model.unet.dtype, names)
    return replace(checkpoint, model=replace(model, deferred_weights=left_out))


def resolve_dtypes(precision: str, device: torch.device, stored: torch.dtype, force_upcast: bool) -> Dtypes:
    """What `precision` means on `device` for a checkpoint whose weights are `stored` in some type.

    auto is fp16 on CUDA, or bf16 there when the weights are stored in bf16 (their numbers may be too large for fp16),
    and fp32 on every other device. When loading meets a number too large for auto's fp16, it takes bf16 after all. With
    `force_upcast` the VAE's encoder is float32 whatever the precision.
    Raises SettingError for a precision that is not auto, fp16, bf16 or fp32.
    """
    import torch

    compute = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}.get(precision)
    if precision == "auto":
        compute = torch.float32
        if device.type == "cuda":
            compute = torch.bfloat16 if stored is torch.bfloat16 else torch.float16
    if compute is None:
        raise SettingError(f'precision must be one of {", ".join(PRECISIONS)}, and is "{precision}".')
    return Dtypes(compute, encoder=torch.float32 if force_upcast else compute)


def open_checkpoint(path: str | Path, precision: str) -> AbstractContextManager[OpenCheckpoint]:
    """Open either form for reading. `precision` chooses among a folder's variants: fp16, bf16 or fp32.

    Raises CheckpointError when there is nothing at `path`, or a folder that is no diffusers folder.
    """
    path = Path(path)
    if not path.is_dir():
        return open_single_file(path)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f'the folder "{printable(path)}" has no {INDEX}, which a diffusers folder begins with. Choose the folder '
            "that has it, or a .safetensors file.",
            code="checkpoint.family",
        )
    return open_folder(path, precision)


def _device(device: torch.device | str | None) -> torch.device:
    import torch

    if device is None:
        from ..runtime.runtime import get_runtime

        return get_runtime().device()
    return torch.device(device)


def _load(
    opened: OpenCheckpoint, dtypes: Dtypes, bf16_instead: bool, defer_unused: bool
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint in `dtypes`, or with `bf16_instead` in bf16 where fp16 cannot hold its numbers.

    With `defer_unused` without the UNet's idle weights, whose names come along.
    """
    facts = opened.facts
    check_settings(opened)
    modules: tuple[Any, Any, Any] = empty_unet(opened), empty_vae(opened), empty_clip(opened)
    for component, module in zip(opened.components(), modules, strict=True):
        check(opened, component, module)
    _report_ignored(opened.name, opened.ignored)
    unet, vae, clip = modules
    left_out = leave_out(unet) if defer_unused else ()
    if not _fill_all(opened, modules, dtypes, may_fail=bf16_instead):
        _fill_all(opened, modules, _in_bf16(dtypes), may_fail=False)
    checkpoint = Checkpoint(
        model=SVDModel(unet, facts.scaling_factor, facts.sigma_min, facts.sigma_max, facts.defaults()),
        clip_vision=SVDClipVision(clip, _three(facts.image_mean), _three(facts.image_std)),
        vae=SVDVae(vae),
    )
    return checkpoint, left_out


def _fill_all(opened: OpenCheckpoint, modules: tuple[Any, Any, Any], dtypes: Dtypes, may_fail: bool) -> bool:
    """Fill the modules; with `may_fail` False is returned, and a warning given, when a number is too large."""
    unet, vae, clip = modules
    try:
        fill(opened.unet, unet, lambda name: dtypes.compute)
        fill(opened.vae, vae, lambda name: dtypes.encoder if name.startswith(ENCODER) else dtypes.compute)
        fill(opened.clip, clip, lambda name: dtypes.compute)
    except CheckpointError as error:
        if not may_fail or error.code != "checkpoint.range":
            raise
        logger.warning("%s is loaded in bf16, since fp16 is too small for it: %s", opened.name, error)
        return False
    return True


def _in_bf16(dtypes: Dtypes) -> Dtypes:
    """The same with bf16 in the place of fp16."""
    import torch

    return Dtypes(torch.bfloat16, torch.bfloat16 if dtypes.encoder is torch.float16 else dtypes.encoder)


def _three(row: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = row
    return first, second, third


def _report_ignored(name: str, ignored: Iterable[str]) -> None:
    """Say once what is not used: by kind what published files hold beside the model, by name what nobody expects."""
    kinds: Counter[str] = Counter()
    unknown: list[str] = []
    for each in ignored:
        kind = next((kind for start, kind in LEFTOVERS.items() if each.startswith(start)), None)
        if kind is None:
            unknown.append(each)
        else:
            kinds[kind] += 1
    if kinds:
        counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        logger.info("%s holds tensors that are not needed: %s", name, counts)
    if unknown:
        shown = ", ".join(map(readable, sorted(unknown)[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        logger.warning(
            "%s holds %d tensors beside the model that nobody here knows, and they are ignored: %s. If its videos look "
            "wrong, it was made for another program.",
            name,
            len(unknown),
            shown,
        )
