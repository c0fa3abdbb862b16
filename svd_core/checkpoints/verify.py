"""Reading every number of a checkpoint, of any family, to see that all are finite.

Loading looks at the numbers that it loads, always, and stops at the first tensor; this takes a few megabytes of memory
for a file of any size, and names all that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, printable
from ..utils.nan_checks import is_finite
from .build_modules import listed
from .diffusers_format import PARTS, read_index, variants
from .progress import Advance, Progress, no_progress
from .safetensors_header import DTYPE_BYTES, Header, TensorInfo, header_of
from .stable_file import PlainFile, open_model_file

AT_ONCE = 8 * 2**20
"""Bytes that are read and looked at together."""
FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""safetensors' names of the types that have NaN or infinity -> torch's. Others have nothing to look for."""


@dataclass(frozen=True)
class Verified:
    """What was read: files, tensors of numbers that could be other than finite, and their bytes."""

    files: int
    tensors: int
    bytes: int

    def describe(self) -> str:
        """A sentence."""
        return f"Every number of {self.tensors} tensors in {self.files} files was read, and all are finite."


def verify(path: str | Path, progress: Progress = no_progress) -> Verified:
    """Read every number of the file or diffusers folder at `path`; of a folder all variants of the three parts.

    Raises CheckpointError when some are NaN or infinite, with the tensors they are in, when a file is damaged, and when
    one is changed while it is read.
    """
    path = Path(path)
    files = list(_files_of(path)) if path.is_dir() else [path]
    wrong: list[str] = []
    read: list[TensorInfo] = []
    for file in files:
        with open_model_file(file) as opened:
            header = header_of(opened)
            floats = [info for info in header.tensors.values() if info.dtype in FLOATS]
            found = _not_finite(opened, header, progress)
            wrong += [f"{file.parent.name}/{name}" if path.is_dir() else name for name in found]
            read += floats
            opened.check_unchanged()
    if wrong:
        raise CheckpointError(
            f'{len(wrong)} of {len(read)} tensors of "{printable(path.name)}" hold numbers that are not finite (NaN or '
            f"infinity): {listed(wrong)}. The checkpoint is damaged, or its training failed; download it again, or the "
            "published one.",
            code="checkpoint.not_finite",
        )
    return Verified(len(files), len(read), sum(info.size for info in read))


def _files_of(folder: Path) -> Iterator[Path]:
    read_index(folder)
    for part in PARTS:
        for files in variants(folder / part.folder, part).values():
            yield from files


def _not_finite(file: PlainFile, header: Header, progress: Progress) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    floats = {name: info for name, info in header.tensors.items() if info.dtype in FLOATS}
    wrong: list[str] = []
    done = 0
    with progress(f"reading {file.name}", sum(info.size for info in floats.values()), "byte") as advance:
        for name, info in sorted(floats.items(), key=lambda item: item[1].start):
            if not _is_finite(file, info, advance, done):
                wrong.append(name)
            done += info.size
            advance(done)
    return wrong


def _is_finite(file: PlainFile, info: TensorInfo, advance: Advance, before: int) -> bool:
    import torch

    dtype = getattr(torch, FLOATS[info.dtype])
    for start in range(0, info.size, AT_ONCE):
        block = torch.empty(min(AT_ONCE, info.size - start), dtype=torch.uint8)
        file.read_into(info.start + start, block.numpy().data)
        numbers = block.view(dtype)
        if not is_finite(numbers.float() if DTYPE_BYTES[info.dtype] == 1 else numbers):
            return False
        advance(before + start)
    return True
