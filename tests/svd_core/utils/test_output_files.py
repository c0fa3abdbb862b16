"""Result files get ComfyUI's numbered names, are never overwritten, and are complete or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from error_checks import raises
from PIL import Image, ImageSequence
from svd_stages.svd_core.errors import OutputError, SettingError
from svd_stages.svd_core.utils import output_files

from . import killed_writers

NOON = time.struct_time((2026, 3, 4, 12, 5, 9, 2, 63, 0))


def put(text: str):
    return lambda file: file.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("prefix", "subfolder", "name"),
    [
        ("ComfyUI", "", "ComfyUI"),
        ("video/ComfyUI", "video", "ComfyUI"),
        ("a/./b//c", "a/b", "c"),
        ("a/../b", "", "b"),
        ("%width%x%height%", "", "64x32"),
        ("%year%-%month%-%day%/%hour%.%minute%.%second%", "2026-03-04", "12.05.09"),
        ("%date%", "", "%date%"),
    ],
)
def test_a_prefix_is_resolved_below_the_output_folder(tmp_path, prefix, subfolder, name):
    path = output_files.resolve_prefix(tmp_path, prefix, 64, 32, NOON)
    assert path == output_files.OutputPath(tmp_path / subfolder, subfolder, name)
    assert names(tmp_path) == []


OUTSIDE = ["../x", "a/../../x", "/etc/x", "..//..//x"]
THROUGH_LINKS = ["out/a", "out/deeper/a", "in/../out/a", "chain/a", "deep/out/a"]
INVALID = ["a\0b", "\ud800", "video/\udfff/a"]


@pytest.mark.parametrize("prefix", [*OUTSIDE, *THROUGH_LINKS, *INVALID], ids=ascii)
def test_a_prefix_that_is_invalid_or_leads_outside_is_refused_in_one_line(tmp_path, prefix):
    folder = tmp_path / "output"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    for link, target in (("out", "../elsewhere"), ("chain", "out"), ("deep/out", "../../elsewhere"), ("in", "deep")):
        (folder / link).symlink_to(target)
    with raises(SettingError, "output.outside", "filename_prefix", ascii(prefix)[1:-1]) as raised:
        output_files.resolve_prefix(folder, prefix)
    assert str(raised.value).isprintable()
    assert output_files.resolve_prefix(folder, "in/a").folder == folder / "in"


def test_the_output_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to("disk")
    assert output_files.resolve_prefix(tmp_path / "output", "video/a").folder == tmp_path / "output" / "video"


@pytest.mark.parametrize(
    ("files", "counter"),
    [
        ([], 1),
        (["a_00007_.png"], 8),
        (["a_00007_.png", "a_00012_.mp4", "a_00009_.webp"], 13),
        (["a_b_00007_.png", "ab_00007_.png", "b_00007_.png"], 1),
        (["a_00007.png", "a_x_.png", "a__.png", "a_.png"], 1),
        (["a_123456_.png"], 123457),
        (["a_00002_extra.png"], 3),
    ],
)
def test_the_counter_is_one_more_than_the_highest_number_of_the_name(tmp_path, files, counter):
    for file in files:
        (tmp_path / file).touch()
    assert output_files.next_counter(output_files.resolve_prefix(tmp_path, "a")) == counter


def test_files_of_one_prefix_are_numbered_in_turn(tmp_path):
    place = output_files.resolve_prefix(tmp_path, "deep/er/a")
    saved = [output_files.save_numbered(place, "txt", put(str(index))) for index in range(3)]
    assert [each.filename for each in saved] == ["a_00001_.txt", "a_00002_.txt", "a_00003_.txt"]
    assert [(tmp_path / "deep/er" / each.filename).read_text() for each in saved] == ["0", "1", "2"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_name_that_another_process_takes_meanwhile_is_not_overwritten(tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def refuse(*_):
            raise PermissionError(errno.EPERM, "no hard links on this file system")

        monkeypatch.setattr(os, "link", refuse)
    place = output_files.resolve_prefix(tmp_path, "a")

    def write(file: Path) -> None:
        file.write_text("ours")
        (tmp_path / "a_00001_.txt").write_text("other process")

    saved = output_files.save_numbered(place, "txt", write, counter=1)
    assert saved == output_files.Saved("a_00002_.txt", 2)
    assert (tmp_path / "a_00001_.txt").read_text() == "other process"
    assert (tmp_path / "a_00002_.txt").read_text() == "ours"
    assert len(names(tmp_path)) == 2


SAVE_MANY = """
import sys
from pathlib import Path
from svd_stages.svd_core.utils import output_files

place = output_files.resolve_prefix(Path(sys.argv[1]), "shared/a")
for index in range(200):
    output_files.save_numbered(place, "txt", lambda file: file.write_text(f"{sys.argv[2]} {index}"))
"""


def test_eight_processes_under_one_prefix_keep_all_their_1600_files(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", SAVE_MANY, tmp_path, str(process)]) for process in range(8)]
    assert [process.wait(120) for process in processes] == [0] * 8
    files = list((tmp_path / "shared").iterdir())
    assert len(files) == 1600
    assert {file.read_text() for file in files} == {
        f"{process} {index}" for process in range(8) for index in range(200)
    }


def test_200_killed_writers_leave_complete_files_and_the_next_one_removes_temporary_files(tmp_path):
    script = [sys.executable, Path(killed_writers.__file__), tmp_path, "200", "8"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=True)
    killed, while_writing = map(int, done.stdout.split())
    assert killed == 200 and while_writing > 20, done.stderr
    saved = [path for path in sorted(tmp_path.iterdir()) if path.suffix != ".part"]
    assert len({path.suffix for path in saved}) == 3 and len(saved) > 20
    for path in saved:
        assert count_frames(path) == (1 if path.suffix == ".png" else killed_writers.FRAMES), path
    output_files.save_numbered(output_files.resolve_prefix(tmp_path, "next"), "txt", put("next"))
    assert not list(tmp_path.glob(".*"))


def count_frames(path: Path) -> int:
    """Decode a file to the end and count the frames of the right size. Raises for an incomplete file."""
    size = (killed_writers.SIDE, killed_writers.SIDE)
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return sum((frame.width, frame.height) == size for frame in container.decode(video=0))
    with Image.open(path) as image:
        return sum(frame.convert("RGB").size == size for frame in ImageSequence.Iterator(image))


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_errors_while_writing_leave_no_file_and_are_passed_on(tmp_path, error):
    def write(file: Path) -> None:
        file.write_text("half")
        raise error

    with pytest.raises(type(error)):
        output_files.save_numbered(output_files.resolve_prefix(tmp_path, "a"), "txt", write)
    with pytest.raises(type(error)), output_files.replacing(tmp_path / "b.txt") as file:
        write(file)
    assert names(tmp_path) == []


def test_replacing_keeps_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    for text in ("old", "new"):
        with output_files.replacing(path) as file:
            file.write_text(text)
            assert path.exists() == (text == "new")
            assert file.parent == path.parent
        assert path.read_text() == text
    with pytest.raises(ValueError), output_files.replacing(path) as file:
        file.write_text("half")
        raise ValueError
    assert path.read_text() == "new"
    assert names(tmp_path) == ["new folder/a.txt"]


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with raises(OutputError, "output.not_a_file", path), output_files.replacing(path):
            raise AssertionError("nothing should be rendered for it")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "output.no_space"),
        (errno.EDQUOT, "output.no_space"),
        (errno.EROFS, "output.not_writable"),
        (errno.EACCES, "output.not_writable"),
        (errno.EIO, "output.failed"),
    ],
)
def test_disk_errors_become_output_errors_with_a_code(tmp_path, number, code):
    def write(file: Path) -> None:
        file.write_text("half")
        raise OSError(number, os.strerror(number))

    with raises(OutputError, code, tmp_path / "a_00001_.txt") as caught:
        output_files.save_numbered(output_files.resolve_prefix(tmp_path, "a"), "txt", write)
    assert os.strerror(number) in str(caught.value)
    assert names(tmp_path) == []


def test_a_name_that_is_too_long_says_so(tmp_path):
    with raises(OutputError, "output.name_too_long"):
        output_files.save_numbered(output_files.resolve_prefix(tmp_path, "a" * 300), "txt", put(""))
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_says_so(tmp_path):
    (tmp_path / "video").write_text("in the way")
    with raises(OutputError, "output.no_folder", tmp_path / "video"):
        output_files.save_numbered(output_files.resolve_prefix(tmp_path, "video/a"), "txt", put(""))
    assert names(tmp_path) == ["video"]
