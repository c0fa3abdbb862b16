"""A checkpoint whose tensors are named and described as the modules want them, and not read yet.

Both forms on disk become this, and so does a checkpoint in memory: the loader and the converters see no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .lazy_tensors import Tensors
from .model_metadata import ModelMetadata


def unchanged() -> None:
    """For a checkpoint in memory: nobody else writes there."""


def same_name(name: str) -> str:
    """The name as it is: for files that use the module's names."""
    return name


@dataclass(frozen=True, eq=False)
class Component:
    """One of the three modules: what errors call it, its configuration, and its tensors under the module's names.

    `shown` gives the name that a tensor has in the file, for messages. `unmapped_keys` are the names in the file
    that belong
    to this module, by their prefix, and that no table has a place for.
    """

    title: str
    config: dict[str, Any]
    tensors: Tensors
    shown: Callable[[str], str] = same_name
    unmapped_keys: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OpenCheckpoint:
    """`name` is what messages call it. `ignored` are the names in the file that no module uses.

    `check_unchanged` raises CheckpointError when somebody changed its files since they were opened. It is called when
    they are closed, too; who writes a result calls it before the result has its name.
    """

    name: str
    facts: ModelMetadata
    unet: Component
    vae: Component
    clip: Component
    ignored: tuple[str, ...] = ()
    check_unchanged: Callable[[], None] = unchanged

    def components(self) -> tuple[Component, Component, Component]:
        """UNet, VAE, CLIP tower."""
        return self.unet, self.vae, self.clip

    def stored_dtypes(self) -> set[str]:
        """The types that the tensors have on disk, by safetensors' names."""
        return {tensor.dtype for component in self.components() for tensor in component.tensors.values()}
