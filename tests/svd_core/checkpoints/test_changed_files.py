"""A model file that changes while it is read raises an error, and never gives a mixture of two models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from error_checks import raises
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints import reader
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.inspect import verify
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.stable_file import ModelFile
from svd_stages.svd_core.errors import CheckpointError


def _write(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def _replace(path: Path) -> None:
    other = path.with_name("other.part")
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, other)
    os.replace(other, path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),  # SIGBUS would end the process if it were mapped
    "grown": lambda path: os.truncate(path, path.stat().st_size + 4),
    "written to": _write,
    "replaced": _replace,
    "removed": Path.unlink,
    "a pipe": _pipe,
}


@pytest.fixture
def after_some_reads(monkeypatch) -> Callable[[int, Callable[[], object]], None]:
    """Return a function that arranges a call after a number of reads of weights."""

    def arrange(count: int, act: Callable[[], object]) -> None:
        read_into, reads = ModelFile.read_into, iter(range(10**9))

        def counted(self: ModelFile, start: int, target: memoryview) -> None:
            if next(reads) == count:
                act()
            read_into(self, start, target)

        monkeypatch.setattr(ModelFile, "read_into", counted)

    return arrange


def convert(path: Path) -> None:
    convert_checkpoint(path, path.with_name("converted.safetensors" if path.is_dir() else "converted"))


CASES = [
    *((change, load_checkpoint, form) for change in CHANGES for form in ("one file", "folder")),
    *(("written to", operation, form) for operation in (convert, verify) for form in ("one file", "folder")),
    ("replaced", convert, "folder"),
]


@pytest.mark.parametrize(("change", "operation", "form"), CASES)
def test_a_file_that_changes_while_it_is_read_is_an_error(
    change, operation, form, one_file, copied, tmp_path, after_some_reads
):
    path, changed = copied, copied / "unet" / "diffusion_pytorch_model.safetensors"
    if form == "one file":
        path = changed = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    after_some_reads(100, lambda: CHANGES[change](changed))
    with raises(CheckpointError, "checkpoint.changed", changed.name):
        operation(path)
    assert not {each.name for each in tmp_path.iterdir()} & {"converted", "converted.safetensors"}


def test_a_component_that_is_replaced_after_it_was_read_is_noticed_while_the_others_are(copied, after_some_reads):
    after_some_reads(1500, lambda: _replace(copied / "unet" / "diffusion_pytorch_model.safetensors"))
    with raises(CheckpointError, "checkpoint.changed"):
        load_checkpoint(copied)


def test_reading_does_not_count_as_a_change(one_file, tmp_path, after_some_reads, same_modules, tiny):
    path = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    after_some_reads(100, lambda: [path.read_bytes(), os.utime(path, ns=(1, path.stat().st_mtime_ns))])
    same_modules(load_checkpoint(path), tiny)


def test_a_file_is_opened_once(one_file, monkeypatch):
    opened: list[Path] = []
    open_model_file = reader.open_model_file
    monkeypatch.setattr(reader, "open_model_file", lambda path: opened.append(path) or open_model_file(path))
    load_checkpoint(one_file)
    assert opened == [one_file]
