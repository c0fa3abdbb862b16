"""The contact sheet: three frames of each video that can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batches import commit_files, write_whole_plan
from batches import planned_row as row
from PIL import Image
from svd_stages.headless.batch import contact_sheet as sheet_module
from svd_stages.headless.batch.contact_sheet import MOST, write_sheet
from svd_stages.headless.batch.folder import RunFolder

COLORS = {"first": (200, 0, 0), "between": (0, 0, 0), "middle": (0, 200, 0), "last": (0, 0, 200)}
ORDER = ["first", "between", "middle", "between", "last"]


def moving(tmp_path: Path, width: int = 64, height: int = 32) -> bytes:
    """Return a video of five frames in known colors."""
    frames = [Image.new("RGB", (width, height), COLORS[name]) for name in ORDER]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    return (tmp_path / "x.webp").read_bytes()


def colors(path: Path) -> list[str]:
    """Return the known colors on a sheet from left to right, each patch once."""
    sheet = np.asarray(Image.open(path)).astype(int)
    known = np.array([COLORS[name] for name in ("first", "middle", "last")])
    line = sheet[sheet_module._GAP + 10]
    names: list[str] = []
    for pixel in line:
        distances = np.abs(known - pixel).max(axis=1)
        if distances.min() < 40:
            name = ("first", "middle", "last")[int(distances.argmin())]
            if not names or names[-1] != name:
                names.append(name)
    return names


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_first_middle_and_last_frame_are_side_by_side(folder, tmp_path):
    write_whole_plan(folder.plan_file, [row(1, "a"), row(2, "not done")])
    commit_files(folder, row(1, "").task.id, [moving(tmp_path)], ".webp")
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 1
    assert colors(tmp_path / "sheet.jpg") == ["first", "middle", "last"]


def test_images_of_a_task_are_its_frames(folder, tmp_path):
    pictures = []
    for name in ORDER:
        Image.new("RGB", (40, 40), COLORS[name]).save(tmp_path / "x.png")
        pictures.append((tmp_path / "x.png").read_bytes())
    write_whole_plan(folder.plan_file, [row(1, "a")])
    commit_files(folder, row(1, "").task.id, pictures, ".png")
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 1
    assert colors(tmp_path / "sheet.jpg") == ["first", "middle", "last"]


def test_damaged_files_are_left_out(folder, tmp_path):
    video = moving(tmp_path)
    media = [(b"", ".mp4"), (b"x" * 500, ".mp4"), (video[:40], ".webp"), (b"GIF89a", ".gif"), (b"text", ".txt")]
    rows = [row(number, "x") for number in range(len(media) + 3)]
    write_whole_plan(folder.plan_file, rows)
    for each, (content, suffix) in zip(rows, media, strict=False):
        commit_files(folder, each.task.id, [content], suffix)
    for each in rows[len(media) :]:
        commit_files(folder, each.task.id, [video], ".webp")
    folder.record_file(rows[-1].task.id).write_text("{}")
    (folder.record_file(rows[-2].task.id).with_suffix(".webp")).write_bytes(b"")
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 1
    assert colors(tmp_path / "sheet.jpg") == ["first", "middle", "last"]


def test_an_old_sheet_is_kept_if_nothing_can_be_shown(folder, tmp_path):
    (tmp_path / "sheet.jpg").write_text("before")
    write_whole_plan(folder.plan_file, [row(1, "a")])
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 0
    commit_files(folder, row(1, "").task.id, [b"x"], ".mp4")
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 0
    assert (tmp_path / "sheet.jpg").read_text() == "before"


@pytest.mark.parametrize("name", ["", "日本", "a\nb\nc\nd", "x" * 1_048_576, "\x00", "../../x"])
def test_any_name_can_be_drawn(folder, tmp_path, name):
    write_whole_plan(folder.plan_file, [row(1, name)])
    commit_files(folder, row(1, "").task.id, [moving(tmp_path)], ".webp")
    assert write_sheet(folder, tmp_path / "sheet.jpg") == 1
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.height == 2 * sheet_module._GAP + sheet_module._FRAME // 2 + sheet_module._LINE


def test_videos_are_selected_evenly_each_once(folder, tmp_path):
    rows = [row(number // 2, f"{number // 2}") for number in range(400)]
    write_whole_plan(folder.plan_file, rows)
    for number in range(0, 200):
        commit_files(folder, row(number, "").task.id, [b"x"], ".txt")
    chosen = [each.number for each in sheet_module._select_rows(folder)]
    assert len(chosen) == len(set(chosen)) == MOST and chosen == sorted(chosen)
    write_whole_plan(folder.plan_file, rows[:60])
    assert [each.number for each in sheet_module._select_rows(folder)] == list(range(30))
    gaps = np.diff(chosen)
    assert chosen[0] == 0 and chosen[-1] >= 195 and gaps.min() >= 3 and gaps.max() <= 4
