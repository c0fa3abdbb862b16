"""Open checkpoints whose tensors are read on demand.

Both formats on disk and a loaded checkpoint become an `OpenCheckpoint`, with tensors under the names of the diffusers
and transformers modules. Loading and conversion work on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .model_metadata import ModelMetadata
from .safetensors_header import Header, TensorInfo, header_of
from .stable_file import ModelFile, open_model_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is not read yet.

    Attributes:
        dtype: In safetensors' spelling: F16, BF16, F32.
        read: Return the tensor. It may be a module's own: copy it before keeping it, and do not write to it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


Tensors = dict[str, LazyTensor]


@dataclass(frozen=True, eq=False)
class Component:
    """One module of a checkpoint: UNet, VAE or CLIP image encoder.

    Attributes:
        title: Name in messages.
        config: Arguments of the module's class.
        tensors: By the module's names.
        file_key: Return the name that a tensor has in the file, for messages.
        unmapped_keys: Names in the file that belong to this module by prefix, but that the key map does not have.
    """

    title: str
    config: dict[str, Any]
    tensors: Tensors
    file_key: Callable[[str], str] = lambda name: name
    unmapped_keys: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OpenCheckpoint:
    """A checkpoint that is open for reading.

    Attributes:
        name: Name in messages.
        ignored: Names in the file that no module uses.
        check_unchanged: Raise CheckpointError if a file changed since it was opened. Closing calls it. Writers call it
            before they rename their result.
    """

    name: str
    metadata: ModelMetadata
    unet: Component
    vae: Component
    clip: Component
    ignored: tuple[str, ...] = ()
    check_unchanged: Callable[[], None] = lambda: None

    def components(self) -> tuple[Component, Component, Component]:
        """Return (UNet, VAE, CLIP image encoder)."""
        return self.unet, self.vae, self.clip

    def stored_dtypes(self) -> set[str]:
        """Return the dtypes on disk, in safetensors' spelling."""
        return {tensor.dtype for component in self.components() for tensor in component.tensors.values()}


@dataclass(frozen=True, eq=False)
class OpenFiles:
    """Open safetensors files: their headers, and the tensors of all."""

    files: tuple[ModelFile, ...]
    headers: tuple[Header, ...]
    tensors: Tensors

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was modified or replaced since it was opened."""
        for file in self.files:
            file.check_unchanged()


@contextmanager
def open_tensors(paths: Iterable[Path]) -> Iterator[OpenFiles]:
    """Open safetensors files together. Their tensors can be read inside the `with`.

    Raises:
        CheckpointError: A file is invalid, two files have a tensor of one name, or, on exit, a file changed meanwhile.
    """
    tensors: Tensors = {}
    headers: list[Header] = []
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_model_file(path)) for path in paths)
        for file in files:
            header = header_of(file)
            duplicates = sorted(tensors.keys() & header.tensors.keys())
            if duplicates:
                raise CheckpointError(
                    f'tensor "{duplicates[0]}" is in "{file.name}" and in another file of its folder. Remove the files '
                    "that do not belong to this model.",
                    code="checkpoint.twice",
                )
            headers.append(header)
            for name, info in header.tensors.items():
                tensors[name] = LazyTensor(info.dtype, info.shape, _reader(file, info))
        opened = OpenFiles(files, tuple(headers), tensors)
        yield opened
        opened.check_unchanged()


def _reader(file: ModelFile, info: TensorInfo) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        import torch

        stored = torch.empty(info.size, dtype=torch.uint8)
        file.read_into(info.start, stored.numpy().data)
        return stored.view(torch_dtypes()[info.dtype]).reshape(info.shape)

    return read


def module_tensors(module: torch.nn.Module) -> Tensors:
    """Return the parameters and saved buffers of a loaded module. Raises CheckpointError for other dtypes."""
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
        tensors[name] = LazyTensor(dtype_names[tensor.dtype], tuple(tensor.shape), tensor.detach().cpu)
    return tensors


def torch_dtypes() -> dict[str, torch.dtype]:
    """Return the dtypes that weights may have: safetensors' spelling -> torch's dtype."""
    import torch

    return {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
