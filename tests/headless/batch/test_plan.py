"""Plans: ids and seeds depend on the inputs of a video, and on nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from batches import write_whole_plan
from error_checks import check_facts, raises
from svd_stages.headless.batch.images import ImageFolder
from svd_stages.headless.batch.ledger import Ledger
from svd_stages.headless.batch.manifest import Row
from svd_stages.headless.batch.plan import Binding, PlannedRow, Totals, plan_rows, read_plan
from svd_stages.headless.batch.tasks import MAX_SEED, canonical, derived_seed
from svd_stages.svd_core.errors import BatchError, SettingError


def values_of(columns):
    if "bad" in columns.values():
        raise SettingError("that is bad", code="setting.bad")
    return dict(columns)


BINDING = Binding(values_of, ["9.seed"], {"graph": "g"})


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).write_text(name)
    (folder / "twin.png").write_text("a.png")
    return folder


def plan(photos: Path, rows: list[Row], binding: Binding = BINDING) -> list[PlannedRow]:
    with contextlib.closing(Ledger(None)) as ledger:
        return list(plan_rows(rows, ImageFolder(photos, photos, ledger), binding))


def row(image: str, seed: int | None = None, number: int = 1, **values) -> Row:
    return Row(number, image, values, seed)


def test_equal_values_have_the_same_canonical_text():
    assert canonical({"b": [1, 2.0], "a": "é"}) == canonical(json.loads('{"a": "\\u00e9", "b": [1, 2.0]}'))
    assert canonical({"a": 1}) != canonical({"a": "1"}) != canonical({"a": True})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            canonical([value])


def test_derived_seeds_fill_the_range_that_json_keeps_exactly():
    seeds = [derived_seed(f"{number:064x}", {}) for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert 0 <= min(seeds) < MAX_SEED * 0.01 and MAX_SEED * 0.99 < max(seeds) < MAX_SEED == 2**53


def test_equal_images_with_different_names_are_one_task(photos):
    one, twin, again = plan(photos, [row("a.png"), row("twin.png"), row("./sub/../a.png")])
    assert one.task.id == twin.task.id == again.task.id
    assert one.task.seed == twin.task.seed


def test_a_faulty_row_has_its_error_and_the_others_are_planned(photos):
    rows = [
        Row(1, "", fault=("manifest.row", "line 1 is ragged")),
        row("a.png", number=2),
        row("gone.png", number=3),
        row("../x.png", number=4),
        row("a.png", number=5, fps="bad"),
        Row(6, ".", fault=("manifest.seed", "no seed")),
        row(".", number=7),
        row("/", number=8),
        row("b.png", number=9),
    ]
    planned = plan(photos, rows)
    assert [each.number for each in planned] == list(range(1, 10))
    assert [each.code for each in planned if each.task is None] == [
        "manifest.row",
        "image.missing",
        "image.missing",
        "setting.bad",
        "manifest.seed",
        "image.missing",
        "image.outside",
    ]
    assert [each.number for each in planned if each.task is not None] == [2, 9]
    check_facts(planned[4].message, 5)
    assert all(each.message for each in planned if each.task is None)


def test_messages_about_a_row_are_short(photos):
    for bad in (row("x" * 1_000_000), Row(1, "a.png", {"1.x": "bad"}, name="y" * 1_000_000)):
        (planned,) = plan(photos, [bad])
        assert planned.task is None and len(json.dumps(planned.as_dict())) < 5000


def test_videos_are_named_by_the_row_or_by_the_image(photos):
    named, plain, absolute = plan(photos, [Row(1, "a.png", name="x"), row("sub/c.png"), row(str(photos / "sub/c.png"))])
    assert (named.name, plain.name, absolute.name) == ("x", "sub/c", "sub/c")


def test_a_plan_is_read_as_it_was_written_and_counted(photos, tmp_path):
    rows = [row("a.png"), row("a.png", number=2), row("twin.png", number=3), row("gone.png"), row("b.png", 5, fps=1.5)]
    planned = plan(photos, rows)
    write_whole_plan(tmp_path / "run" / "plan.jsonl", iter(planned))
    totals = Totals()
    assert list(totals.count(read_plan(tmp_path / "run" / "plan.jsonl"))) == planned
    assert (totals.rows, totals.duplicates) == (5, 2)
    assert {code: count for code, (count, _) in totals.bad.items()} == {"image.missing": 1}


def test_a_seed_is_an_error_of_its_row_if_no_node_takes_it(photos):
    rows = [Row(1, "a.png", seed=3), Row(2, "a.png")]
    seeded, plain = plan(photos, rows, Binding(lambda values: {}, (), {}))
    assert seeded.code == "manifest.seed" and plain.task is not None and plain.task.seed is None


def test_a_plan_that_fails_keeps_the_one_before(photos, tmp_path):
    path = tmp_path / "plan.jsonl"
    write_whole_plan(path, plan(photos, [row("a.png")]))
    before = path.read_bytes()

    def failing():
        yield from plan(photos, [row("b.png")])
        raise BatchError("no")

    with pytest.raises(BatchError):
        write_whole_plan(path, failing())
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir() if each.is_file()] == [path.name]


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "5", '{"row": 1}', '{"row": 1, "name": "x", "task": {"id": 1}}', "[" * 100_000, "\xff", '"task"'],
)
def test_a_damaged_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.jsonl").write_bytes(text.encode("latin-1"))
    with raises(BatchError, "batch.plan", tmp_path / "plan.jsonl"):
        list(read_plan(tmp_path / "plan.jsonl"))
    with raises(BatchError, "batch.no_plan", tmp_path / "other"):
        list(read_plan(tmp_path / "other" / "plan.jsonl"))


def test_more_rows_than_a_group_keep_their_order(photos):
    planned = plan(photos, [row("a.png" if number % 2 else "b.png", number, number) for number in range(5000)])
    assert [(each.number, each.task.seed) for each in planned] == [(number, number) for number in range(5000)]
    assert [each.task.image for each in planned[:3]] == ["b.png", "a.png", "b.png"]
