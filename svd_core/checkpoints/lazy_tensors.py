"""Tensors by name that are read one at a time: from safetensors files, or from a module that is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .safetensors_header import Header, TensorInfo, header_of
from .stable_file import PlainFile, open_model_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is not read yet. `dtype` is safetensors' name (F16, BF16, F32).

    What `read` gives may be part of a module: copy it before keeping it, never write to it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


Tensors = dict[str, LazyTensor]


@dataclass(frozen=True, eq=False)
class OpenFiles:
    """Safetensors files that are open: each one's header, and the tensors of all."""

    files: tuple[PlainFile, ...]
    headers: tuple[Header, ...]
    tensors: Tensors

    def check_unchanged(self) -> None:
        """Raise CheckpointError when somebody changed or replaced one of them since they were opened."""
        for file in self.files:
            file.check_unchanged()


@contextmanager
def open_tensors(paths: Iterable[Path]) -> Iterator[OpenFiles]:
    """One or several safetensors files together; their tensors can be read inside the `with`.

    Raises CheckpointError when a file is not what it should be, when two files hold a tensor of one name, and on
    leaving when a file was changed meanwhile: what was read may then be of two models.
    """
    tensors: Tensors = {}
    headers: list[Header] = []
    with ExitStack() as opened:
        files = [opened.enter_context(open_model_file(path)) for path in paths]
        for file in files:
            header = header_of(file)
            twice = sorted(tensors.keys() & header.tensors.keys())
            if twice:
                raise CheckpointError(
                    f'tensor "{twice[0]}" is in "{file.name}" and in another file of its folder. Remove the files '
                    "that do not belong to this model.",
                    code="checkpoint.twice",
                )
            headers.append(header)
            for name, info in header.tensors.items():
                tensors[name] = LazyTensor(info.dtype, info.shape, _reader(file, info))
        together = OpenFiles(tuple(files), tuple(headers), tensors)
        yield together
        together.check_unchanged()


def _reader(file: PlainFile, info: TensorInfo) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        import torch

        stored = torch.empty(info.size, dtype=torch.uint8)
        file.read_into(info.start, stored.numpy().data)
        return stored.view(torch_dtypes()[info.dtype]).reshape(info.shape)

    return read


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
