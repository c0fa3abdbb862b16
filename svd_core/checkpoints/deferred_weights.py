"""Weights of the UNet that a video of one CLIP token never uses: left on the disk until something does.

Attention to a single token gives that token's value whatever is asked, so its queries, its keys and the norm before
them have no say: 50 million numbers in the published models, 101 MB in 16 bits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, printable
from .stable_file import State

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .reader import OpenCheckpoint

logger = logging.getLogger(__name__)

IDLE = re.compile(r"transformer_blocks\.\d+\.(attn2\.to_[qk]|norm2)\.(weight|bias)$")


def is_idle(name: str) -> bool:
    """Whether the tensor of that name has no say while there is one token."""
    return IDLE.search(name) is not None


def leave_out(module: nn.Module) -> tuple[str, ...]:
    """Take the idle parameters off `module`; their names. They are then no parameters of it: `None` stands there."""
    names = tuple(name for name, _ in module.named_parameters() if is_idle(name))
    for name in names:
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner)._parameters[last] = None
    return names


class DeferredWeights:
    """The parameters that were left out of a UNet, and where they are.

    path   of the checkpoint
    opens  opens it again
    dtype  what they are to be in
    names  as the module calls them
    """

    def __init__(
        self,
        path: Path,
        opens: Callable[[], AbstractContextManager[OpenCheckpoint]],
        dtype: torch.dtype,
        names: tuple[str, ...],
    ) -> None:
        self._path, self._opens, self._dtype, self._names = path, opens, dtype, names
        self._state = _state_of(path)

    def read_into(self, unet: nn.Module) -> None:
        """Give the UNet its parameters back, where its others are. Once; later calls do nothing.

        Raises CheckpointError when the checkpoint is gone or is not what it was.
        """
        import torch

        from .build_modules import read_as

        if not self._names:
            return
        if _state_of(self._path) != self._state:
            raise CheckpointError(
                f'"{printable(self._path.name)}" was changed or moved since it was loaded, and some of its weights are '
                "needed only now. Load it again.",
                code="checkpoint.changed",
            )
        logger.info("reading %d weights that a video of one CLIP token does not need", len(self._names))
        device = next(unet.parameters()).device
        with self._opens() as opened, torch.inference_mode(False), torch.no_grad():
            for name in self._names:
                owner, _, last = name.rpartition(".")
                weight = read_as(opened.unet, name, self._dtype).to(device)
                unet.get_submodule(owner)._parameters[last] = torch.nn.Parameter(weight, requires_grad=False)
        self._names = ()


def _state_of(path: Path) -> list[tuple[str, State]]:
    """The files that hold the UNet, and which they are."""
    files = sorted((path / "unet").glob("*.safetensors")) if path.is_dir() else [path]
    return [(file.name, State.of(file.stat())) for file in files if file.is_file()]
