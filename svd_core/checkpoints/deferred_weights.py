"""UNet weights that a video with one CLIP token never uses: left on disk until they are needed.

Attention to a single token returns that token's value whatever the query is. Thus its queries, its keys and the norm
before them have no effect: 50 million numbers in the published models, 101 MB in 16 bits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, printable
from .stable_file import FileState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .reader import OpenCheckpoint

logger = logging.getLogger(__name__)

DEFERRABLE = re.compile(r"transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.(weight|bias)$")


def is_deferrable(name: str) -> bool:
    """Return True if the parameter has no effect while there is one CLIP token."""
    return DEFERRABLE.search(name) is not None


def remove_deferrable(module: nn.Module) -> tuple[str, ...]:
    """Replace the deferrable parameters of `module` by None and return their names."""
    names = tuple(name for name, _ in module.named_parameters() if is_deferrable(name))
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._parameters[attribute] = None
    return names


@dataclass(eq=False)
class DeferredWeights:
    """Parameters that were left on disk, with all that is needed to read them.

    Attributes:
        path: The checkpoint.
        reopen: Opens the checkpoint again.
        dtype: The dtype to read them in.
        names: Their names in the module. Empty when they have been read.
    """

    path: Path
    reopen: Callable[[], AbstractContextManager[OpenCheckpoint]]
    dtype: torch.dtype
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self._states = _file_states(self.path)

    def read_into(self, unet: nn.Module) -> None:
        """Read the parameters into `unet`, on the device of its other parameters. Later calls do nothing.

        Raises:
            CheckpointError: The checkpoint was removed or changed.
        """
        import torch

        from .build_modules import read_as

        if not self.names:
            return
        if _file_states(self.path) != self._states:
            raise CheckpointError(
                f'"{printable(self.path.name)}" was changed or moved since it was loaded, and some of its weights are '
                "needed only now. Load it again.",
                code="checkpoint.changed",
            )
        logger.info("reading %d weights that a video with one CLIP token does not need", len(self.names))
        device = next(unet.parameters()).device
        with self.reopen() as opened, torch.inference_mode(False), torch.no_grad():
            for name in self.names:
                owner, _, attribute = name.rpartition(".")
                weight = read_as(opened.unet, name, self.dtype).to(device)
                unet.get_submodule(owner)._parameters[attribute] = torch.nn.Parameter(weight, requires_grad=False)
        self.names = ()


def _file_states(path: Path) -> list[tuple[str, FileState]]:
    """Return the names and states of the files that hold the UNet."""
    files = sorted((path / "unet").glob("*.safetensors")) if path.is_dir() else [path]
    return [(file.name, FileState.of(file.stat())) for file in files if file.is_file()]
