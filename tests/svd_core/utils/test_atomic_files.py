"""What is being made has a writer; when the writer is gone, the next one cleans up."""

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
def test_what_is_being_made_is_gone_afterwards_however_it_ends(tmp_path, kind):
    with MAKERS[kind](tmp_path / "new") as path:
        assert path.exists() and path.parent == tmp_path / "new"
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), MAKERS[kind](tmp_path / "new"):
            raise error
    assert parts(tmp_path / "new") == []


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_killed_writer_left_goes_at_the_next_start_and_what_a_living_one_makes_stays(tmp_path, kind):
    writers = [
        subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, kind], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, alive = (each.stdout.readline().strip() for each in writers)
    try:
        os.utime(tmp_path / alive, (0, 0))  # one that has not written for long
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
def test_what_another_machine_makes_goes_by_its_age_alone(tmp_path, monkeypatch, locks):
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


def test_writers_that_begin_together_do_not_take_each_others_files_for_left(tmp_path):
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


def test_a_file_has_the_rights_of_any_new_one_and_a_folder_is_for_this_user(tmp_path):
    (tmp_path / "plain").touch()
    with unfinished_file(tmp_path) as file, unfinished_folder(tmp_path) as folder:
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_neither_file_nor_folder_is_nobodys_to_remove(tmp_path):
    pipe, link = (tmp_path / f".svd-stages-{atomic_files._machine_prefix()}{name}.part" for name in "pl")
    os.mkfifo(pipe)
    link.symlink_to(tmp_path)
    for path in (pipe, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path)
    assert pipe.is_fifo() and link.is_symlink()
