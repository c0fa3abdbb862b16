"""What a checkpoint has to say beside its tensors: frames, sizes, guidance, noise range, head counts. Needs no torch.

One-file checkpoints that this project writes keep these facts as JSON under the metadata key `svd_stages`, diffusers
folders in their config files and under `_svd_stages` in model_index.json. The published one-file checkpoints say
nothing; what they then mean is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import CheckpointError
from . import validators
from .safe_json import parse_table

METADATA_KEY = "svd_stages"
INDEX_KEY = "_svd_stages"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/clip-vit, preprocessor_config.json
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_FRAMES = 4096
MAX_VALUES = 1000
"""Texts, numbers, lists and tables in the facts of a file: there are about forty."""
GUIDANCE = {14: (1.0, 2.5), 25: (1.5, 3.0)}
"""Frames -> (min, max) guidance: generative-models scripts/sampling/configs/svd.yaml and svd_xt.yaml."""


@dataclass(frozen=True)
class VideoDefaults:
    """What a checkpoint was trained for: the values to use when the user gives none."""

    num_frames: int = 25
    width: int = 1024
    height: int = 576
    min_guidance: float = 1.0
    max_guidance: float = 3.0


@dataclass(frozen=True)
class ModelMetadata:
    """What shapes cannot tell. The defaults are what all published models have in common.

    num_frames                   how many frames it was trained for; None: not known
    width, height                what it was trained for, in pixels
    min_guidance, max_guidance   None: by the frame count, as published
    clip_heads                   attention heads of the CLIP tower; None: heads are 80 wide, as in ViT-H
    unet_head_width              width of one attention head of the UNet
    unet_attention               for each level of the UNet, from the picture down, whether it has attention
    unet_layers                  ResNet layers of each of its levels
    unet_transformers            transformer layers of each of its attentions
    vae_levels                   levels of the VAE
    clip_layers                  layers of the CLIP tower
    scaling_factor               scaled latents = unscaled latents * scaling_factor
    sigma_min, sigma_max         the noise range it was trained for
    force_upcast                 whether the VAE's encoder must compute in float32
    image_mean, image_std        what the CLIP tower's input is normalised by, per channel

    The depths (unet_attention to clip_layers) are a one-file checkpoint's: without them, a file that lost its last
    layers would be a smaller model. A folder's config files say its own.
    """

    num_frames: int | None = None
    width: int = 1024
    height: int = 576
    min_guidance: float | None = None
    max_guidance: float | None = None
    clip_heads: int | None = None
    unet_head_width: int = 64
    unet_attention: tuple[bool, ...] = (True, True, True, False)  # SVD unet/config.json
    unet_layers: int = 2
    unet_transformers: int = 1
    vae_levels: int = 4  # SVD vae/config.json
    clip_layers: int = 32  # SVD image_encoder/config.json
    scaling_factor: float = 0.18215  # SVD vae/config.json
    sigma_min: float = 0.002  # SVD scheduler/scheduler_config.json
    sigma_max: float = 700.0
    force_upcast: bool = True  # SVD vae/config.json
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    def defaults(self) -> VideoDefaults:
        """The values to use when the user gives none; SVD-XT's 25 frames when the number is not known."""
        frames = VideoDefaults.num_frames if self.num_frames is None else self.num_frames
        low, high = GUIDANCE.get(frames, (VideoDefaults.min_guidance, VideoDefaults.max_guidance))
        return VideoDefaults(
            num_frames=frames,
            width=self.width,
            height=self.height,
            min_guidance=low if self.min_guidance is None else self.min_guidance,
            max_guidance=high if self.max_guidance is None else self.max_guidance,
        )

    def as_dict(self) -> dict[str, Any]:
        """The facts that are known, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def as_text(self) -> str:
        """The facts that are known, as the JSON text that goes under the metadata key `svd_stages`."""
        return json.dumps(self.as_dict(), sort_keys=True)


def facts_from_metadata(name: str, metadata: Mapping[str, str]) -> ModelMetadata:
    """The facts in the safetensors metadata of file `name`; the published model's where it says nothing.

    Raises CheckpointError when they are not JSON, or when a value is out of its range.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return ModelMetadata()
    try:
        given = parse_table(text.encode(), MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(
            f'the metadata "{METADATA_KEY}" of {name} must be a JSON table, but cannot be read: {error}. Write the '
            "file again with svd-stages convert-checkpoint.",
            code="checkpoint.facts",
        ) from error
    return facts_from_table(name, given)


def facts_from_table(name: str, given: Any) -> ModelMetadata:
    """Facts from a decoded JSON table of `name`. Keys that are not known are left aside, for newer files.

    Raises CheckpointError when a value has another type than it needs, or is out of its range.
    """
    if not isinstance(given, dict):
        raise _wrong(name, "the table", "must be a JSON table", given)
    known = {field.name for field in fields(ModelMetadata)}
    values = {key: value for key, value in given.items() if key in known and value is not None}
    for key, value in values.items():
        ok, need = _RULES[key](value)
        if not ok:
            raise _wrong(name, key, need, value)
    for key in ("image_mean", "image_std"):
        if key in values:
            values[key] = tuple(float(number) for number in values[key])
    if "unet_attention" in values:
        values["unet_attention"] = tuple(values["unet_attention"])
    facts = ModelMetadata(**values)
    if facts.sigma_min >= facts.sigma_max:
        raise _wrong(name, "sigma_min", f"must be below sigma_max, {facts.sigma_max}", facts.sigma_min)
    return facts


def _wrong(name: str, key: str, need: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f'"{key}" in the facts of {name} {need}, and is {ascii(value)[:100]}. Correct it in the file\'s '
        f'"{METADATA_KEY}" metadata, or in the folder\'s config files.',
        code="checkpoint.facts",
    )


_RULES = {
    "num_frames": validators.whole(1, MAX_FRAMES),
    "width": validators.whole(8, 16384, step=8),
    "height": validators.whole(8, 16384, step=8),
    "min_guidance": validators.number(0, 100),
    "max_guidance": validators.number(0, 100),
    "clip_heads": validators.whole(1, 1024),
    "unet_head_width": validators.whole(1, 1024),
    "unet_attention": validators.flags(8),
    "unet_layers": validators.whole(1, 8),
    "unet_transformers": validators.whole(1, 16),
    "vae_levels": validators.whole(1, 8),
    "clip_layers": validators.whole(1, 64),
    "scaling_factor": validators.number(1e-6, 1e6),
    "sigma_min": validators.number(1e-9, 1e6),
    "sigma_max": validators.number(1e-9, 1e6),
    "force_upcast": validators.flag,
    "image_mean": validators.three(-10, 10),
    "image_std": validators.three(1e-6, 10),
}
