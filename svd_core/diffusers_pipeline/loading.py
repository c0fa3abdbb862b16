"""Load the components of a pipeline with this package's checks, and refuse what could run code from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPImageProcessor

from ..checkpoints.catalog import CATALOG, published
from ..checkpoints.diffusers_format import (
    COMPONENTS,
    IMAGE_PROCESSOR,
    INDEX,
    PUBLISHED_CONFIGS,
    SCHEDULER,
    read_config,
    read_index,
    variants,
)
from ..checkpoints.library import ModelLibrary, default_models_roots
from ..checkpoints.load import load_checkpoint
from ..errors import CheckpointError, SettingError, closest, printable
from ..models.components import Checkpoint
from .arguments import HUB_ARGUMENTS, PRECISIONS, Dtype
from .scheduler_solver import check_fits, with_sigma_data

report = diffusers_logging.get_logger("diffusers.pipelines.pipeline_utils")
"""diffusers' logger of loading. Its users set the level of that one."""

FIXED_SCHEDULER = ("prediction_type", "timestep_spacing", "timestep_type", "use_karras_sigmas")
"""Scheduler settings that must have the values of SVD: this package's sampling computes with those."""


class Components(NamedTuple):
    """The components of a pipeline, by diffusers' names."""

    vae: Any
    image_encoder: Any
    unet: Any
    scheduler: Any
    feature_extractor: Any


def find_checkpoint(name_or_path: str | Path, variant: str | None, arguments: Mapping[str, Any]) -> Path:
    """Return the folder or file of a checkpoint.

    That is a folder itself, the checkpoint of a name that `animate` takes, too (svd-nano, or svd-xt after `svd-stages
    download svd-xt`), or a copy that the hub's client keeps in its cache.

    Raises:
        CheckpointError: There is no such folder, or the hub has none (code `checkpoint.not_found`).
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.is_file():
        fix = "It is a file: use from_single_file."
        raise CheckpointError(f'there is no folder "{printable(path, 80)}". {fix}', code="checkpoint.not_found")
    if (named := find_named(name_or_path)) is not None:
        return named
    if str(name_or_path).count("/") != 1 or path.is_absolute():
        near = closest(str(name_or_path), [*_library().names(), *(entry.name for entry in CATALOG)])
        suggestion = (
            f'Did you mean "{near}"?'
            if near
            else f"Give one with {INDEX}, or a name of the hub such as stabilityai/stable-video-diffusion-img2vid-xt."
        )
        raise CheckpointError(f'there is no folder "{printable(path, 80)}". {suggestion}', code="checkpoint.not_found")
    return _download(str(name_or_path), variant, arguments)


def find_named(name_or_path: str | Path) -> Path | None:
    """Return the built-in checkpoint, or one of the models folders, by its name. None for what is not a name.

    Raises:
        CheckpointError: It is a published checkpoint that was not downloaded.
    """
    name, library = str(name_or_path), _library()
    is_published = "/" not in name and published(name) is not None
    return library.find(name) if is_published or name in library.names() else None


def _library() -> ModelLibrary:
    return ModelLibrary.from_roots(default_models_roots())


def _download(name: str, variant: str | None, arguments: Mapping[str, Any]) -> Path:
    """Return the folder that the hub's client keeps of a checkpoint. Raises CheckpointError."""
    from huggingface_hub import snapshot_download

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    folders = [*(part.folder for part in COMPONENTS), "scheduler", "feature_extractor"]
    patterns = [
        INDEX,
        *(f"{folder}/*.json" for folder in folders),
        *(f"{part.folder}/{weights}" for part in COMPONENTS),
    ]
    without_variant = None if variant else [f"*.{each}*.safetensors" for each in PRECISIONS.values()]
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if arguments.get(name) is not None}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=without_variant, **hub))
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        raise CheckpointError(
            f'"{printable(name, 80)}" cannot be had from the hub ({type(error).__name__}). Check the name and '
            "the network, accept the licence on its page, and pass token.",
            code="checkpoint.offline",
        ) from error


def load_folder(path: Path, dtype: Dtype, variant: str | None) -> Components:
    """Load a diffusers folder.

    Args:
        dtype: See `Dtype`.
        variant: fp16, or another name in the weights' files; None: the files without one.

    Raises:
        CheckpointError: The folder is damaged, incomplete or of another model.
        SettingError: It has another scheduler, or not the variant.
    """
    read_index(path)
    for part in COMPONENTS:
        if variant and variant not in variants(path / part.folder, part):
            raise SettingError(
                f"You are trying to load the model files of the `variant={variant}`, and {part.folder} has none. "
                "Leave variant out",
                code="checkpoint.variant",
            )
    check_scheduler_config(read_config(path / SCHEDULER))
    return as_components(load_checkpoint(path, _precision(dtype), variant=variant or ""), dtype)


def load_pretrained(path: Path, dtype: Dtype, variant: str | None) -> Components:
    """Load what `find_checkpoint` returns. Raises as `load_folder` and `load_file`."""
    if path.is_dir():
        return load_folder(path, dtype, variant)
    if variant:
        raise SettingError(
            f"variant must not be given for {path.name}, which is one file, got {printable(repr(variant), 40)}",
            code="checkpoint.variant",
        )
    return load_file(path, dtype)


def load_file(path: str | Path, dtype: Dtype) -> Components:
    """Load a single .safetensors file in Stability's layout, by its path or by a name, see `find_named`.

    Raises:
        CheckpointError: The file is missing, damaged, incomplete or of another model, or it is a folder.
    """
    file = Path(path if Path(path).exists() else find_named(path) or path)
    if file.is_dir() or "://" in str(path):
        fix = "Use from_pretrained" if file.is_dir() else "Download it first"
        raise CheckpointError(
            f'a .safetensors file is needed, got "{printable(path, 100)}". {fix}.', code="checkpoint.not_found"
        )
    return as_components(load_checkpoint(file, _precision(dtype)), dtype)


def _precision(dtype: Dtype) -> str:
    """Return the precision to load in. Components with dtypes of their own are loaded in float32 and then converted."""
    return "fp32" if dtype is None or isinstance(dtype, Mapping) else PRECISIONS[dtype]


def as_components(checkpoint: Checkpoint, dtype: Dtype) -> Components:
    """Return the components of a checkpoint, each in its dtype, and log their names as diffusers does."""
    clip = checkpoint.clip_vision
    size = clip.image_size
    modules = {"vae": checkpoint.vae.vae, "image_encoder": clip.encoder, "unet": checkpoint.model.unet}
    for name, module in modules.items():
        torch.nn.Module.to(module, dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype)
    processor = CLIPImageProcessor(
        **_published_settings(IMAGE_PROCESSOR),
        image_mean=list(clip.image_mean),
        image_std=list(clip.image_std),
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )
    scheduler = EulerDiscreteScheduler(
        **_published_settings(SCHEDULER), sigma_min=checkpoint.model.sigma_min, sigma_max=checkpoint.model.sigma_max
    )
    components = Components(**modules, scheduler=scheduler, feature_extractor=processor)
    for name, component in components._asdict().items():
        report.info("Loaded %s as %s.", name, type(component).__name__)
    return components


def _published_settings(file: str) -> dict[str, Any]:
    """Return the settings of a published config file, without the names of classes."""
    names = ("_class_name", "image_processor_type", "feature_extractor_type")
    return {name: value for name, value in PUBLISHED_CONFIGS[file].items() if name not in names}


def check_scheduler(scheduler: Any) -> None:
    """Raise SettingError unless a scheduler is SVD's EulerDiscreteScheduler, with any noise range, or one that fits.

    The first holds the noise range and computes nothing. Another one makes the steps, see `SchedulerSolver`.
    """
    if isinstance(scheduler, EulerDiscreteScheduler):
        check_scheduler_config(scheduler.config)
    else:
        check_fits(with_sigma_data(scheduler))


def check_scheduler_config(config: Mapping[str, Any]) -> None:
    """Raise SettingError if a scheduler's setting has another value than this package's sampling computes with."""
    for name in FIXED_SCHEDULER:
        wanted = PUBLISHED_CONFIGS[SCHEDULER][name]
        if config.get(name, wanted) != wanted:
            raise SettingError(
                f"the scheduler's {name} must be {wanted!r}, got {printable(repr(config[name]), 60)}",
                code="pipeline.scheduler",
            )
