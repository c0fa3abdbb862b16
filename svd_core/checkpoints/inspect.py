"""Inspect a checkpoint: its headers and config files, without torch and weights, or with `verify` every number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, counted, printable
from ..utils.nan_checks import is_finite
from ..utils.progress import Advance, Progress, no_progress
from .build_modules import list_names
from .detect import PUBLISHED, Family, detect_family, group_by_component, require_svd
from .diffusers_format import (
    COMPONENTS,
    INDEX,
    PIPELINE,
    FolderComponent,
    read_config,
    read_folder_metadata,
    read_index,
    variants,
)
from .model_metadata import ModelMetadata, VideoDefaults, read_file_metadata, read_sidecar
from .safetensors_header import DTYPE_BYTES, TensorInfo, dtypes_of, header_of, read_header
from .stable_file import ModelFile, open_model_file

PRECISION_NAMES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
FLOAT_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Dtypes that have NaN or infinity: safetensors' spelling -> torch's."""
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ComponentSummary:
    """One component of a checkpoint.

    Attributes:
        variant: Weight variant in a folder, "" for none.
        tensors: Number of tensors.
        dtypes: fp16, fp32, ..., the one with most bytes first.
    """

    name: str
    variant: str
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Summary of the checkpoint at `path`.

    Attributes:
        family: A value of `Family`, or the pipeline class of another diffusers folder.
        usable: True for a complete SVD, as far as headers show. Loading checks every tensor.
        bytes: Size of the file, or of all weights in the folder.
        num_frames: Frames it was trained for. None if unknown.
        notes: Sentences for the user.
    """

    path: Path
    kind: Literal["one file", "diffusers folder"]
    family: str
    usable: bool
    parts: tuple[ComponentSummary, ...] = ()
    bytes: int = 0
    num_frames: int | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the inspection as lines of text."""
        lines = [f"{printable(self.path.name)}: {self.family}, {self.kind}, {_format_size(self.bytes)}"]
        for part in self.parts:
            name = part.name + (f" ({part.variant})" if part.variant else "")
            dtypes = " and ".join(part.dtypes) or "empty"
            lines.append(f"  {name:<24} {part.tensors:>5} tensors  {dtypes}  {_format_size(part.bytes)}")
        if self.num_frames is not None:
            lines.append(f"  trained for {counted(self.num_frames, 'frame')}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """Return the inspection as values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def inspect(path: str | Path) -> Inspection:
    """Inspect the file or diffusers folder at `path`.

    Raises:
        CheckpointError: The path is missing, the file is not a valid safetensors file, or the folder is not a diffusers
            folder.
    """
    path = Path(path)
    return _inspect_folder(path) if path.is_dir() else _inspect_file(path)


def read_defaults(path: str | Path) -> VideoDefaults:
    """Read the video settings that the checkpoint at `path` was trained for, as loading would return them.

    Raises:
        CheckpointError: It is not an SVD checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder_metadata(path).defaults()
    header = read_header(path)
    require_svd(printable(path.name), header.tensors)
    return read_file_metadata(path, header).defaults()


def _inspect_file(path: Path) -> Inspection:
    header = read_header(path)
    metadata = read_file_metadata(path, header)
    notes: list[str] = []
    usable = False
    try:
        require_svd(printable(path.name), header.tensors)
        usable = True
    except CheckpointError as error:
        notes.append(str(error))
    if usable:
        notes += _notes_on_frames(metadata)
        sidecar = read_sidecar(path, header.file_size)
        if sidecar is not None:
            notes.append(f'svd-stages download fetched it as "{sidecar.name}", according to its sidecar file.')
    groups = group_by_component(header.tensors)
    return Inspection(
        path=path,
        kind="one file",
        family=detect_family(header.tensors).label,
        usable=usable,
        parts=tuple(_summary(title, "", [header.tensors[name] for name in names]) for title, names in groups.items()),
        bytes=header.file_size,
        num_frames=metadata.num_frames,
        notes=tuple(notes),
    )


def _notes_on_frames(metadata: ModelMetadata) -> list[str]:
    if metadata.num_frames is not None:
        return []
    return [
        "Its metadata has no number of frames (svd: 14, svd_xt: 25, with the same shapes); the default is "
        f"{metadata.defaults().num_frames}."
    ]


def _summary(title: str, variant: str, tensors: list[TensorInfo]) -> ComponentSummary:
    dtypes = tuple(PRECISION_NAMES.get(dtype, dtype) for dtype in dtypes_of(tensors))
    return ComponentSummary(title, variant, len(tensors), sum(info.size for info in tensors), dtypes)


def _inspect_folder(path: Path) -> Inspection:
    index = read_config(path / INDEX)
    if index.get("_class_name") != PIPELINE:
        return Inspection(
            path=path,
            kind="diffusers folder",
            family=printable(index.get("_class_name", Family.UNKNOWN.label), 100),
            usable=False,
            notes=(f"It is a folder for another pipeline. {PUBLISHED}.",),
        )
    notes: list[str] = []
    metadata = None
    try:
        metadata = read_folder_metadata(path)
        notes += _notes_on_frames(metadata)
    except CheckpointError as error:
        notes.append(str(error))
    parts = [summary for part in COMPONENTS for summary in _inspect_component(path, part, notes)]
    complete = {summary.name for summary in parts} == {part.title for part in COMPONENTS}
    return Inspection(
        path=path,
        kind="diffusers folder",
        family=Family.SVD.label,
        usable=complete and metadata is not None,
        parts=tuple(parts),
        bytes=sum(summary.bytes for summary in parts),
        num_frames=None if metadata is None else metadata.num_frames,
        notes=tuple(notes),
    )


def _inspect_component(path: Path, part: FolderComponent, notes: list[str]) -> list[ComponentSummary]:
    """Summarize each variant of `part`. Appends to `notes` what is missing or damaged."""
    summaries: list[ComponentSummary] = []
    try:
        for variant, files in sorted(variants(path / part.folder, part).items()):
            tensors = {name: info for file in files for name, info in read_header(file).tensors.items()}
            summaries.append(_summary(part.title, variant, list(tensors.values())))
        if not summaries:
            notes.append(f"The {part.title} has no safetensors file in {part.folder}/.")
    except CheckpointError as error:
        notes.append(str(error))
    return summaries


def _format_size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"


@dataclass(frozen=True)
class VerifyResult:
    """Numbers of files and floating-point tensors that were read, and the tensors' bytes."""

    files: int
    tensors: int
    bytes: int

    def describe(self) -> str:
        """Return the result as a sentence."""
        return f"Every number of {self.tensors} tensors in {self.files} files was read, and all are finite."


def verify(path: str | Path, progress: Progress = no_progress) -> VerifyResult:
    """Read every number of the file, or of all variants in the diffusers folder, at `path`.

    Needs a few megabytes of memory for files of any size and family, and lists all invalid tensors. Loading checks the
    numbers too, but stops at the first invalid one.

    Raises:
        CheckpointError: A number is NaN or infinite, or a file is damaged or changed meanwhile.
    """
    path = Path(path)
    files = _weight_files(path) if path.is_dir() else [path]
    invalid: list[str] = []
    read: list[TensorInfo] = []
    for file in files:
        with open_model_file(file) as opened:
            floats = {name: info for name, info in header_of(opened).tensors.items() if info.dtype in FLOAT_DTYPES}
            names = _not_finite(opened, floats, progress)
            invalid += [f"{file.parent.name}/{name}" if path.is_dir() else name for name in names]
            read += floats.values()
            opened.check_unchanged()
    if invalid:
        raise CheckpointError(
            f'{len(invalid)} of {len(read)} tensors of "{printable(path.name)}" hold numbers that are not finite (NaN '
            f"or infinity): {list_names(invalid)}. The checkpoint is damaged, or its training failed; download it "
            "again, or the published one.",
            code="checkpoint.not_finite",
        )
    return VerifyResult(len(files), len(read), sum(info.size for info in read))


def _weight_files(folder: Path) -> list[Path]:
    read_index(folder)
    return [file for part in COMPONENTS for files in variants(folder / part.folder, part).values() for file in files]


def _not_finite(file: ModelFile, tensors: dict[str, TensorInfo], progress: Progress) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    invalid: list[str] = []
    done = 0
    with progress(f"reading {file.name}", sum(info.size for info in tensors.values()), "byte") as advance:
        for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
            if not _is_finite(file, info, advance, done):
                invalid.append(name)
            done += info.size
            advance(done)
    return invalid


def _is_finite(file: ModelFile, info: TensorInfo, advance: Advance, done: int) -> bool:
    import torch

    dtype = getattr(torch, FLOAT_DTYPES[info.dtype])
    for start in range(0, info.size, CHUNK_BYTES):
        block = torch.empty(min(CHUNK_BYTES, info.size - start), dtype=torch.uint8)
        file.read_into(info.start + start, block.numpy().data)
        numbers = block.view(dtype)
        if not is_finite(numbers.float() if DTYPE_BYTES[info.dtype] == 1 else numbers):
            return False
        advance(done + start)
    return True
