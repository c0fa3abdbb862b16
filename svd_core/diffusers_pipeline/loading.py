"""Load the components of a pipeline with this package's checks, and refuse what could run code from a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPImageProcessor

from ..checkpoints.diffusers_format import (
    COMPONENTS,
    IMAGE_PROCESSOR,
    INDEX,
    PUBLISHED_CONFIGS,
    SCHEDULER,
    read_config,
    read_folder_metadata,
    variants,
)
from ..checkpoints.load import load_checkpoint
from ..errors import CheckpointError, SettingError
from ..models.components import Checkpoint

logger = logging.getLogger(__name__)
report = diffusers_logging.get_logger("diffusers.pipelines.pipeline_utils")
"""diffusers' logger of loading. Its users set the level of that one."""

NAMES = ("vae", "image_encoder", "unet", "scheduler", "feature_extractor")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
REFUSED = {
    "custom_pipeline": "it would run a program of somebody else",
    "custom_revision": "it would run a program of somebody else",
    "trust_remote_code": "it would run a program from the checkpoint's folder",
    "quantization_config": "the weights are loaded as they are stored",
    "original_config": "the settings of a single file are read from its tensors",
}
"""Arguments of diffusers' `from_pretrained` and `from_single_file` -> why they are refused."""
IGNORED = ("low_cpu_mem_usage", "use_safetensors", "max_memory", "offload_folder", "offload_state_dict", "dduf_file")
FIXED_SCHEDULER = ("prediction_type", "timestep_spacing", "timestep_type", "use_karras_sigmas")
"""Scheduler settings that must have the values of SVD: this package's sampling computes with those."""
DEVICES = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Components(NamedTuple):
    """The components of a pipeline, by diffusers' names."""

    vae: Any
    image_encoder: Any
    unet: Any
    scheduler: Any
    feature_extractor: Any


def refuse_unsupported(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of `REFUSED` that is set, or for weights other than safetensors."""
    for name, reason in REFUSED.items():
        if arguments.get(name):
            raise SettingError(f"{name} is not supported: {reason}", code="pipeline.unsupported")
    placement = arguments.get("device_map")
    if placement is not None and (isinstance(placement, Mapping) or str(placement).split(":")[0] not in DEVICES):
        raise SettingError(
            f"device_map must be one device, got {placement!r}; call to, enable_model_cpu_offload or "
            "enable_sequential_cpu_offload on the pipeline",
            code="pipeline.unsupported",
        )
    if arguments.get("use_safetensors") is False:
        raise SettingError(
            "use_safetensors=False is not supported: a pickle can run any program", code="pipeline.unsupported"
        )
    known = {*NAMES, *HUB_ARGUMENTS, *REFUSED, *IGNORED, "torch_dtype", "dtype", "variant", "device_map"}
    if unknown := sorted(arguments.keys() - known):
        raise TypeError(f"from_pretrained has no argument {unknown[0]!r}")


def find_folder(name_or_path: str | Path, variant: str | None, arguments: Mapping[str, Any]) -> Path:
    """Return the folder of a checkpoint: the path itself, or a copy that the hub's client keeps in its cache.

    Raises:
        CheckpointError: There is no such folder, or the hub has none (code `checkpoint.not_found`).
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if str(name_or_path).count("/") != 1 or path.is_absolute():
        raise CheckpointError(
            f'there is no folder "{name_or_path}". Give the folder of a checkpoint with its {INDEX}, or a name of the '
            "hub such as stabilityai/stable-video-diffusion-img2vid-xt",
            code="checkpoint.not_found",
        )
    from huggingface_hub import snapshot_download

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    folders = [*(part.folder for part in COMPONENTS), "scheduler", "feature_extractor"]
    patterns = [
        INDEX,
        *(f"{folder}/*.json" for folder in folders),
        *(f"{part.folder}/{weights}" for part in COMPONENTS),
    ]
    without_variant = None if variant else [f"*.{each}*.safetensors" for each in PRECISIONS.values()]
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if arguments.get(name) is not None and name != "proxies"}
    try:
        return Path(
            snapshot_download(str(name_or_path), allow_patterns=patterns, ignore_patterns=without_variant, **hub)
        )
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        raise CheckpointError(
            f'"{name_or_path}" is no folder here, and the hub does not give it: {str(error).splitlines()[0][:200]}. '
            "Accept the licence on its page and set a token, or download it with svd-stages download",
            code="checkpoint.offline",
        ) from error


Dtype = torch.dtype | Mapping[str, torch.dtype] | None
"""dtype of all modules, or one for each name, with "default" for the others. None: float32."""


def load_folder(path: Path, dtype: Dtype, variant: str | None) -> Components:
    """Load a diffusers folder.

    Args:
        dtype: See `Dtype`.
        variant: fp16, or another name in the weights' files; None: the files without one.

    Raises:
        CheckpointError: The folder is damaged, incomplete or of another model.
        SettingError: It has another scheduler, or not the variant.
    """
    for part in COMPONENTS:
        if variant and variant not in variants(path / part.folder, part):
            raise SettingError(
                f"You are trying to load the model files of the `variant={variant}`, and {part.folder} has none. "
                "Leave variant out",
                code="checkpoint.variant",
            )
    config = read_config(path / SCHEDULER)
    scheduler = make_scheduler({name: config.get(name, PUBLISHED_CONFIGS[SCHEDULER][name]) for name in FIXED_SCHEDULER})
    metadata = read_folder_metadata(path)
    scheduler.register_to_config(sigma_min=metadata.sigma_min, sigma_max=metadata.sigma_max)
    checkpoint = load_checkpoint(path, _precision(dtype), variant=variant or "")
    return as_components(checkpoint, scheduler, dtype)


def load_file(path: str | Path, dtype: Dtype) -> Components:
    """Load a single .safetensors file in Stability's layout.

    Raises:
        CheckpointError: The file is missing, damaged, incomplete or of another model.
    """
    checkpoint = load_checkpoint(path, _precision(dtype))
    sigmas = {"sigma_min": checkpoint.model.sigma_min, "sigma_max": checkpoint.model.sigma_max}
    return as_components(checkpoint, make_scheduler(sigmas), dtype)


def _precision(dtype: Dtype) -> str:
    """Return the precision to load in. Components with dtypes of their own are loaded in float32 and then converted."""
    if dtype is None or isinstance(dtype, Mapping):
        return "fp32"
    if dtype not in PRECISIONS:
        raise SettingError(f"torch_dtype must be torch.float32, float16 or bfloat16, got {dtype}")
    return PRECISIONS[dtype]


def as_components(checkpoint: Checkpoint, scheduler: EulerDiscreteScheduler, dtype: Dtype) -> Components:
    """Return the components of a checkpoint, each in its dtype, and log their names as diffusers does."""
    clip = checkpoint.clip_vision
    size = clip.image_size
    modules = {"vae": checkpoint.vae.vae, "image_encoder": clip.encoder, "unet": checkpoint.model.unet}
    for name, module in modules.items():
        module.to(dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype)
    settings = {key: value for key, value in PUBLISHED_CONFIGS[IMAGE_PROCESSOR].items() if not key.endswith("_type")}
    processor = CLIPImageProcessor(
        **settings,
        image_mean=list(clip.image_mean),
        image_std=list(clip.image_std),
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )
    components = Components(**modules, scheduler=scheduler, feature_extractor=processor)
    for name, component in components._asdict().items():
        report.info("Loaded %s as %s.", name, type(component).__name__)
    return components


def make_scheduler(settings: Mapping[str, Any]) -> EulerDiscreteScheduler:
    """Return SVD's scheduler with other `settings`. It holds the noise range; it computes nothing.

    Raises:
        SettingError: A setting has another value than SVD's, see `check_scheduler`.
    """
    config = {name: value for name, value in PUBLISHED_CONFIGS[SCHEDULER].items() if name != "_class_name"}
    scheduler = EulerDiscreteScheduler(**{**config, **settings})
    check_scheduler(scheduler)
    return scheduler


def check_scheduler(scheduler: Any) -> None:
    """Raise SettingError unless a scheduler is the EulerDiscreteScheduler of SVD, with any noise range."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, EulerDiscreteScheduler):
        raise SettingError(
            f"scheduler must be an EulerDiscreteScheduler with SVD's settings, got {name}", code="pipeline.scheduler"
        )
    for setting in FIXED_SCHEDULER:
        wanted = PUBLISHED_CONFIGS[SCHEDULER][setting]
        if scheduler.config[setting] != wanted:
            raise SettingError(
                f"the scheduler's {setting} must be {wanted!r}, got {scheduler.config[setting]!r}",
                code="pipeline.scheduler",
            )
