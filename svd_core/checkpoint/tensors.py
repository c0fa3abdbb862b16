"""Tensors by name that are read one at a time: from safetensors files, or from a module that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .header import read_header

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is not read yet. `dtype` is safetensors' name (F16, BF16, F32).

    What `read` gives may be a view of a file's pages: copy it before keeping it, never write to it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


Tensors = dict[str, LazyTensor]


@contextmanager
def open_tensors(paths: Iterable[Path]) -> Iterator[Tensors]:
    """The tensors of one or several safetensors files together; they can be read inside the `with`.

    Raises CheckpointError when a file is not what it should be, or when two files hold a tensor of one name.
    """
    from safetensors import SafetensorError, safe_open

    tensors: Tensors = {}
    with ExitStack() as opened:
        for path in paths:
            header = read_header(path)
            twice = sorted(tensors.keys() & header.tensors.keys())
            if twice:
                raise CheckpointError(
                    f'tensor "{twice[0]}" is in "{path.name}" and in another file of its folder. Remove the files '
                    "that do not belong to this model.",
                    code="checkpoint.twice",
                )
            try:
                file = opened.enter_context(safe_open(str(path), framework="pt", device="cpu"))
            except SafetensorError as error:
                raise CheckpointError(
                    f'"{path.name}" is not a safetensors file that can be used: {error}. Download it again.',
                    code="checkpoint.damaged",
                ) from error
            for name, info in header.tensors.items():
                tensors[name] = LazyTensor(info.dtype, info.shape, _reader(file, name))
        yield tensors


def _reader(file, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name)


def module_tensors(module: torch.nn.Module) -> Tensors:
    """The parameters and saved buffers of a module in memory."""
    names = torch_dtypes()
    dtype_names = {dtype: name for name, dtype in names.items()}
    tensors: Tensors = {}
    for name, tensor in module.state_dict().items():
        if tensor.dtype not in dtype_names:
            raise CheckpointError(
                f'"{name}" of the loaded model is {tensor.dtype}, and only {", ".join(names)} can be saved. '
                "Load the model again in one of them.",
                code="checkpoint.dtype",
            )
        tensors[name] = LazyTensor(dtype_names[tensor.dtype], tuple(tensor.shape), _holder(tensor))
    return tensors


def _holder(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor.detach().cpu()


def torch_dtypes() -> dict[str, torch.dtype]:
    """The types that weights may have: safetensors' name -> torch's dtype."""
    import torch

    return {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
