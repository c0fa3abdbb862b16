"""Conversion between the two forms on disk, and saving a checkpoint that is in memory as one file."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..models.components import Checkpoint
from ..runtime.runtime import Advance
from .build_modules import check, empty_clip, empty_unet, empty_vae
from .config_validation import check_settings
from .diffusers_format import write_folder
from .lazy_tensors import module_tensors
from .load import open_checkpoint
from .model_metadata import MAX_FRAMES, ModelMetadata
from .progress import Progress, no_progress
from .reader import Component, OpenCheckpoint
from .safetensors_writer import in_place, refuse_existing
from .single_file import single_file_tensors, write_single_file

logger = logging.getLogger(__name__)

FILE_SUFFIX = ".safetensors"


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    progress: Progress = no_progress,
    num_frames: int | None = None,
) -> Path:
    """Write the one-file checkpoint `source` as a diffusers folder, or the diffusers folder `source` as one file.

    num_frames  for how many frames the model was trained, 1 to 4096; None: what `source` says. When neither is known
                the result does not say it either, and a warning tells how to

    Types are kept (of several variants in a folder the one with the most digits is taken), one tensor is in memory at
    a time, and `destination` appears when it is complete, if nobody changed `source` meanwhile. What the one file holds
    beside the model (the text tower, a second decoder) is left out. Raises CheckpointError when `source` is not a whole
    SVD or holds what the other form cannot, SettingError when `destination` is named as the other form or `num_frames`
    is out of its range, and OutputError when there is something at `destination` already or it cannot be written.
    """
    source, destination = Path(source), Path(destination)
    _check_arguments(source, destination, num_frames)
    refuse_existing(destination)
    with open_checkpoint(source, "fp32") as read:
        opened = read if num_frames is None else replace(read, facts=replace(read.facts, num_frames=num_frames))
        if opened.facts.num_frames is None:
            _warn_of_frames(source, destination)
        check_settings(opened)
        modules = empty_unet(opened), empty_vae(opened), empty_clip(opened)
        for component, module in zip(opened.components(), modules, strict=True):
            check(opened, component, module)
        if source.is_dir():
            _write_file(_with_all_settings(opened, *modules), destination, progress)
        else:
            _write_folder(opened, destination, progress)
    return destination


def _with_all_settings(opened: OpenCheckpoint, unet: Any, vae: Any, clip: Any) -> OpenCheckpoint:
    """The same with those settings, too, that a folder's config files leave to the libraries."""
    return replace(
        opened,
        unet=replace(opened.unet, config=dict(unet.config)),
        vae=replace(opened.vae, config=dict(vae.config)),
        clip=replace(opened.clip, config=clip.config.to_dict()),
    )


def _check_arguments(source: Path, destination: Path, num_frames: int | None) -> None:
    if num_frames is not None and not 1 <= num_frames <= MAX_FRAMES:
        raise SettingError(f"frames must be from 1 to {MAX_FRAMES}, and is {num_frames}.")
    to_file, named_file = source.is_dir(), destination.suffix.lower() == FILE_SUFFIX
    if to_file and not named_file:
        kinds, named = f"one file, whose name must end in {FILE_SUFFIX}", f"{destination}{FILE_SUFFIX}"
    elif named_file and source.is_file():
        kinds, named = f"a folder, whose name must not end in {FILE_SUFFIX}", str(destination.with_suffix(""))
    else:
        return
    raise SettingError(
        f'"{source.name}" is a {"folder" if to_file else "file"} and is converted to {kinds}; the name given is '
        f'"{destination.name}". Run svd-stages convert-checkpoint {shlex.quote(str(source))} {shlex.quote(named)}'
    )


def _warn_of_frames(source: Path, destination: Path) -> None:
    logger.warning(
        '"%s" does not say for how many frames it was trained (svd: 14, svd_xt: 25), and neither will "%s"; 25 will be '
        "taken. To write it down, convert again with --frames N.",
        source.name,
        destination.name,
    )


def save_single_file(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write a checkpoint that is in memory as one file in Stability's layout. Types are kept.

    Raises OutputError when there is something at `path` already or it cannot be written, and CheckpointError for a
    shape of model that the layout has no names for.
    """
    return _write_file(open_in_memory(checkpoint), Path(path), no_progress)


def _write_file(opened: OpenCheckpoint, path: Path, progress: Progress) -> Path:
    with in_place(path) as work, progress("writing", len(single_file_tensors(opened)), "tensor") as advance:
        write_single_file(opened, work, _counting(advance))
        opened.check_unchanged()
    return path


def _write_folder(opened: OpenCheckpoint, path: Path, progress: Progress) -> Path:
    total = sum(len(component.tensors) for component in opened.components())
    with in_place(path, folder=True) as work, progress("writing", total, "tensor") as advance:
        write_folder(opened, work, _counting(advance))
        opened.check_unchanged()
    return path


def _counting(advance: Advance) -> Callable[[], None]:
    numbers = count(1)
    return lambda: advance(next(numbers))


def open_in_memory(checkpoint: Checkpoint) -> OpenCheckpoint:
    """A loaded checkpoint, as if it were opened from disk; complete."""
    checkpoint.model.load_deferred()
    unet, vae, clip = checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder
    defaults = checkpoint.model.defaults
    facts = ModelMetadata(
        num_frames=defaults.num_frames,
        width=defaults.width,
        height=defaults.height,
        min_guidance=defaults.min_guidance,
        max_guidance=defaults.max_guidance,
        clip_heads=clip.config.num_attention_heads,
        scaling_factor=checkpoint.model.scaling_factor,
        sigma_min=checkpoint.model.sigma_min,
        sigma_max=checkpoint.model.sigma_max,
        force_upcast=bool(vae.config["force_upcast"]),
        image_mean=checkpoint.clip_vision.image_mean,
        image_std=checkpoint.clip_vision.image_std,
    )
    return OpenCheckpoint(
        name="the loaded model",
        facts=facts,
        unet=Component("UNet", {**unet.config, "num_frames": defaults.num_frames}, module_tensors(unet)),
        vae=Component("VAE", dict(vae.config), module_tensors(vae)),
        clip=Component("CLIP tower", clip.config.to_dict(), module_tensors(clip)),
    )
