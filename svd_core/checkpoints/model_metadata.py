"""Model metadata that tensor shapes cannot show: frames, size, guidance, noise range, architecture settings.

Sources, in this order:
    single file   JSON under the safetensors metadata key `svd_stages`, written by this project
    sidecar       `<file>.svd-stages.json`, written by `svd-stages download`: published files have no metadata
    folder        diffusers' config files, and `_svd_stages` in model_index.json
    default       the values of the published models, in this file

Needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, printable
from .safe_json import BOOLEAN, Rule, integer, list_of, number, one_of, parse_table
from .safetensors_header import Header
from .stable_file import open_model_file

METADATA_KEY = "svd_stages"
INDEX_KEY = "_svd_stages"
SIDECAR_SUFFIX = ".svd-stages.json"
SIDECAR_KEYS = ("num_frames", "min_guidance", "max_guidance")
MAX_SIDECAR_BYTES = 100_000
MAX_VALUES = 1000  # JSON values in the metadata of one model; about forty are used
MAX_FRAMES = 4096
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/clip-vit, preprocessor_config.json
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GUIDANCE = {14: (1.0, 2.5), 25: (1.5, 3.0)}
"""Frames -> (min, max) guidance: generative-models scripts/sampling/configs/svd.yaml and svd_xt.yaml."""
PRESET_NAMES = ("reference", "balanced", "fast")
"""Names of samplers with their schedules, see `pipeline.PRESETS`."""


@dataclass(frozen=True)
class VideoDefaults:
    """Video settings that suit a checkpoint, used when the user gives none. Sizes in pixels."""

    num_frames: int = 25
    width: int = 1024
    height: int = 576
    min_guidance: float = 1.0
    max_guidance: float = 3.0
    preset: str = "reference"


def _checked(rule: Rule, default: Any) -> Any:
    """Declare a field with the rule that untrusted values must meet."""
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of one checkpoint. Defaults are common to all published models.

    The depths (`unet_attention` to `clip_layers`) are for single files only: without them, a file that lost its last
    layers would load as a smaller model. A diffusers folder has them in its config files.

    Attributes:
        num_frames: Frames it was trained for. None if unknown.
        width, height: Size it was trained for, in pixels.
        min_guidance, max_guidance: None for the published values of `num_frames`.
        preset: One of PRESET_NAMES. None for "reference".
        clip_heads: Attention heads of the CLIP image encoder. None if heads are 80 wide, as in ViT-H.
        unet_head_width: Channels of one attention head of the UNet.
        unet_attention: Per UNet level, from the image down: True if it has attention.
        unet_layers: ResNet layers per UNet level.
        unet_transformers: Transformer layers per UNet attention.
        vae_levels: Levels of the VAE.
        clip_layers: Layers of the CLIP image encoder.
        scaling_factor: scaled latents = unscaled latents * scaling_factor.
        sigma_min, sigma_max: Noise range it was trained for.
        force_upcast: True if the VAE's encoder must compute in float32.
        image_mean, image_std: Normalization of the CLIP input per channel.
    """

    num_frames: int | None = _checked(integer(1, MAX_FRAMES), None)
    width: int = _checked(integer(8, 16384, step=8), 1024)
    height: int = _checked(integer(8, 16384, step=8), 576)
    min_guidance: float | None = _checked(number(0, 100), None)
    max_guidance: float | None = _checked(number(0, 100), None)
    preset: str | None = _checked(one_of(*PRESET_NAMES), None)
    clip_heads: int | None = _checked(integer(1, 1024), None)
    unet_head_width: int = _checked(integer(1, 1024), 64)
    unet_attention: tuple[bool, ...] = _checked(list_of(BOOLEAN, 8), (True, True, True, False))  # SVD unet/config.json
    unet_layers: int = _checked(integer(1, 8), 2)
    unet_transformers: int = _checked(integer(1, 16), 1)
    vae_levels: int = _checked(integer(1, 8), 4)  # SVD vae/config.json
    clip_layers: int = _checked(integer(1, 64), 32)  # SVD image_encoder/config.json
    scaling_factor: float = _checked(number(1e-6, 1e6), 0.18215)  # SVD vae/config.json
    sigma_min: float = _checked(number(1e-9, 1e6), 0.002)  # SVD scheduler/scheduler_config.json
    sigma_max: float = _checked(number(1e-9, 1e6), 700.0)
    force_upcast: bool = _checked(BOOLEAN, True)  # SVD vae/config.json
    image_mean: tuple[float, float, float] = _checked(list_of(number(-10, 10), most=3, least=3), CLIP_MEAN)
    image_std: tuple[float, float, float] = _checked(list_of(number(1e-6, 10), most=3, least=3), CLIP_STD)

    def defaults(self) -> VideoDefaults:
        """Return the video settings to use when the user gives none. Unknown frames count as SVD-XT's 25."""
        frames = VideoDefaults.num_frames if self.num_frames is None else self.num_frames
        low, high = GUIDANCE.get(frames, (VideoDefaults.min_guidance, VideoDefaults.max_guidance))
        return VideoDefaults(
            num_frames=frames,
            width=self.width,
            height=self.height,
            min_guidance=low if self.min_guidance is None else self.min_guidance,
            max_guidance=high if self.max_guidance is None else self.max_guidance,
            preset=VideoDefaults.preset if self.preset is None else self.preset,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the known values, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def to_json(self) -> str:
        """Return the known values as the JSON text for the metadata key `svd_stages`."""
        return json.dumps(self.as_dict(), sort_keys=True)


_RULES: dict[str, Rule] = {field.name: field.metadata["rule"] for field in fields(ModelMetadata)}


def metadata_from_dict(name: str, values: Any) -> ModelMetadata:
    """Validate the decoded JSON object `values` of file `name`. Unknown keys are ignored, so that newer files load.

    Raises:
        CheckpointError: A value has the wrong type or is out of range.
    """
    if not isinstance(values, dict):
        raise _invalid(name, "the table", "must be a JSON object", values)
    known = {key: value for key, value in values.items() if key in _RULES and value is not None}
    for key, value in known.items():
        if not _RULES[key].accepts(value):
            raise _invalid(name, key, _RULES[key].need, value)
    for key, convert in (("image_mean", float), ("image_std", float), ("unet_attention", bool)):
        if key in known:
            known[key] = tuple(map(convert, known[key]))
    metadata = ModelMetadata(**known)
    if metadata.sigma_min >= metadata.sigma_max:
        raise _invalid(name, "sigma_min", f"must be below sigma_max, {metadata.sigma_max}", metadata.sigma_min)
    return metadata


def metadata_from_header(name: str, header: Header) -> ModelMetadata:
    """Read the metadata in the safetensors header of file `name`. Missing values are those of the published models.

    Raises:
        CheckpointError: The metadata is not JSON, or a value is out of range.
    """
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return ModelMetadata()
    try:
        values = parse_table(text.encode(), MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(
            f'the metadata "{METADATA_KEY}" of {name} must be a JSON object, but cannot be read: {error}. Write the '
            "file again with svd-stages convert-checkpoint.",
            code="checkpoint.facts",
        ) from error
    return metadata_from_dict(name, values)


def _invalid(name: str, key: str, need: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f'"{key}" in the metadata of {name} {need}, got {ascii(value)[:100]}. Correct it in the file\'s '
        f'"{METADATA_KEY}" metadata, or in the folder\'s config files.',
        code="checkpoint.facts",
    )


@dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar: the catalog name of the file beside it, and the metadata of that name."""

    name: str
    metadata: ModelMetadata


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar of the file at `path`."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def write_sidecar(path: Path, name: str, sha256: str | None, defaults: VideoDefaults) -> None:
    """Write a sidecar that names the file at `path` as the catalog's checkpoint `name`. Raises OSError.

    `sha256` is for the user: reading compares the size only.
    """
    table = {
        "name": name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "facts": {key: getattr(defaults, key) for key in SIDECAR_KEYS},
    }
    sidecar_path(path).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def read_sidecar(path: Path, size: int) -> Sidecar | None:
    """Read the sidecar of the file at `path`, which has `size` bytes.

    Returns:
        None if there is no sidecar, or one for a file of another size, which is not the downloaded file.

    Raises:
        CheckpointError: The sidecar is damaged.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return None
    try:
        with open_model_file(sidecar) as file:
            table = parse_table(file.read(MAX_SIDECAR_BYTES), MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(
            f'"{printable(sidecar)}" must describe the file that it is named after, but cannot be read: {error}. '
            "Remove it; svd-stages download writes it again.",
            code="checkpoint.facts",
        ) from error
    name, values = table.get("name"), table.get("facts")
    if table.get("bytes") != size or not isinstance(name, str):
        return None
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key in SIDECAR_KEYS}
    return Sidecar(name, metadata_from_dict(printable(sidecar.name), values))


def read_file_metadata(path: Path, header: Header) -> ModelMetadata:
    """Read the metadata of the single file at `path`: its header's, completed by its sidecar if frames are unknown.

    Raises:
        CheckpointError: Either is damaged or out of range.
    """
    metadata = metadata_from_header(printable(path.name), header)
    sidecar = read_sidecar(path, header.file_size) if metadata.num_frames is None else None
    if sidecar is None:
        return metadata
    missing = {key: getattr(sidecar.metadata, key) for key in SIDECAR_KEYS if getattr(metadata, key) is None}
    return replace(metadata, **missing)
