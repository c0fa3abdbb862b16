"""Writing safetensors one tensor at a time, and putting a finished file or folder in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError
from ..utils.atomic_files import unfinished_folder
from .lazy_tensors import LazyTensor, Tensors, torch_dtypes
from .safetensors_header import DTYPE_BYTES

ALIGNMENT = 8
"""The header is padded to it with spaces, as the reference writer does."""


def write_safetensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], on_tensor: Callable[[], None] = lambda: None
) -> None:
    """Write `tensors` to `path` in safetensors' format, with one of them in memory at a time.

    Wider types come first, so that every tensor is aligned. `on_tensor` is called after each. Raises OSError when the
    disk does not take it; `in_place` makes it an error of ours, with the name that the user gave.
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
        start, end = end, end + _size(tensor)
        fields[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _size(tensor: LazyTensor) -> int:
    count = 1
    for length in tensor.shape:
        count *= length
    return count * DTYPE_BYTES[tensor.dtype]


def _write_tensor(file, tensor: LazyTensor) -> None:
    import torch

    value = tensor.read().to(torch_dtypes()[tensor.dtype]).contiguous()
    assert tuple(value.shape) == tensor.shape, (value.shape, tensor.shape)
    file.write(value.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def in_place(destination: Path, folder: bool = False) -> Iterator[Path]:
    """A path beside `destination` to write a file or a folder at; it becomes `destination` when the `with` is done.

    Nothing is left behind when the `with` is left by an exception. Raises OutputError when something is at
    `destination` already, or when it cannot be written there.
    """
    refuse_existing(destination)
    try:
        with unfinished_folder(destination.parent) as work:
            inside = work / destination.name
            if folder:
                inside.mkdir()
            yield inside
            refuse_existing(destination)
            os.rename(inside, destination)
    except OSError as error:
        raise _cannot_write(destination, error) from error


def refuse_existing(destination: Path) -> None:
    """Raise OutputError when there is something at `destination`."""
    if destination.exists() or destination.is_symlink():
        raise OutputError(
            f'"{destination}" is there already, and is not written over. Choose another name, or remove it first.',
            code="output.exists",
        )


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f'"{path}" cannot be written: {error.strerror or error}. Choose a folder that can be written to, on a disk '
        "with enough space.",
        code="output.unwritable",
    )
