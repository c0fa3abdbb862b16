"""Exports: each video has a name, no name leads out of the folder, and no file is overwritten."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from batches import commit_files, write_whole_plan
from batches import planned_row as row
from error_checks import raises
from svd_stages.headless.batch.export import LONGEST_NAME, Exported, export
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.plan import PlannedRow
from svd_stages.svd_core.errors import BatchError


def run_of(tmp_path: Path, rows: list[PlannedRow], done: bool = True, files: int = 1) -> RunFolder:
    """Return a run whose videos contain their task's id."""
    folder = RunFolder(tmp_path / "run")
    write_whole_plan(folder.plan_file, rows)
    for each in rows:
        if done and each.task is not None and not folder.is_done(each.task.id):
            commit_files(folder, each.task.id, [f"{each.task.id} {number}".encode() for number in range(files)])
    return folder


def names(target: Path) -> dict[str, str]:
    """Return path below the target -> content."""
    files = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    files.pop("clips.csv")
    return {name: path.read_text() for name, path in files.items()}


def table(target: Path) -> list[dict[str, str]]:
    with (target / "clips.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def check(target: Path, rows: list[PlannedRow]) -> None:
    """Check that each row's file is its video, inside the target."""
    entries = table(target)
    assert [int(each["row"]) for each in entries] == [each.number for each in rows]
    for each in entries:
        path = target / each["file"]
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target))
        assert path.read_text().split()[0] == each["task"]


def test_videos_are_named_by_rows_and_by_seeds_if_names_repeat(tmp_path):
    rows = [row(1, "sub/a"), row(2, "b", 7), row(3, "b", 8), PlannedRow(4, "bad", "x", None, "image.missing", "gone")]
    assert export(run_of(tmp_path, rows), tmp_path / "names") == Exported(3, 0)
    assert names(tmp_path / "names").keys() == {"sub/a.mp4", "b_7.mp4", "b_8.mp4"}
    check(tmp_path / "names", rows[:3])


def test_a_second_export_changes_nothing_and_a_later_one_adds(tmp_path):
    rows = [row(1, "a"), row(2, "b"), row(3, "c")]
    folder = run_of(tmp_path, rows[:2])
    assert export(folder, tmp_path / "names") == Exported(2, 0)
    before = names(tmp_path / "names")
    assert export(folder, tmp_path / "names") == export(folder, tmp_path / "names", copies=True) == Exported(0, 2)
    assert names(tmp_path / "names") == before
    assert export(run_of(tmp_path, rows), tmp_path / "names") == Exported(1, 2)
    check(tmp_path / "names", rows)


def test_rows_with_the_same_name_have_different_files(tmp_path):
    rows = [row(number, "same", 5) for number in range(1, 6)]
    folder = run_of(tmp_path, rows)
    assert export(folder, tmp_path / "names", "{name}") == Exported(5, 0)
    check(tmp_path / "names", rows)
    assert len(names(tmp_path / "names")) == 5
    before = table(tmp_path / "names")
    assert export(folder, tmp_path / "names", "{name}") == Exported(0, 5)
    assert table(tmp_path / "names") == before


def test_rows_with_the_same_task_share_its_file(tmp_path):
    rows = [row(1, "a", task="one"), row(2, "a", task="one"), row(3, "z", task="one")]
    assert export(run_of(tmp_path, rows), tmp_path / "names") == Exported(2, 1)
    check(tmp_path / "names", rows)


def test_existing_files_are_kept(tmp_path):
    target = tmp_path / "names"
    (target / "b.mp4").mkdir(parents=True)
    (target / "a.mp4").write_text("mine")
    rows = [row(1, "a"), row(2, "b")]
    export(run_of(tmp_path, rows), target)
    assert (target / "a.mp4").read_text() == "mine" and (target / "b.mp4").is_dir()
    check(target, rows)


HOSTILE = [
    "../../x",
    "/etc/cron.d/x",
    "..",
    ".",
    "",
    "/",
    "a/../../../x",
    "..\\..\\x",
    "C:\\x",
    "\\\\server\\share\\x",
    "x\0y",
    "x\ny",
    "\u202egpj.exe",
    "~/x",
    "$(x)",
    "-rf",
    ".hidden",
    "con",
    "a" * 1000,
    "ä" * 300,
    "🎬" * 200,
    "d/" * 5000 + "x",
    "clips.csv",
    "...",
    "a//b",
    "x ",
    "x.",
    "=1+1",
]


def test_hostile_names_stay_inside_the_folder(tmp_path):
    rows = [row(number, name) for number, name in enumerate(HOSTILE, 1)]
    outside = {path for path in tmp_path.rglob("*")}
    folder = run_of(tmp_path, rows)
    inside = {path for path in folder.path.rglob("*")}
    export(folder, tmp_path / "names" / "deep" / "deeper")
    check(tmp_path / "names" / "deep" / "deeper", rows)
    written = {path for path in tmp_path.rglob("*")} - inside - outside - {folder.path}
    assert all(path.is_relative_to(tmp_path / "names") for path in written)
    for path in (tmp_path / "names" / "deep" / "deeper").rglob("*"):
        assert not set(path.name) & set('\0\n\\:*?"<>|\u202e') and not path.name.startswith(".")
        assert len(path.name.encode()) <= LONGEST_NAME + 20 and path.name.rstrip(" .") == path.name


def test_a_name_may_equal_the_folder_of_another_one(tmp_path):
    rows = [row(1, "a"), row(2, "a.mp4/b"), row(3, "a.mp4/b/c"), row(4, "d/e"), row(5, "d")]
    export(run_of(tmp_path, rows), tmp_path / "names")
    check(tmp_path / "names", rows)


def test_links_are_the_same_file_and_copies_are_not(tmp_path):
    folder = run_of(tmp_path, [row(1, "a")])
    export(folder, tmp_path / "links")
    export(folder, tmp_path / "copies", copies=True)
    record = folder.read_record(row(1, "a").task.id)
    assert record is not None
    (clip,) = folder.media_files(record)
    assert (tmp_path / "links" / "a.mp4").samefile(clip)
    assert not (tmp_path / "copies" / "a.mp4").samefile(clip)
    assert (tmp_path / "copies" / "a.mp4").read_bytes() == clip.read_bytes()
    assert export(folder, tmp_path / "copies", copies=True) == Exported(0, 1)


def test_all_files_of_a_task_have_names(tmp_path):
    export(run_of(tmp_path, [row(1, "a")], files=3), tmp_path / "names")
    assert {name: text.split()[1] for name, text in names(tmp_path / "names").items()} == {
        "a.mp4": "0",
        "a_00002.mp4": "1",
        "a_00003.mp4": "2",
    }


def test_a_template_is_filled_in(tmp_path):
    each = row(3, "sub/a", 5)
    export(run_of(tmp_path, [each]), tmp_path / "names", "{row}/{name}-{seed}-{task}")
    assert names(tmp_path / "names").keys() == {f"3/sub/a-5-{each.task.id[:12]}.mp4"}
    export(run_of(tmp_path, [row(3, "b", None)]), tmp_path / "without", "{name}-{seed}")
    assert names(tmp_path / "without").keys() == {"b-.mp4"}


@pytest.mark.parametrize(
    "template",
    [
        "{image}",
        "plain",
        "",
        "{",
        "}",
        "{}",
        "{0}",
        "{name.__class__}",
        "{name[0]}",
        "{name:>99999999}",
        "{name!r}",
        "{name:{task}}",
    ],
)
def test_a_template_of_other_fields_is_refused(tmp_path, template):
    folder = run_of(tmp_path, [row(1, "a")])
    if template == "":
        assert export(folder, tmp_path / "names", template) == Exported(1, 0)
        return
    with pytest.raises(BatchError) as caught:
        export(folder, tmp_path / "names", template)
    assert caught.value.code == "batch.names" and not (tmp_path / "names").exists()


def test_nothing_done_gives_an_empty_table(tmp_path):
    assert export(run_of(tmp_path, [row(1, "a")], done=False), tmp_path / "names") == Exported(0, 0)
    assert table(tmp_path / "names") == []
    with raises(BatchError, "batch.no_plan"):
        export(RunFolder(tmp_path / "other"), tmp_path / "names")
