"""Load a diffusers folder or a single-file checkpoint."""

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
from .build_modules import build_modules, fill, list_names
from .deferred_weights import DeferredWeights, remove_deferrable
from .diffusers_format import INDEX, open_folder
from .keymap import UNUSED_PREFIXES
from .reader import OpenCheckpoint
from .single_file import open_single_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
ENCODER_PREFIXES = ("encoder.", "quant_conv.")  # of the VAE


@dataclass(frozen=True)
class Dtypes:
    """Dtype of all modules (`compute`), and of the VAE's encoder and quant_conv (`encoder`)."""

    compute: torch.dtype
    encoder: torch.dtype


def load_checkpoint(
    path: str | Path,
    precision: str = "auto",
    device: torch.device | str = "cpu",
    defer_unused: bool = False,
    variant: str | None = None,
) -> Checkpoint:
    """Load the checkpoint at `path`: a single .safetensors file in Stability's layout, or a diffusers folder.

    The modules are on the CPU, frozen, in evaluation mode, with memory of their own.

    Args:
        precision: auto, fp16, bf16 or fp32. See `resolve_dtypes`.
        device: Device that the modules will compute on. Only precision "auto" depends on it.
        defer_unused: Leave weights on disk that a video with one CLIP token does not use. `model.load_deferred()` reads
            them. Until then the UNet's own forward fails, and only this package's sampling works.
        variant: Variant of a folder's weights to prefer; "" for the files without one. None: that of the precision.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, incomplete, not finite, or of another family.
        SettingError: Unknown precision.
    """
    import torch

    device = torch.device(device)
    variants = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    if variant is None:
        variant = variants[resolve_dtypes(precision, device, torch.float32, force_upcast=True).compute]
    with open_checkpoint(path, variant) as opened, torch.inference_mode(False), torch.no_grad():
        stored = torch.bfloat16 if "BF16" in opened.stored_dtypes() else torch.float32
        dtypes = resolve_dtypes(precision, device, stored, opened.metadata.force_upcast)
        bf16 = resolve_dtypes("bf16", device, stored, opened.metadata.force_upcast)
        checkpoint, names = _load(opened, dtypes, bf16 if precision == "auto" else None, defer_unused)
    if not names:
        return checkpoint
    model, path = checkpoint.model, Path(path)
    deferred = DeferredWeights(path, functools.partial(open_checkpoint, path, variant), model.unet.dtype, names)
    return replace(checkpoint, model=replace(model, deferred_weights=deferred))


def resolve_dtypes(precision: str, device: torch.device, stored: torch.dtype, force_upcast: bool) -> Dtypes:
    """Return the dtypes of `precision` on `device` for a checkpoint with weights stored as `stored`.

    auto is fp16 on CUDA, or bf16 if the weights are stored in bf16 (their range may exceed fp16), and fp32 on all other
    devices. Loading falls back from auto's fp16 to bf16 if a number is too large. With `force_upcast`, the VAE's
    encoder is float32 in every precision.

    Raises:
        SettingError: The precision is not auto, fp16, bf16 or fp32.
    """
    import torch

    compute = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}.get(precision)
    if precision == "auto":
        compute = torch.float32
        if device.type == "cuda":
            compute = torch.bfloat16 if stored is torch.bfloat16 else torch.float16
    if compute is None:
        raise SettingError(f'precision must be one of {", ".join(PRECISIONS)}, got "{precision}".')
    return Dtypes(compute, encoder=torch.float32 if force_upcast else compute)


def open_checkpoint(path: str | Path, precision: str) -> AbstractContextManager[OpenCheckpoint]:
    """Open a checkpoint of either format for reading.

    `precision` (fp16, bf16 or fp32) selects among the weight variants of a folder.

    Raises:
        CheckpointError: The path does not exist, or is a folder without model_index.json.
    """
    path = Path(path)
    if not path.is_dir():
        return open_single_file(path)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f'the folder "{printable(path)}" has no {INDEX}, so it is not a diffusers folder. Choose the folder '
            "that has it, or a .safetensors file.",
            code="checkpoint.family",
        )
    return open_folder(path, precision)


def _load(
    opened: OpenCheckpoint, dtypes: Dtypes, fallback: Dtypes | None, defer_unused: bool
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Build and fill the modules; also return the names of the deferred weights.

    `fallback` replaces `dtypes` if a number is too large for them.
    """
    metadata = opened.metadata
    modules: tuple[Any, Any, Any] = build_modules(opened)
    _log_ignored(opened.name, opened.ignored)
    unet, vae, clip = modules
    names = remove_deferrable(unet) if defer_unused else ()
    if not _fill_all(opened, modules, dtypes, may_fail=fallback is not None):
        _fill_all(opened, modules, fallback or dtypes, may_fail=False)
    checkpoint = Checkpoint(
        model=SVDModel(unet, metadata.scaling_factor, metadata.sigma_min, metadata.sigma_max, metadata.defaults()),
        clip_vision=SVDClipVision(clip, metadata.image_mean, metadata.image_std),
        vae=SVDVae(vae),
    )
    return checkpoint, names


def _fill_all(opened: OpenCheckpoint, modules: tuple[Any, Any, Any], dtypes: Dtypes, may_fail: bool) -> bool:
    """Fill the modules. With `may_fail`, log a warning and return False if a number is too large for its dtype."""
    unet, vae, clip = modules
    try:
        fill(opened.unet, unet, lambda name: dtypes.compute)
        fill(opened.vae, vae, lambda name: dtypes.encoder if name.startswith(ENCODER_PREFIXES) else dtypes.compute)
        fill(opened.clip, clip, lambda name: dtypes.compute)
    except CheckpointError as error:
        if not may_fail or error.code != "checkpoint.range":
            raise
        logger.warning("%s is loaded in bf16, because fp16 is too small for it: %s", opened.name, error)
        return False
    return True


def _log_ignored(name: str, ignored: Iterable[str]) -> None:
    """Log unused tensors: those that published files are known to hold by origin, others as a warning by name."""
    origins = {
        key: next((origin for prefix, origin in UNUSED_PREFIXES.items() if key.startswith(prefix)), None)
        for key in ignored
    }
    known = Counter(origin for origin in origins.values() if origin is not None)
    unknown = sorted(key for key, origin in origins.items() if origin is None)
    if known:
        counts = ", ".join(f"{count} of {origin}" for origin, count in sorted(known.items()))
        logger.info("%s holds tensors that are not needed: %s", name, counts)
    if unknown:
        logger.warning(
            "%s holds %d unknown tensors in addition to the model, and they are ignored: %s. If its videos look wrong, "
            "it was made for another program.",
            name,
            len(unknown),
            list_names(unknown),
        )
