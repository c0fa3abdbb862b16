"""The diffusers folder layout: opened part by part, and written so that diffusers' own pipeline loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, printable
from .lazy_tensors import open_tensors
from .model_metadata import INDEX_KEY, ModelMetadata, facts_from_table
from .reader import Component, OpenCheckpoint
from .safe_json import parse_table
from .safetensors_writer import write_safetensors
from .stable_file import open_model_file

INDEX = "model_index.json"
PIPELINE = "StableVideoDiffusionPipeline"
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_VALUES = 50_000  # an index of shards has two for each tensor
WEIGHTS = re.compile(r"(?P<stem>diffusion_pytorch_model|model)(?P<rest>[-.\w]*)\.safetensors")
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})")
PREFERRED = {
    "fp16": ("fp16", "", "fp32", "bf16"),
    "bf16": ("bf16", "", "fp32", "fp16"),
    "fp32": ("fp32", "", "bf16", "fp16"),
}
"""Precision wanted -> variants of a part's weights, the best first; "" is the one without a name."""

OWN_FACTS = ("width", "height", "min_guidance", "max_guidance")
"""The facts that diffusers' own config files have no place for."""
SCHEDULER_CONFIG = {  # SVD scheduler/scheduler_config.json
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
IMAGE_PROCESSOR_CONFIG = {  # SVD feature_extractor/preprocessor_config.json
    "image_processor_type": "CLIPImageProcessor",
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
}


@dataclass(frozen=True)
class Part:
    """One module of the folder: its title in messages, its subfolder, its class, and the stem of its weights file."""

    title: str
    folder: str
    library: str
    class_name: str
    stem: str


UNET = Part("UNet", "unet", "diffusers", "UNetSpatioTemporalConditionModel", "diffusion_pytorch_model")
VAE = Part("VAE", "vae", "diffusers", "AutoencoderKLTemporalDecoder", "diffusion_pytorch_model")
CLIP = Part("CLIP tower", "image_encoder", "transformers", "CLIPVisionModelWithProjection", "model")
PARTS = (UNET, VAE, CLIP)


@contextmanager
def open_folder(path: Path, precision: str) -> Iterator[OpenCheckpoint]:
    """The diffusers folder at `path`, to be read inside the `with`.

    `precision` (fp16, bf16 or fp32) decides which variant of the weights is taken where there are several. Files of the
    folder may be links that lead out of it, as those of the hub's cache all are; no text in it names a file. Raises
    CheckpointError when the folder is another pipeline's, or lacks a part.
    """
    index = read_index(path)
    configs = {part: read_config(path / part.folder / "config.json") for part in PARTS}
    facts = read_facts(path, index, unet=configs[UNET], vae=configs[VAE])
    with ExitStack() as opened:
        parts = {
            part: opened.enter_context(open_tensors(choose_weights(path / part.folder, part, precision)))
            for part in PARTS
        }
        unet, vae, clip = (Component(part.title, configs[part], parts[part].tensors, _shown(part)) for part in PARTS)

        def check_unchanged() -> None:
            for files in parts.values():
                files.check_unchanged()

        yield OpenCheckpoint(printable(path.name), facts, unet, vae, clip, check_unchanged=check_unchanged)
        check_unchanged()  # all of them, while all are open


def _shown(part: Part):
    return lambda name: f"{part.folder}/{name}"


def read_index(path: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises CheckpointError unless it is that of a StableVideoDiffusionPipeline."""
    index = read_config(path / INDEX)
    pipeline = index.get("_class_name")
    if pipeline != PIPELINE:
        raise CheckpointError(
            f'an SVD checkpoint is needed, and the folder "{printable(path.name)}" is for {ascii(pipeline)[:100]}. '
            f"Choose a folder whose {INDEX} names {PIPELINE}.",
            code="checkpoint.family",
        )
    for part in PARTS:
        named = index.get(part.folder)
        if not isinstance(named, list) or len(named) != 2 or named[1] != part.class_name:
            raise CheckpointError(
                f'the {part.title} of the folder "{printable(path.name)}" must be a {part.class_name}, and its '
                f"{INDEX} says {ascii(named)[:100]}. Choose the folder of a published SVD.",
                code="checkpoint.family",
            )
    return index


def read_config(path: Path) -> dict[str, Any]:
    """The JSON table at `path`. Raises CheckpointError when it is missing, too large or damaged."""
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


def read_facts(path: Path, index: dict[str, Any], unet: dict[str, Any], vae: dict[str, Any]) -> ModelMetadata:
    """The facts of a folder from its config files, with those under `_svd_stages` in its index over them.

    A unet/config.json without `num_frames` does not say for how many frames the model was trained; diffusers then
    takes 25.
    """
    scheduler = read_config(path / "scheduler" / "scheduler_config.json")
    processor = read_config(path / "feature_extractor" / "preprocessor_config.json")
    table = {
        "num_frames": unet.get("num_frames"),
        "scaling_factor": vae.get("scaling_factor"),
        "force_upcast": vae.get("force_upcast"),
        "sigma_min": scheduler.get("sigma_min"),
        "sigma_max": scheduler.get("sigma_max"),
        "image_mean": processor.get("image_mean"),
        "image_std": processor.get("image_std"),
    }
    own = index.get(INDEX_KEY, {})
    if not isinstance(own, dict):
        own = {}
    return facts_from_table(f'the folder "{printable(path.name)}"', {**table, **own})


def variants(folder: Path, part: Part) -> dict[str, list[Path]]:
    """The sets of safetensors weights in `folder`: variant name ("" for none) -> its files in order.

    A set is one file, or the shards of one. Of several complete sets of a variant, the one that an index file lists is
    taken, as diffusers does, and without an index the one with the fewest files. Raises CheckpointError when there are
    shards but no complete set.
    """
    listed = _listed_files(folder)
    load_deferred: dict[str, list[Path]] = {}
    sets = _sets(folder, part)
    for (variant, count), files in sorted(sets.items()):
        row = [files[number] for number in sorted(files)]
        if len(row) == count and (variant not in load_deferred or listed.issuperset(file.name for file in row)):
            load_deferred[variant] = row
    if sets and not load_deferred:
        (_, count), files = next(iter(sorted(sets.items())))
        lacking = next(number for number in range(1, count + 1) if number not in files)
        raise CheckpointError(
            f'the {part.title} in "{printable(folder)}" is not complete: of {count} files, number {lacking} is '
            "missing. Download the folder again.",
            code="checkpoint.missing_parts",
        )
    return load_deferred


def _listed_files(folder: Path) -> set[str]:
    """The names of the files that the index files of `folder` list."""
    names: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        weights = read_config(index).get("weight_map")
        if isinstance(weights, dict):
            names |= {name for name in weights.values() if isinstance(name, str)}
    return names


def _sets(folder: Path, part: Part) -> dict[tuple[str, int], dict[int, Path]]:
    """The files of `part`'s weights by variant and by the number of files that the set must have: number -> file."""
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


def choose_weights(folder: Path, part: Part, precision: str) -> list[Path]:
    """The weights of `part` that fit `precision` best. Raises CheckpointError when there are none in safetensors."""
    found = variants(folder, part)
    for variant in (*PREFERRED[precision], *sorted(found)):
        if variant in found:
            return found[variant]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in folder.glob(pattern))
    has = f"only {printable(pickles[0])}, a pickle, which can run any program hidden in it" if pickles else "no weights"
    raise CheckpointError(
        f'the {part.title} needs a file {part.stem}.safetensors in "{printable(folder)}", and there is {has}. '
        "Download the .safetensors of the same folder.",
        code="checkpoint.pickle" if pickles else "checkpoint.missing_parts",
    )


def write_folder(opened: OpenCheckpoint, path: Path, on_tensor: Callable[[], None]) -> None:
    """Write `opened` as a diffusers folder into the empty folder `path`, one tensor at a time.

    `on_tensor` is called after each tensor. diffusers' StableVideoDiffusionPipeline.from_pretrained loads the folder;
    facts it has no place for go into model_index.json under `_svd_stages`. What is not known is left out: without
    `num_frames` in unet/config.json, diffusers takes 25 itself.
    """
    facts = opened.facts
    for part, component in zip(PARTS, opened.components(), strict=True):
        folder = path / part.folder
        folder.mkdir()
        head = {"architectures": [part.class_name]} if part is CLIP else {"_class_name": part.class_name}
        kind = {"model_type": "clip_vision_model"} if part is CLIP else {}
        write_config(folder / "config.json", {**head, **kind, **_settings(part, component, facts)})
        write_safetensors(folder / f"{part.stem}.safetensors", component.tensors, {"format": "pt"}, on_tensor)
    sigmas = {"sigma_max": facts.sigma_max, "sigma_min": facts.sigma_min}
    _write_in(path / "scheduler", "scheduler_config.json", {**SCHEDULER_CONFIG, **sigmas})
    size = opened.clip.config["image_size"]
    numbers = {
        "image_mean": facts.image_mean,
        "image_std": facts.image_std,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    _write_in(path / "feature_extractor", "preprocessor_config.json", {**IMAGE_PROCESSOR_CONFIG, **numbers})
    named = {part.folder: [part.library, part.class_name] for part in PARTS}
    own = {key: value for key, value in facts.as_dict().items() if key in OWN_FACTS}
    index = {
        "_class_name": PIPELINE,
        **named,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        INDEX_KEY: own,
    }
    write_config(path / INDEX, index)


def _settings(part: Part, component: Component, facts: ModelMetadata) -> dict[str, Any]:
    """A part's configuration without what the library that made it writes down about itself; the frames if known."""
    drop = ("transformers_version", "dtype", "torch_dtype", "architectures", "model_type", "num_frames")
    plain = {key: value for key, value in component.config.items() if not key.startswith("_") and key not in drop}
    frames = {} if part is not UNET or facts.num_frames is None else {"num_frames": facts.num_frames}
    return {**plain, **frames}


def _write_in(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_config(folder / name, config)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config` as JSON."""
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
