"""Temporary files are removed by their writer, or by the next one if the writer was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from svd_stages.svd_core.utils import atomic_files
from svd_stages.svd_core.utils.atomic_files import remove_abandoned, unfinished_file, unfinished_folder

MAKERS = {"file": unfinished_file, "folder": unfinished_folder}
HOLD = """
import sys, time
from pathlib import Path
from svd_stages.svd_core.utils import atomic_files

with getattr(atomic_files, "unfinished_" + sys.argv[2])(Path(sys.argv[1])) as path:
    if path.is_dir():
        (path / "half").write_text("half")
    print(path.name, flush=True)
    time.sleep(600)
"""


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".svd-stages-*.part"))


@pytest.mark.parametrize("kind", MAKERS)
def test_temporary_files_are_removed_on_exit_and_on_errors(tmp_path, kind):
    with MAKERS[kind](tmp_path / "new") as path:
        assert path.exists() and path.parent == tmp_path / "new"
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), MAKERS[kind](tmp_path / "new"):
            raise error
    assert parts(tmp_path / "new") == []


@pytest.mark.parametrize("kind", MAKERS)
def test_files_of_killed_writers_are_removed_and_those_of_running_writers_kept(tmp_path, kind):
    writers = [
        subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, kind], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (each.stdout.readline().strip() for each in writers)
    try:
        os.utime(tmp_path / alive, (0, 0))  # no write for a long time
        with MAKERS[kind](tmp_path):
            assert {dead, alive} < set(parts(tmp_path))
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        with MAKERS[kind](tmp_path) as path:
            assert parts(tmp_path) == sorted([alive, path.name])
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    remove_abandoned(tmp_path)
    assert parts(tmp_path) == []


@pytest.mark.parametrize("locks", [True, False])
def test_files_of_other_machines_are_removed_when_they_are_old(tmp_path, monkeypatch, locks):
    if not locks:

        def refuse(*_):
            raise OSError("this disk has no locks")

        monkeypatch.setattr(atomic_files.fcntl, "flock", refuse)
    machine = "" if locks else atomic_files._machine_prefix()
    old, recent, other = (f".svd-stages-{machine}{name}.part" for name in ("1", "2", "3"))
    for name in (old, recent, "mine.part"):
        (tmp_path / name).touch()
    (tmp_path / other).symlink_to(tmp_path / "mine.part")
    for name in (old, "mine.part"):
        os.utime(tmp_path / name, (time.time() - 90000, time.time() - 90000))
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([recent, other, "mine.part"])


def test_concurrent_writers_do_not_remove_each_others_files(tmp_path):
    lost = []

    def write() -> None:
        for _ in range(100):
            with unfinished_file(tmp_path) as path:
                path.write_text("x")
                lost.extend([] if path.exists() else [path])

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == [] and parts(tmp_path) == []


def test_files_have_default_permissions_and_folders_are_private(tmp_path):
    (tmp_path / "plain").touch()
    with unfinished_file(tmp_path) as file, unfinished_folder(tmp_path) as folder:
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_pipes_and_links_are_not_removed(tmp_path):
    pipe, link = (tmp_path / f".svd-stages-{atomic_files._machine_prefix()}{name}.part" for name in "pl")
    os.mkfifo(pipe)
    link.symlink_to(tmp_path)
    for path in (pipe, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path)
    assert pipe.is_fifo() and link.is_symlink()
