"""Checkpoints on disk for the tests of this room: the tiny one in both forms, and files that are only a header."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping
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
LAYOUT = Path(__file__).parents[2] / "data" / "svd_single_file_layout.json.gz"


@pytest.fixture(scope="session")
def one_file(tiny: Checkpoint, tmp_path_factory) -> Path:
    """The tiny SVD in Stability's layout. Nothing may change it."""
    return save_single_file(tiny, tmp_path_factory.mktemp("one_file") / "tiny.safetensors")


@pytest.fixture(scope="session")
def silent(one_file: Path, tmp_path_factory) -> Path:
    """The tiny SVD as one file that does not say its frames and guidance, as the published ones. Nothing may change it.

    What it does say is what a tower and a UNet so narrow need.
    """
    with safe_open(str(one_file), framework="pt") as file:
        facts = json.loads(file.metadata()["svd_stages"])
    told = {key: value for key, value in facts.items() if key not in ("num_frames", "min_guidance", "max_guidance")}
    path = tmp_path_factory.mktemp("silent") / "silent.safetensors"
    save_file(load_file(one_file), path, metadata={"svd_stages": json.dumps(told)})
    return path


@pytest.fixture(scope="session")
def folder(tiny: Checkpoint, tmp_path_factory) -> Path:
    """The tiny SVD as diffusers itself writes it. Nothing may change it."""
    return save_tiny_folder(tmp_path_factory.mktemp("folder") / "tiny", tiny)


@pytest.fixture(scope="session")
def layout() -> dict[str, tuple[int, ...]]:
    """Every tensor of the published one-file checkpoints: name -> shape."""
    with gzip.open(LAYOUT, "rt") as file:
        tensors = json.load(file)["tensors"]
    return {name: tuple(shape) for name, shape in tensors.items()}


def write_header(path: Path, tensors: Described, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file with these tensors (name -> type, shape), all zeros that take no room on the disk."""
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
    """`write_header`, for tests."""
    return write_header


@pytest.fixture(scope="session")
def full_size(layout, tmp_path_factory) -> Path:
    """A file with the published names, shapes and size (9.56 GB), of zeros that take no room."""
    path = tmp_path_factory.mktemp("full") / "svd_xt.safetensors"
    return write_header(path, {name: ("F32", shape) for name, shape in layout.items()})


@pytest.fixture(scope="session")
def same_modules() -> Callable[[Checkpoint, Checkpoint], None]:
    """Assert that two checkpoints have the same modules: classes, names, types and every number."""

    def check(left: Checkpoint, right: Checkpoint) -> None:
        pairs = (
            (left.model.unet, right.model.unet),
            (left.vae.vae, right.vae.vae),
            (left.clip_vision.encoder, right.clip_vision.encoder),
        )
        for one, other in pairs:
            assert type(one) is type(other)
            ours, theirs = one.state_dict(), other.state_dict()
            assert ours.keys() == theirs.keys()
            different = [name for name in ours if not _same(ours[name], theirs[name])]
            assert not different

    return check


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)
