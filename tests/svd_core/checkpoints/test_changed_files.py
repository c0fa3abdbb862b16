"""A model that somebody writes to, cuts short or replaces while it is read: an error, never a mixture of two models."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from error_checks import raises
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints import lazy_tensors
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.stable_file import PlainFile
from svd_stages.svd_core.checkpoints.verify import verify
from svd_stages.svd_core.errors import CheckpointError


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _write(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def _replace(path: Path) -> None:
    other = path.with_name("other.part")
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, other)
    os.replace(other, path)


def _remove(path: Path) -> None:
    path.unlink()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = {"cut": _cut, "grown": _grow, "written to": _write, "replaced": _replace, "removed": _remove, "a pipe": _pipe}


@pytest.fixture
def after_some_reads(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something done once so many reads of weights are done."""

    def arrange(count: int, act: Callable[[], None]) -> None:
        read_into, reads = PlainFile.read_into, iter(range(10**9))

        def counted(self: PlainFile, start: int, target: memoryview) -> None:
            if next(reads) == count:
                act()
            read_into(self, start, target)

        monkeypatch.setattr(PlainFile, "read_into", counted)

    return arrange


def convert(path: Path) -> None:
    name = "converted.safetensors" if path.is_dir() else "converted"
    convert_checkpoint(path, path.with_name(name))


TRIED = [
    *((change, load_checkpoint, form) for change in CHANGES for form in ("one file", "folder")),
    *(("written to", door, form) for door in (convert, verify) for form in ("one file", "folder")),
    ("replaced", convert, "folder"),
]


@pytest.mark.parametrize(("change", "door", "form"), TRIED)
def test_a_file_that_changes_while_it_is_read_is_an_error(
    change, door, form, one_file, folder, tmp_path, after_some_reads
):
    path = tmp_path / "model.safetensors"
    if form == "folder":
        path = Path(shutil.copytree(folder, tmp_path / "model"))
        changed = path / "unet" / "diffusion_pytorch_model.safetensors"
    else:
        changed = Path(shutil.copyfile(one_file, path))
    after_some_reads(100, lambda: CHANGES[change](changed))
    with raises(CheckpointError, "checkpoint.changed", changed.name):
        door(path)
    assert not {each.name for each in tmp_path.iterdir()} & {"converted", "converted.safetensors"}


def test_a_part_that_is_replaced_after_it_was_read_is_noticed_while_the_others_are(folder, tmp_path, after_some_reads):
    path = Path(shutil.copytree(folder, tmp_path / "model"))
    after_some_reads(1500, lambda: _replace(path / "unet" / "diffusion_pytorch_model.safetensors"))
    with raises(CheckpointError, "checkpoint.changed"):
        load_checkpoint(path)


def test_reading_does_not_count_as_a_change(one_file, tmp_path, after_some_reads, same_modules, tiny):
    path = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    after_some_reads(100, lambda: [path.read_bytes(), os.utime(path, ns=(1, path.stat().st_mtime_ns))])
    same_modules(load_checkpoint(path), tiny)


def test_a_file_is_opened_once(one_file, monkeypatch):
    opened: list[Path] = []
    open_model_file = lazy_tensors.open_model_file
    monkeypatch.setattr(lazy_tensors, "open_model_file", lambda path: opened.append(path) or open_model_file(path))
    load_checkpoint(one_file)
    assert opened == [one_file]


def _load_while_it_is_cut(path: Path) -> None:
    """Load in this process, whose other thread cuts the file between two reads; the exit status is 5 when told."""
    begun, cut = threading.Event(), threading.Event()
    read_into = PlainFile.read_into

    def slowly(self: PlainFile, start: int, target: memoryview) -> None:
        begun.set()
        cut.wait(10)
        read_into(self, start, target)

    def cutting() -> None:
        begun.wait()
        os.truncate(path, 200_000)
        cut.set()

    PlainFile.read_into = slowly
    threading.Thread(target=cutting, daemon=True).start()
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        os._exit(5 if error.code == "checkpoint.changed" else 6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that may die: a fork of this one")
def test_cutting_a_file_short_does_not_end_the_process_that_reads_it(one_file, tmp_path):
    path = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    process = multiprocessing.get_context("fork").Process(target=_load_while_it_is_cut, args=(path,))
    process.start()
    process.join(120)
    assert process.exitcode == 5  # -7 is SIGBUS: what a mapped file ends with


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_what_was_left_on_the_disk_is_not_taken_from_another_file(change, one_file, tmp_path):
    path = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    loaded = load_checkpoint(path, defer_unused=True)
    times = path.stat()
    CHANGES[change](path)
    if change == "replaced":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with raises(CheckpointError, "checkpoint.changed"):
        replace(loaded.model).load_deferred()
