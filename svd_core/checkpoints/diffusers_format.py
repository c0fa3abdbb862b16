"""Read and write diffusers' folder layout. diffusers' own pipeline loads what is written."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, printable
from .model_metadata import INDEX_KEY, ModelMetadata, metadata_from_dict
from .reader import Component, OpenCheckpoint, open_tensors
from .safe_json import parse_table
from .safetensors_writer import write_safetensors
from .stable_file import open_model_file

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
IMAGE_PROCESSOR = "feature_extractor/preprocessor_config.json"
PIPELINE = "StableVideoDiffusionPipeline"
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_VALUES = 50_000  # an index of shards has two for each tensor
WEIGHTS = re.compile(r"(?P<stem>diffusion_pytorch_model|model)(?P<rest>[-.\w]*)\.safetensors")
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})")
UNSAVED_SETTINGS = ("transformers_version", "dtype", "torch_dtype", "architectures", "model_type", "num_frames")
"""Settings that a library writes about itself, and `num_frames`, which is written only if known."""
OWN_METADATA = ("width", "height", "min_guidance", "max_guidance", "preset")
"""Metadata that diffusers' config files have no field for."""
PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "published_configs.json").read_text(encoding="utf-8")
)
"""Config files of the published folders, without the values that ModelMetadata holds."""


@dataclass(frozen=True)
class FolderComponent:
    """One module of the folder: title in messages, subfolder, class, and stem of the weights file."""

    title: str
    folder: str
    library: str
    class_name: str
    stem: str


UNET = FolderComponent("UNet", "unet", "diffusers", "UNetSpatioTemporalConditionModel", "diffusion_pytorch_model")
VAE = FolderComponent("VAE", "vae", "diffusers", "AutoencoderKLTemporalDecoder", "diffusion_pytorch_model")
CLIP = FolderComponent("CLIP tower", "image_encoder", "transformers", "CLIPVisionModelWithProjection", "model")
COMPONENTS = (UNET, VAE, CLIP)


@contextmanager
def open_folder(path: Path, precision: str) -> Iterator[OpenCheckpoint]:
    """Open the diffusers folder at `path` for reading inside the `with`.

    `precision` (fp16, bf16 or fp32) selects among several variants of the weights. Files may be links out of the
    folder, as in the hub's cache. File names in the folder's JSON are not followed.

    Raises:
        CheckpointError: The folder is for another pipeline, or lacks a component.
    """
    metadata = read_folder_metadata(path)
    configs = {part: read_config(path / part.folder / "config.json") for part in COMPONENTS}
    with ExitStack() as stack:
        files = {
            part: stack.enter_context(open_tensors(choose_weights(path / part.folder, part, precision)))
            for part in COMPONENTS
        }
        unet, vae, clip = (
            Component(part.title, configs[part], files[part].tensors, functools.partial("{}/{}".format, part.folder))
            for part in COMPONENTS
        )

        def check_unchanged() -> None:
            for opened in files.values():
                opened.check_unchanged()

        yield OpenCheckpoint(printable(path.name), metadata, unet, vae, clip, check_unchanged=check_unchanged)
        check_unchanged()  # while all are open


def read_index(path: Path) -> dict[str, Any]:
    """Read the folder's model_index.json. Raises CheckpointError unless it is a StableVideoDiffusionPipeline's."""
    index = read_config(path / INDEX)
    pipeline = index.get("_class_name")
    if pipeline != PIPELINE:
        raise CheckpointError(
            f'an SVD checkpoint is needed, and the folder "{printable(path.name)}" is for {ascii(pipeline)[:100]}. '
            f"Choose a folder whose {INDEX} names {PIPELINE}.",
            code="checkpoint.family",
        )
    for part in COMPONENTS:
        entry = index.get(part.folder)
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] != part.class_name:
            raise CheckpointError(
                f'the {part.title} in {INDEX} of the folder "{printable(path.name)}" must be a {part.class_name}, got '
                f"{ascii(entry)[:100]}. Choose the folder of a published SVD.",
                code="checkpoint.family",
            )
    return index


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object at `path`. Raises CheckpointError if it is missing, too large or damaged."""
    if not path.exists():
        raise CheckpointError(
            f'the folder "{printable(path.parent)}" needs a file {path.name}, and there is none. Download '
            "the folder again.",
            code="checkpoint.missing_parts",
        )
    try:
        with open_model_file(path) as file:
            if file.state.size > MAX_CONFIG_BYTES:
                raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
            return parse_table(file.read(MAX_CONFIG_BYTES), MAX_CONFIG_VALUES)
    except ValueError as error:
        raise CheckpointError(
            f'"{printable(path)}" cannot be used: {error}. Download the folder again.', code="checkpoint.damaged"
        ) from error


def read_folder_metadata(path: Path) -> ModelMetadata:
    """Read the metadata of a folder from its config files, overridden by `_svd_stages` in its index.

    Without `num_frames` in unet/config.json, the frames are unknown; diffusers itself then uses 25.

    Raises:
        CheckpointError: The folder is for another pipeline, or a config file is missing, damaged or out of range.
    """
    index = read_index(path)
    unet, vae = (read_config(path / part.folder / "config.json") for part in (UNET, VAE))
    scheduler = read_config(path / SCHEDULER)
    processor = read_config(path / IMAGE_PROCESSOR)
    values = {
        "num_frames": unet.get("num_frames"),
        "scaling_factor": vae.get("scaling_factor"),
        "force_upcast": vae.get("force_upcast"),
        "sigma_min": scheduler.get("sigma_min"),
        "sigma_max": scheduler.get("sigma_max"),
        "image_mean": processor.get("image_mean"),
        "image_std": processor.get("image_std"),
    }
    own = index.get(INDEX_KEY)
    return metadata_from_dict(
        f'the folder "{printable(path.name)}"', {**values, **(own if isinstance(own, dict) else {})}
    )


def variants(folder: Path, part: FolderComponent) -> dict[str, list[Path]]:
    """Find the complete sets of safetensors weights in `folder`: variant name ("" for none) -> its files in order.

    A set is one file, or all its shards. Of several complete sets of one variant, the one in an index file is taken, as
    diffusers does, and without an index the one with the fewest files.

    Raises:
        CheckpointError: There are shards, but no complete set.
    """
    indexed = _indexed_files(folder)
    complete: dict[str, list[Path]] = {}
    sets = _weight_sets(folder, part)
    for (variant, count), files in sorted(sets.items()):
        ordered = [files[number] for number in sorted(files)]
        if len(ordered) == count and (variant not in complete or indexed.issuperset(file.name for file in ordered)):
            complete[variant] = ordered
    if sets and not complete:
        (_, count), files = next(iter(sorted(sets.items())))
        missing = next(number for number in range(1, count + 1) if number not in files)
        raise CheckpointError(
            f'the {part.title} in "{printable(folder)}" is not complete: of {count} files, number {missing} is '
            "missing. Download the folder again.",
            code="checkpoint.missing_parts",
        )
    return complete


def _indexed_files(folder: Path) -> set[str]:
    """Return the file names in the index files of `folder`."""
    names: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        weights = read_config(index).get("weight_map")
        if isinstance(weights, dict):
            names |= {name for name in weights.values() if isinstance(name, str)}
    return names


def _weight_sets(folder: Path, part: FolderComponent) -> dict[tuple[str, int], dict[int, Path]]:
    """Group the weights by (variant, number of files that the set must have): shard number -> file."""
    sets: dict[tuple[str, int], dict[int, Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        match = WEIGHTS.fullmatch(file.name)
        if match is None or match["stem"] != part.stem:
            continue
        shard = SHARD.search(match["rest"])
        variant = SHARD.sub("", match["rest"]).strip(".")
        number, count = (int(shard["number"]), int(shard["count"])) if shard else (1, 1)
        sets.setdefault((variant, count), {})[number] = file
    return sets


def choose_weights(folder: Path, part: FolderComponent, precision: str) -> list[Path]:
    """Return the weights that fit `precision` best. Raises CheckpointError if none are in the safetensors format.

    The order is: the variant of that precision, the one without a name, then the most precise.
    """
    available = variants(folder, part)
    for variant in (precision, "", "fp32", "bf16", "fp16", *sorted(available)):
        if variant in available:
            return available[variant]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in folder.glob(pattern))
    has = f"only {printable(pickles[0])}, a pickle, which can run any program hidden in it" if pickles else "no weights"
    raise CheckpointError(
        f'the {part.title} needs a file {part.stem}.safetensors in "{printable(folder)}", and there is {has}. '
        "Download the .safetensors of the same folder.",
        code="checkpoint.pickle" if pickles else "checkpoint.missing_parts",
    )


def write_folder(opened: OpenCheckpoint, path: Path, on_tensor: Callable[[], None]) -> None:
    """Write `opened` as a diffusers folder into the empty folder `path`, one tensor at a time.

    `on_tensor` is called after each tensor. diffusers' StableVideoDiffusionPipeline.from_pretrained loads the folder.
    Metadata that it has no field for is written to model_index.json under `_svd_stages`; unknown frames are omitted.
    """
    metadata = opened.metadata
    for part, component in zip(COMPONENTS, opened.components(), strict=True):
        config = _saved_config(part, component)
        if part is UNET and metadata.num_frames is not None:
            config["num_frames"] = metadata.num_frames
        write_config(path / part.folder / "config.json", config)
        weights = path / part.folder / f"{part.stem}.safetensors"
        write_safetensors(weights, component.tensors, {"format": "pt"}, on_tensor)
    sigmas = {"sigma_max": metadata.sigma_max, "sigma_min": metadata.sigma_min}
    write_config(path / SCHEDULER, {**PUBLISHED_CONFIGS[SCHEDULER], **sigmas})
    size = opened.clip.config["image_size"]
    preprocessing = {
        "image_mean": metadata.image_mean,
        "image_std": metadata.image_std,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    write_config(path / IMAGE_PROCESSOR, {**PUBLISHED_CONFIGS[IMAGE_PROCESSOR], **preprocessing})
    index = {
        "_class_name": PIPELINE,
        **{part.folder: [part.library, part.class_name] for part in COMPONENTS},
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        INDEX_KEY: {key: value for key, value in metadata.as_dict().items() if key in OWN_METADATA},
    }
    write_config(path / INDEX, index)


def _saved_config(part: FolderComponent, component: Component) -> dict[str, Any]:
    """Return a component's settings with its class, and without what a library writes about itself."""
    kind = {"_class_name": part.class_name}
    if part is CLIP:
        kind = {"architectures": [part.class_name], "model_type": "clip_vision_model"}
    settings = {key: value for key, value in component.config.items() if key[:1] != "_" and key not in UNSAVED_SETTINGS}
    return {**kind, **settings}


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config` as JSON. Creates the folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
