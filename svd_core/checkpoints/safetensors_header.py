"""Read safetensors headers: names, dtypes and shapes of tensors, without torch and without the data.

Stricter and cheaper than the reference reader: other formats are recognized by content, and a header that would cost
seconds and gigabytes to parse is refused before it is read. Format: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .safe_json import integer, parse_table
from .stable_file import ModelFile, open_model_file

MAX_HEADER_BYTES = 4_000_000  # the published SVD files have 0.3 MB
MAX_TENSORS = 10_000  # they have 2446
MAX_RANK = 8
MAX_VALUES = 16 * MAX_TENSORS  # JSON values in a header: a tensor of rank 8 has 14 that are not strings
SIZE = integer(0, 2**63 - 1)
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header.

    Attributes:
        dtype: In safetensors' spelling: F16, BF16, F32, ...
        size: Size of the data in bytes.
        start: Offset of the data from the start of the file, in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int = 0


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, its metadata, and its size in bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_size: int


def dtypes_of(tensors: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Return the dtypes that occur, the one with most bytes first."""
    sizes: dict[str, int] = {}
    for info in tensors:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def read_header(path: str | Path) -> Header:
    """Read the header of the safetensors file at `path`.

    Raises:
        CheckpointError: The file is missing, in another format (pickle, HTML, git-lfs pointer), truncated or damaged,
            or its header exceeds the limits of this module.
    """
    with open_model_file(Path(path)) as file:
        return header_of(file)


def header_of(file: ModelFile) -> Header:
    """Read the header of an open file. See `read_header`."""
    file_size = file.state.size
    start = file.read(1024)
    if start[8:9] != b"{":  # the first eight bytes are the header's length and can equal another format's signature
        _refuse_other_formats(file.name, start)
    length = int.from_bytes(start[:8], "little")
    _check_length(file.name, length, file_size, start)
    try:
        fields = parse_table(file.read(8 + length)[8:], MAX_VALUES)
    except ValueError as error:
        raise _damaged(file.name, f"its header cannot be read ({error})") from error
    metadata = fields.pop("__metadata__", None)
    if metadata is None:  # safetensors' own reader treats null as absent
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged(file.name, "its metadata is not a table of strings")
    if len(fields) > MAX_TENSORS:
        raise _damaged(file.name, f"it lists {len(fields)} tensors, and a model has at most {MAX_TENSORS}")
    tensors = {name: _tensor(file.name, name, field, data_start=8 + length) for name, field in fields.items()}
    _check_layout(file.name, tensors, data_start=8 + length, file_size=file_size)
    return Header(tensors=tensors, metadata=metadata, file_size=file_size)


def _refuse_other_formats(file: str, start: bytes) -> None:
    """Raise CheckpointError if a file's first bytes are those of a pickle, a git-lfs pointer or a web page."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise CheckpointError(
            f'"{file}" is a pickle (a .ckpt, .pt or .bin by content), which can run any program hidden in it. '
            "Use the .safetensors file of the same model.",
            code="checkpoint.pickle",
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f'"{file}" is a git-lfs pointer, a few lines of text in place of the model. Fetch the model itself '
            'with "git lfs pull", or download the file from its page.',
            code="checkpoint.pointer",
        )
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(
            f'"{file}" is a web page, saved in place of the model: the download required a login, or failed. '
            "Download it again, logged in to the site, or with svd-stages download.",
            code="checkpoint.web_page",
        )


def _check_length(file: str, length: int, file_size: int, start: bytes) -> None:
    if file_size < 8 or start[8:9] not in (b"{", b""):
        raise _damaged(file, "it does not begin as a safetensors file does")
    if length > MAX_HEADER_BYTES:
        raise _damaged(file, f"it announces a header of {length} bytes, and a model's is below {MAX_HEADER_BYTES}")
    if length > file_size - 8:
        raise _truncated(file, needed=8 + length, actual=file_size)


def _check_layout(file: str, tensors: dict[str, TensorInfo], data_start: int, file_size: int) -> None:
    """Raise CheckpointError unless the data fills the file to its last byte, without hole or overlap."""
    end = data_start
    for start, size in sorted((info.start, info.size) for info in tensors.values()):
        if start != end:
            raise _damaged(file, f"its tensors overlap or leave a hole at byte {min(start, end) - data_start}")
        end = start + size
    if end > file_size:
        raise _truncated(file, needed=end, actual=file_size)
    if end < file_size:
        raise _damaged(file, f"{file_size - end} bytes follow its last tensor")


def _tensor(file: str, name: str, field: Any, data_start: int) -> TensorInfo:
    label = ascii(name[:100])
    if not isinstance(field, dict):
        raise _damaged(file, f"tensor {label} has no description")
    dtype, shape, span = field.get("dtype"), field.get("shape"), field.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(span, list) or len(span) != 2:
        raise _damaged(file, f"tensor {label} has no description")
    if len(shape) > MAX_RANK or not all(map(SIZE.accepts, (*shape, *span))) or span[0] > span[1]:
        raise _damaged(file, f"tensor {label} has an impossible shape or offset")
    size = span[1] - span[0]
    if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != size:
        raise _damaged(file, f"tensor {label} of {dtype} and shape {shape} cannot have {size} bytes")
    return TensorInfo(dtype, tuple(shape), size, data_start + span[0])


def _damaged(file: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f'"{file}" is not a usable safetensors file: {reason}. Download it again, and compare its '
        "sha256 with that on its page.",
        code="checkpoint.damaged",
    )


def _truncated(file: str, needed: int, actual: int) -> CheckpointError:
    return CheckpointError(
        f'"{file}" is not complete: it needs {needed:,} bytes and has {actual:,}. The download or the copy was '
        "interrupted. Download it again.",
        code="checkpoint.truncated",
    )
