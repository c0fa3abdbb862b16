"""How a denoising network is to be run, as a user says it. No option changes the video."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ..errors import SettingError

CHOICES = {
    "memory": ("auto", "resident", "offload", "stream"),
    "forward_chunking": ("auto", "off"),
    "compile": ("off", "regional", "full"),
    "attention": ("auto", "sdpa"),
}


@dataclass(frozen=True)
class ModelOptions:
    """Options of one SVD_MODEL.

    memory            auto: what fits, resident: the weights stay on the device, offload: they are on the device while
                      sampling only, stream: block by block while sampling
    forward_chunking  auto: feed-forward and attention in pieces of a size that costs no time, off: all rows at once
    compile           off, regional: the pieces of the repeated blocks, full: a whole step
    attention         auto: the kernel that is quickest on the device, sdpa: the one torch chooses

    Raises SettingError for another word.
    """

    memory: str = "auto"
    forward_chunking: str = "auto"
    compile: str = "off"
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES[field.name]
            if value not in known:
                raise SettingError(f'{field.name} must be one of {", ".join(known)}, got "{value}"')


DEFAULT = ModelOptions()


def merged(before: ModelOptions, later: ModelOptions) -> ModelOptions:
    """What is not left at its default in `later`, over what was there before."""
    said = {field.name: getattr(later, field.name) for field in fields(later)}
    return replace(before, **{name: value for name, value in said.items() if value != getattr(DEFAULT, name)})
