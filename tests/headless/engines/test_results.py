"""Result files under their final names."""

from __future__ import annotations

from pathlib import Path

import pytest
from svd_stages.headless.engines.results import Results, link_or_copy, place_inside
from svd_stages.svd_core.errors import OutputError


def answer(*names: str, kind: str = "output") -> dict:
    return {"images": [{"filename": name, "subfolder": "", "type": kind} for name in names], "animated": [True]}


def results(folder: Path) -> Results:
    """Results whose content is their name."""
    return Results({"output": folder}, lambda kind, subfolder, name, target: target.write_text(name) and None)


def test_a_batch_keeps_its_order_where_the_first_names_are_taken(tmp_path):
    (tmp_path / "a_00001_.png").write_text("of an earlier run")
    kept = results(tmp_path)
    told = answer("a_00001_.png", "a_00002_.png", "b.gif")
    assert [path.name for path in kept.store(told)] == ["a_00002_.png", "a_00003_.png", "b.gif"]
    assert (tmp_path / "a_00001_.png").read_text() == "of an earlier run"
    assert (tmp_path / "a_00003_.png").read_text() == "a_00002_.png"
    assert kept.renamed(told) == answer("a_00002_.png", "a_00003_.png", "b.gif")


def test_a_file_is_kept_once(tmp_path):
    kept = results(tmp_path)
    assert kept.store(answer("a.png")) == kept.store(answer("a.png")) == [tmp_path / "a.png"] == kept.files


def test_only_known_kinds_are_results(tmp_path):
    kept = results(tmp_path)
    assert kept.store(answer("a.png", kind="input")) == kept.store(answer("a.png", kind="../x")) == []
    for nothing in (None, [], "text", {"text": "x"}, {"images": ["x", None, {"filename": 3}]}):
        assert kept.store(nothing) == []


def test_what_cannot_be_brought_leaves_nothing(tmp_path):
    def fails(kind: str, subfolder: str, name: str, target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Results({"output": tmp_path}, fails).store(answer("a.png"))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_file_system_refuses_is_ours_to_say(tmp_path):
    with pytest.raises(OutputError):
        place_inside(tmp_path, "", "x" * 256)
    assert place_inside(tmp_path, "a/./b", "x.png") == tmp_path / "a" / "b" / "x.png"


def test_the_same_content_has_a_second_name(tmp_path):
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").unlink()
    assert (tmp_path / "b").read_text() == "content"


def test_a_link_s_second_name_is_no_link_to_what_is_gone_afterwards(tmp_path):
    (tmp_path / "a").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / "link", tmp_path / "b")
    (tmp_path / "a").unlink()
    assert (tmp_path / "b").read_text() == "content"
