"""Write safetensors files tensor by tensor, and rename complete files and folders to their final name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError
from ..utils.atomic_files import unfinished_folder
from .reader import LazyTensor, Tensors, torch_dtypes
from .safetensors_header import DTYPE_BYTES

ALIGNMENT = 8  # the reference writer pads the header to this with spaces


def write_safetensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], on_tensor: Callable[[], None] = lambda: None
) -> None:
    """Write `tensors` to `path` in the safetensors format, with one of them in memory at a time.

    Wider dtypes come first, so that every tensor is aligned. `on_tensor` is called after each tensor. Raises OSError;
    `atomic_output` converts it to an OutputError with the user's path.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-DTYPE_BYTES[item[1].dtype], item[0]))
    header = _header(ordered, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in ordered:
            _write_tensor(file, tensor)
            on_tensor()
        file.flush()
        os.fsync(file.fileno())


def _header(ordered: list[tuple[str, LazyTensor]], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
        fields[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _write_tensor(file, tensor: LazyTensor) -> None:
    import torch

    value = tensor.read().to(torch_dtypes()[tensor.dtype]).contiguous()
    assert tuple(value.shape) == tensor.shape, (value.shape, tensor.shape)
    file.write(value.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def atomic_output(destination: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, and rename it to `destination` at the end of the `with`.

    An exception inside the `with` leaves no files.

    Raises:
        OutputError: `destination` exists, or cannot be written.
    """
    refuse_existing(destination)
    try:
        with unfinished_folder(destination.parent) as parent:
            temporary = parent / destination.name
            if folder:
                temporary.mkdir()
            yield temporary
            refuse_existing(destination)
            os.rename(temporary, destination)
    except OSError as error:
        raise OutputError(
            f'"{destination}" cannot be written: {error.strerror or error}. Choose a folder that can be written to, on '
            "a disk with enough space.",
            code="output.unwritable",
        ) from error


def refuse_existing(destination: Path) -> None:
    """Raise OutputError if `destination` exists."""
    if destination.exists() or destination.is_symlink():
        raise OutputError(
            f'"{destination}" exists and is not overwritten. Choose another name, or remove it first.',
            code="output.exists",
        )
