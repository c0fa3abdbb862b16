"""The header of a safetensors file: names, types and shapes of its tensors, read without torch and without the data.

Stricter and cheaper than the reference reader: pickles and other files are named by their content, and a header that
would cost seconds and gigabytes to parse is refused before it is read. Format: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MAX_HEADER_BYTES = 8_000_000  # the published SVD files have 0.3 MB
MAX_TENSORS = 20_000  # they have 2446
MAX_RANK = 8
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header. `dtype` is safetensors' name: F16, BF16, F32, ...; `size` is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, its metadata (text by text), and the file's size in bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_size: int

    def dtypes(self) -> tuple[str, ...]:
        """The types that occur, the one with most bytes first."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
        return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def read_header(path: str | Path) -> Header:
    """The header of the safetensors file at `path`.

    Raises CheckpointError when there is no such file, when it is something else (a pickle, a page of HTML, a git-lfs
    pointer), when it is cut short or damaged, and when its header is beyond what a model needs.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            start = file.read(1024)
            if start[8:9] != b"{":  # the eight bytes before it are a number, and may look like another format's
                _refuse_other_formats(path, start)
            length = int.from_bytes(start[:8], "little")
            _check_length(path, length, file_size, start)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(
            f'the checkpoint "{path}" cannot be read: {reason}. Check the path and its permissions.',
            code="checkpoint.unreadable",
        ) from error
    fields = _parse(path, text)
    metadata = fields.pop("__metadata__", {})
    if not _is_text_table(metadata):
        raise _damaged(path, "its metadata is not a table of texts")
    if len(fields) > MAX_TENSORS:
        raise _damaged(path, f"it lists {len(fields)} tensors, and no model needs more than {MAX_TENSORS}")
    tensors = _tensors(path, fields, data_size=file_size - 8 - length)
    return Header(tensors=tensors, metadata=metadata, file_size=file_size)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise CheckpointError when these first bytes of a file are those of something people have in a model's place."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise CheckpointError(
            f'"{path.name}" is a pickle (a .ckpt, .pt or .bin inside, whatever its name), and loading a pickle can run '
            "any program hidden in it; only safetensors files are read. Download the published .safetensors of the "
            "same model, or convert the file to .safetensors on a machine that you can lose.",
            code="checkpoint.pickle",
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f'"{path.name}" is a git-lfs pointer, a text of a few lines in place of the model. Fetch the model itself '
            'with "git lfs pull", or download the file from its page.',
            code="checkpoint.pointer",
        )
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(
            f'"{path.name}" is a web page, saved in place of the model: the download asked for a log-in, or met an '
            "error. Download it again, logged in to the site, or with svd-stages download.",
            code="checkpoint.web_page",
        )


def _check_length(path: Path, length: int, file_size: int, start: bytes) -> None:
    if file_size < 8 or start[8:9] not in (b"{", b""):
        raise _damaged(path, "it does not begin as a safetensors file does")
    if length > MAX_HEADER_BYTES:
        raise _damaged(path, f"it announces a header of {length} bytes, and a model's is below {MAX_HEADER_BYTES}")
    if length > file_size - 8:
        raise _truncated(path, needed=8 + length, given=file_size)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name occurs twice")
        return table

    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise _damaged(path, "its header is not a table")
    return fields


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensors(path: Path, fields: dict[str, Any], data_size: int) -> dict[str, TensorInfo]:
    """The tensors of `fields`, whose data must fill the file from first byte to last without hole or overlap."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, field in fields.items():
        tensors[name], span = _tensor(path, name, field)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged(path, f"its tensors overlap or leave a hole at byte {min(start, end)}")
        end = stop
    if end > data_size:
        header_bytes = path.stat().st_size - data_size
        raise _truncated(path, needed=header_bytes + end, given=header_bytes + data_size)
    if end < data_size:
        raise _damaged(path, f"{data_size - end} bytes follow its last tensor")
    return tensors


def _tensor(path: Path, name: str, field: Any) -> tuple[TensorInfo, tuple[int, int]]:
    shown = ascii(name[:100])
    if not isinstance(field, dict):
        raise _damaged(path, f"tensor {shown} is not described")
    dtype, shape, span = field.get("dtype"), field.get("shape"), field.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(span, list) or len(span) != 2:
        raise _damaged(path, f"tensor {shown} is not described")
    if len(shape) > MAX_RANK or not all(_is_size(number) for number in [*shape, *span]) or span[0] > span[1]:
        raise _damaged(path, f"tensor {shown} has a shape or a place that cannot be")
    size = span[1] - span[0]
    if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != size:
        raise _damaged(path, f"tensor {shown} of {dtype} and shape {shape} cannot have {size} bytes")
    return TensorInfo(dtype, tuple(shape), size), (span[0], span[1])


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f'"{path.name}" is not a safetensors file that can be used: {reason}. Download it again and compare its size '
        "and sha256 with the ones on its page.",
        code="checkpoint.damaged",
    )


def _truncated(path: Path, needed: int, given: int) -> CheckpointError:
    return CheckpointError(
        f'"{path.name}" is not complete: it needs {needed:,} bytes and has {given:,}; the download or the copy was cut '
        "short. Download it again.",
        code="checkpoint.truncated",
    )
