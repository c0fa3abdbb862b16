"""Checkpoints on disk for these tests: the tiny one in both formats, and files that are only a header."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints.convert import save_single_file
from svd_stages.svd_core.checkpoints.safetensors_header import DTYPE_BYTES
from svd_stages.svd_core.models.components import Checkpoint
from tiny import save_tiny_folder

Described = Mapping[str, tuple[str, tuple[int, ...]]]


@pytest.fixture(scope="session")
def one_file(tiny: Checkpoint, tmp_path_factory) -> Path:
    """The tiny SVD in Stability's layout. Read-only."""
    return save_single_file(tiny, tmp_path_factory.mktemp("one_file") / "tiny.safetensors")


@pytest.fixture(scope="session")
def without_frames(one_file: Path, edit_tensors, metadata_of, tmp_path_factory) -> Path:
    """The tiny SVD as one file without frames and guidance in its metadata, like the published ones. Read-only."""
    unknown = ("num_frames", "min_guidance", "max_guidance")
    metadata = {key: value for key, value in metadata_of(one_file).items() if key not in unknown}
    path = tmp_path_factory.mktemp("without_frames") / "without_frames.safetensors"
    return edit_tensors(one_file, path, metadata={"svd_stages": json.dumps(metadata)})


@pytest.fixture(scope="session")
def folder(tiny: Checkpoint, tmp_path_factory) -> Path:
    """The tiny SVD as diffusers itself writes it. Read-only."""
    return save_tiny_folder(tmp_path_factory.mktemp("folder") / "tiny", tiny)


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A copy of the diffusers folder."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(scope="session")
def layout() -> dict[str, tuple[int, ...]]:
    """Every tensor of the published single files: name -> shape."""
    with gzip.open(Path(__file__).parents[2] / "data" / "svd_single_file_layout.json.gz", "rt") as file:
        tensors = json.load(file)["tensors"]
    return {name: tuple(shape) for name, shape in tensors.items()}


def write_header(path: Path, tensors: Described, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file with these tensors (name -> dtype, shape), all zeros that take no space on disk."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * DTYPE_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="session")
def header_only() -> Callable[..., Path]:
    """Return `write_header`."""
    return write_header


@pytest.fixture(scope="session")
def full_size(layout, tmp_path_factory) -> Path:
    """A file with the published names, shapes and size (9.56 GB), of zeros that take no space."""
    path = tmp_path_factory.mktemp("full") / "svd_xt.safetensors"
    return write_header(path, {name: ("F32", shape) for name, shape in layout.items()})


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """Return a function that changes values of a JSON file. A value of `...` removes the key."""

    def edit(path: Path, **changes: object) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return edit


@pytest.fixture(scope="session")
def metadata_of() -> Callable[[Path], dict]:
    """Return a function that reads this project's metadata of a single file."""

    def read(path: Path) -> dict:
        with safe_open(str(path), framework="pt") as file:
            return json.loads(file.metadata()["svd_stages"])

    return read


@pytest.fixture(scope="session")
def edit_tensors() -> Callable[..., Path]:
    """Return a function that rewrites a safetensors file, at another path if given.

    `change` maps the tensors to the new ones. The metadata is kept unless given.
    """

    def edit(source: Path, target: Path | None = None, change=lambda tensors: tensors, metadata=None) -> Path:
        with safe_open(str(source), framework="pt") as file:
            stored = file.metadata()
        save_file(change(load_file(source)), target or source, metadata=stored if metadata is None else metadata)
        return target or source

    return edit


@pytest.fixture(scope="session")
def same_modules() -> Callable[[Checkpoint, Checkpoint], None]:
    """Return a function that asserts that two checkpoints have the same modules: classes, names, dtypes, numbers."""

    def check(checkpoint: Checkpoint, expected: Checkpoint) -> None:
        pairs = (
            (checkpoint.model.unet, expected.model.unet),
            (checkpoint.vae.vae, expected.vae.vae),
            (checkpoint.clip_vision.encoder, expected.clip_vision.encoder),
        )
        for module, reference in pairs:
            assert type(module) is type(reference)
            torch.testing.assert_close(dict(module.state_dict()), dict(reference.state_dict()), rtol=0, atol=0)

    return check


@pytest.fixture
def recorder():
    """Return a progress function, and the list of (stage, total, unit, done) of its calls."""
    calls: list[tuple[str, int, str, int]] = []

    @contextmanager
    def progress(stage: str, total: int, unit: str):
        yield lambda done: calls.append((stage, total, unit, done))

    return progress, calls
