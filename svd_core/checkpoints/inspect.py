"""What checkpoint a file or folder is, from headers and config files alone: no torch, no weights read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, printable
from .detect import WAY_OUT, Family, family_of, parts_of, require_svd
from .diffusers_format import INDEX, PARTS, PIPELINE, Part, read_config, read_facts, read_index, variants
from .model_metadata import ModelMetadata, VideoDefaults
from .safetensors_header import Header, read_header
from .sidecar import file_facts, read_provenance

PRECISION_NAMES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}


@dataclass(frozen=True)
class PartFound:
    """One part of a checkpoint: its name, the variant in a folder ("" for none), its tensors, bytes and types."""

    name: str
    variant: str
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What is at `path`.

    kind        "one file" or "diffusers folder"
    family      the family of models, as people call it; `Family` lists them
    usable      whether it is a whole SVD, by its header; loading checks every tensor
    bytes       of the file, or of all weights in the folder
    num_frames  what it was trained for, when it says so
    notes       what the user should know, in sentences
    """

    path: Path
    kind: Literal["one file", "diffusers folder"]
    family: str
    usable: bool
    parts: tuple[PartFound, ...]
    bytes: int
    num_frames: int | None
    notes: tuple[str, ...]

    def describe(self) -> str:
        """The inspection as a few lines of text."""
        lines = [f"{printable(self.path.name)}: {self.family}, {self.kind}, {_readable(self.bytes)}"]
        for part in self.parts:
            variant = f" ({part.variant})" if part.variant else ""
            dtypes = " and ".join(part.dtypes) or "empty"
            lines.append(f"  {part.name + variant:<24} {part.tensors:>5} tensors  {dtypes}  {_readable(part.bytes)}")
        if self.num_frames is not None:
            lines.append(f"  trained for {self.num_frames} frames")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The inspection as plain values, for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "family": self.family,
            "usable": self.usable,
            "parts": [
                {
                    "name": part.name,
                    "variant": part.variant,
                    "tensors": part.tensors,
                    "bytes": part.bytes,
                    "dtypes": list(part.dtypes),
                }
                for part in self.parts
            ],
            "bytes": self.bytes,
            "num_frames": self.num_frames,
            "notes": list(self.notes),
        }


def inspect(path: str | Path) -> Inspection:
    """What checkpoint is at `path`, a file or a folder.

    Raises CheckpointError when there is nothing there, when the file is no safetensors file (a pickle is said to be
    one) or is damaged, and when the folder is no diffusers folder.
    """
    path = Path(path)
    return _inspect_folder(path) if path.is_dir() else _inspect_file(path)


def read_defaults(path: str | Path) -> VideoDefaults:
    """What the checkpoint at `path` was trained for: frames, size, guidance. As loading it would give.

    Raises CheckpointError when it is no SVD checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_facts(path).defaults()
    header = read_header(path)
    require_svd(printable(path.name), header.tensors)
    return file_facts(path, header).defaults()


def _folder_facts(path: Path) -> ModelMetadata:
    index = read_index(path)
    unet, vae = (read_config(path / name / "config.json") for name in ("unet", "vae"))
    return read_facts(path, index, unet, vae)


def _inspect_file(path: Path) -> Inspection:
    header = read_header(path)
    family = family_of(header.tensors)
    facts = file_facts(path, header)
    notes: list[str] = []
    usable = False
    try:
        require_svd(printable(path.name), header.tensors)
        usable = True
    except CheckpointError as error:
        notes.append(str(error))
    if usable:
        notes += _notes_on_frames(facts)
        known = read_provenance(path, header.file_size)
        if known is not None:
            notes.append(f'svd-stages download fetched it as "{known.name}", and wrote so in a small file beside it.')
    return Inspection(
        path=path,
        kind="one file",
        family=family.value,
        usable=usable,
        parts=tuple(_part(name, "", header, names) for name, names in parts_of(header.tensors).items()),
        bytes=header.file_size,
        num_frames=facts.num_frames,
        notes=tuple(notes),
    )


def _notes_on_frames(facts: ModelMetadata) -> list[str]:
    if facts.num_frames is not None:
        return []
    return [
        "It does not say for how many frames it was trained (svd: 14, svd_xt: 25, the same shapes); "
        f"{facts.defaults().num_frames} are taken unless you say otherwise."
    ]


def _part(name: str, variant: str, header: Header, names: Iterable[str]) -> PartFound:
    infos = [header.tensors[each] for each in names]
    found = Header({str(number): info for number, info in enumerate(infos)}, {}, 0)
    dtypes = tuple(PRECISION_NAMES.get(dtype, dtype) for dtype in found.dtypes())
    return PartFound(name, variant, len(infos), sum(info.size for info in infos), dtypes)


def _inspect_folder(path: Path) -> Inspection:
    index = read_config(path / INDEX)
    if index.get("_class_name") != PIPELINE:
        return Inspection(
            path=path,
            kind="diffusers folder",
            family=printable(index.get("_class_name", Family.UNKNOWN.value), 100),
            usable=False,
            parts=(),
            bytes=0,
            num_frames=None,
            notes=(f"It is another pipeline's folder: {WAY_OUT[Family.UNKNOWN]}.",),
        )
    notes: list[str] = []
    facts = None
    try:
        facts = _folder_facts(path)
        notes += _notes_on_frames(facts)
    except CheckpointError as error:
        notes.append(str(error))
    parts: list[PartFound] = []
    for part in PARTS:
        parts += _folder_part(path, part, notes)
    whole = {part.name for part in parts} == {part.title for part in PARTS}
    return Inspection(
        path=path,
        kind="diffusers folder",
        family=Family.SVD.value,
        usable=whole and facts is not None,
        parts=tuple(parts),
        bytes=sum(part.bytes for part in parts),
        num_frames=None if facts is None else facts.num_frames,
        notes=tuple(notes),
    )


def _folder_part(path: Path, part: Part, notes: list[str]) -> list[PartFound]:
    """What there is of `part`, a line a variant. Adds to `notes` what is missing or damaged."""
    found: list[PartFound] = []
    try:
        sets = variants(path / part.folder, part)
        for variant, files in sorted(sets.items()):
            headers = [read_header(file) for file in files]
            tensors = {name: info for header in headers for name, info in header.tensors.items()}
            found.append(_part(part.title, variant, Header(tensors, {}, 0), tensors))
    except CheckpointError as error:
        notes.append(str(error))
        return found
    if not found:
        notes.append(f"The {part.title} has no safetensors file in {part.folder}/.")
    return found


def _readable(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"
