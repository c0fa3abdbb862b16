"""The options of running a network, and the places of activations. None changes the video."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from ..errors import SettingError

Activations = Literal["offload", "recompute", "keep"]
"""Activations of a decoder that streams. offload: on the CPU between layers; recompute: on the device; keep: there, and
the largest hidden ones as well, which are computed twice otherwise. The bits are the same."""

ChannelsLast = Literal["auto", "on", "off"]
"""Memory format of activations and convolutions. auto: channels-last on CPUs, and on GPUs where Triton's group norm
works; the format that PyTorch's group norm returns on others."""

CHOICES = {
    "memory": ("auto", "resident", "offload", "stream"),
    "forward_chunking": ("auto", "off"),
    "compile": ("off", "regional", "full"),
    "attention": ("auto", "sdpa"),
    "channels_last": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class ModelOptions:
    """Options of one SVD_MODEL.

    Attributes:
        memory: "resident": weights stay on the device. "offload": they are there only while sampling. "stream": they
            are copied block by block while sampling. "auto": whatever fits.
        forward_chunking: "auto": feed-forward and attention in chunks of rows that cost no time. "off": all rows.
        compile: "off", "regional" (the repeated blocks) or "full" (the whole step).
        attention: "auto": the fastest kernel of the device. "sdpa": torch's choice.
        channels_last: "on", "off" or "auto": the memory format that is fast on the device.

    Raises:
        SettingError: An option has another value.
    """

    memory: str = "auto"
    forward_chunking: str = "auto"
    compile: str = "off"
    attention: str = "auto"
    channels_last: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), CHOICES[field.name]
            if value not in choices:
                raise SettingError(f'`{field.name}` must be one of {", ".join(choices)}, got "{value}"')


DEFAULT = ModelOptions()


def merged(base: ModelOptions, overrides: ModelOptions) -> ModelOptions:
    """Return `base` with the options of `overrides` that are not at their default."""
    values = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
    return replace(base, **{name: value for name, value in values.items() if value != getattr(DEFAULT, name)})
