"""Test how result files get their final names."""

from __future__ import annotations

from pathlib import Path

import pytest
from svd_stages.headless.engines.results import Results, link_or_copy, place_inside


def ui(*names: str, kind: str = "output") -> dict:
    return {"images": [{"filename": name, "subfolder": "", "type": kind} for name in names], "animated": [True]}


@pytest.fixture
def results(tmp_path) -> Results:
    """Results whose content is their name."""
    return Results({"output": tmp_path}, lambda kind, subfolder, name, target: target.write_text(name) and None)


def test_the_order_of_a_batch_is_kept_if_the_first_name_is_taken(tmp_path, results):
    (tmp_path / "a_00001_.png").write_text("of an earlier run")
    batch = ui("a_00001_.png", "a_00002_.png", "b.gif")
    assert [path.name for path in results.store(batch)] == ["a_00002_.png", "a_00003_.png", "b.gif"]
    assert (tmp_path / "a_00001_.png").read_text() == "of an earlier run"
    assert (tmp_path / "a_00003_.png").read_text() == "a_00002_.png"
    assert results.renamed(batch) == ui("a_00002_.png", "a_00003_.png", "b.gif")


def test_a_file_is_stored_once(tmp_path, results):
    assert results.store(ui("a.png")) == results.store(ui("a.png")) == [tmp_path / "a.png"] == results.files


def test_other_kinds_and_values_are_not_results(results):
    for output in (None, [], "text", {"text": "x"}, {"images": ["x", None, {"filename": 3}]}):
        assert results.store(output) == []
    assert results.store(ui("a.png", kind="input")) == results.store(ui("a.png", kind="../x")) == []


def test_a_failed_transfer_leaves_no_file(tmp_path):
    def fail(kind: str, subfolder: str, name: str, target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Results({"output": tmp_path}, fail).store(ui("a.png"))
    assert list(tmp_path.iterdir()) == []


def test_a_subfolder_may_have_steps_without_effect(tmp_path):
    assert place_inside(tmp_path, "a/./b", "x.png") == tmp_path / "a" / "b" / "x.png"


@pytest.mark.parametrize("source", ["a", "link"])
def test_a_second_name_keeps_the_content_after_the_first_is_removed(tmp_path, source):
    (tmp_path / "a").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / source, tmp_path / "b")
    (tmp_path / "a").unlink()
    assert (tmp_path / "b").read_text() == "content"
