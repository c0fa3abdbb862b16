"""Plans: ids and seeds follow from what a clip is made from, and from nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from batches import write_whole_plan
from error_checks import check_facts, raises
from svd_stages.headless.batch.images import Image, ImageFolder
from svd_stages.headless.batch.ledger import Ledger
from svd_stages.headless.batch.manifest import Row
from svd_stages.headless.batch.plan import Binding, PlannedRow, Totals, plan_rows, read_plan
from svd_stages.headless.batch.tasks import MAX_SEED, Task, canonical, derived_seed, digest, task_id
from svd_stages.svd_core.errors import BatchError, SettingError

SHA = "a" * 64


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
    ledger = Ledger(None)
    try:
        return list(plan_rows(rows, ImageFolder(photos, photos, ledger), binding))
    finally:
        ledger.close()


def row(image: str, seed: int | None = None, number: int = 1, **values) -> Row:
    return Row(number, image, values, seed)


def ids(planned: list[PlannedRow]) -> dict[str, str]:
    return {each.task.image: each.task.id for each in planned if each.task is not None}


def test_equal_values_have_one_text_however_they_are_written():
    assert canonical({"b": [1, 2.0], "a": "é"}) == canonical(json.loads('{"a": "\\u00e9", "b": [1, 2.0]}'))
    assert canonical({"a": 1}) != canonical({"a": "1"}) != canonical({"a": True})
    for strange in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            canonical([strange])


def test_each_thing_that_a_clip_is_made_from_changes_its_id():
    one = task_id("shared", SHA, {"1.x": 1, "2.y": 2})
    assert one == task_id("shared", SHA, {"2.y": 2, "1.x": 1})
    others = [
        task_id("other", SHA, {"1.x": 1, "2.y": 2}),
        task_id("shared", "b" * 64, {"1.x": 1, "2.y": 2}),
        task_id("shared", SHA, {"1.x": 2, "2.y": 1}),
        task_id("shared", SHA, {"1.x": 1}),
        task_id("shared", SHA, {"1.x": "1", "2.y": 2}),
    ]
    assert len({one, *others}) == 6
    assert all(len(each) == 64 and set(each) <= set("0123456789abcdef") for each in others)


def test_ids_and_seeds_stay_what_they_were():
    """Whoever changes these numbers has every clip of every user made again."""
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert task_id("s", SHA, {"1.x": 1}) == digest(["s", SHA, {"1.x": 1}])
    assert derived_seed(SHA, {}) == int(digest(["seed", SHA, {}])[:16], 16) % 2**53


def test_derived_seeds_fill_the_range_that_json_keeps_exactly():
    seeds = [derived_seed(f"{number:064x}", {}) for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert 0 <= min(seeds) < MAX_SEED * 0.01 and MAX_SEED * 0.99 < max(seeds) < MAX_SEED == 2**53


def test_a_task_is_the_same_after_json():
    task = Task("i", "a.png", SHA, {"1.x": 1.5, "9.seed": 3}, 3)
    assert Task(**json.loads(json.dumps(task.as_dict()))) == task


def test_ids_do_not_depend_on_the_order_of_rows_nor_on_the_place_of_the_folder(photos, tmp_path):
    rows = [row(name, number=number, fps=number) for number, name in enumerate(["a.png", "b.png", "sub/c.png"])]
    first = ids(plan(photos, rows))
    random.Random(3).shuffle(rows)
    assert ids(plan(photos, rows)) == first and len(set(first.values())) == 3
    photos.rename(tmp_path / "moved")
    assert ids(plan(tmp_path / "moved", rows)) == first


def test_the_same_picture_under_another_name_is_the_same_clip(photos):
    one, twin, again = plan(photos, [row("a.png"), row("twin.png"), row("./sub/../a.png")])
    assert one.task.id == twin.task.id == again.task.id
    assert one.task.seed == twin.task.seed


def test_what_rows_share_changes_all_ids_and_no_seed(photos):
    (one,) = plan(photos, [row("a.png")])
    (other,) = plan(photos, [row("a.png")], Binding(values_of, ["9.seed"], {"graph": "h"}))
    assert one.task.id != other.task.id and one.task.seed == other.task.seed


def test_a_seed_that_is_named_is_taken_by_every_input_and_one_that_is_not_follows_from_the_row(photos):
    binding = Binding(values_of, ["9.seed", "12.noise_seed"], {})
    named, derived, other = plan(photos, [row("a.png", 7), row("a.png"), row("a.png", fps=3)], binding)
    assert named.task.seed == 7 and named.task.values == {"9.seed": 7, "12.noise_seed": 7}
    assert set(derived.task.values.values()) == {derived.task.seed}
    assert derived.task.seed != other.task.seed


def test_a_column_for_a_seed_of_the_graph_is_not_written_over(photos):
    binding = Binding(values_of, ["9.seed", "12.noise_seed"], {})
    one, chain_callbacks, with_seed = plan(
        photos,
        [
            Row(1, "a.png", {"9.seed": 5}),
            Row(2, "a.png", {"9.seed": 5, "12.noise_seed": 6}),
            Row(3, "a.png", {"9.seed": 5}, seed=8),
        ],
        binding,
    )
    assert one.task.values["9.seed"] == 5 and one.task.values["12.noise_seed"] == one.task.seed
    assert chain_callbacks.task.values == {"9.seed": 5, "12.noise_seed": 6} and chain_callbacks.task.seed == 5
    assert with_seed.task.values == {"9.seed": 5, "12.noise_seed": 8}


def test_a_model_counts_by_what_is_in_it_and_leaves_the_seed_alone(photos):
    def planned(sums: dict[str, str], model: str) -> Task:
        def models(values):
            return {name: sums[value] for name, value in values.items() if name == "2.model"}

        (found,) = plan(photos, [Row(1, "a.png", {"2.model": model})], Binding(values_of, ["9.seed"], {}, models))
        assert found.task.values["2.model"] == model
        return found.task

    one = planned({"x": "1", "y": "1"}, "x")
    assert planned({"x": "1", "y": "1"}, "y").id == one.id
    changed = planned({"x": "2"}, "x")
    assert changed.id != one.id and changed.seed == one.seed


def test_what_is_wrong_with_a_row_is_said_there_and_the_others_are_planned(photos):
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


def test_what_is_said_of_a_row_is_short_whatever_is_in_it(photos):
    for bad in (row("x" * 1_000_000), Row(1, "a.png", {"1.x": "bad"}, name="y" * 1_000_000)):
        (found,) = plan(photos, [bad])
        assert found.task is None and len(json.dumps(found.as_dict())) < 5000


def test_clips_are_called_by_the_row_or_by_the_image_below_its_folder(photos):
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


def test_a_seed_that_no_node_takes_is_a_fault_of_its_row(photos):
    rows = [Row(1, "a.png", seed=3), Row(2, "a.png")]
    make_generator, plain = plan(photos, rows, Binding(lambda values: {}, (), {}))
    assert make_generator.code == "manifest.seed" and plain.task is not None and plain.task.seed is None


def test_a_plan_that_fails_on_the_way_leaves_the_one_before(photos, tmp_path):
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
def test_a_damaged_plan_is_refused_with_the_way_out(tmp_path, text):
    (tmp_path / "plan.jsonl").write_bytes(text.encode("latin-1"))
    with raises(BatchError, "batch.plan", tmp_path / "plan.jsonl"):
        list(read_plan(tmp_path / "plan.jsonl"))
    with raises(BatchError, "batch.no_plan", tmp_path / "other"):
        list(read_plan(tmp_path / "other" / "plan.jsonl"))


def test_more_rows_than_are_hashed_at_once_keep_their_order(photos):
    planned = plan(photos, [row("a.png" if number % 2 else "b.png", number, number) for number in range(5000)])
    assert [(each.number, each.task.seed) for each in planned] == [(number, number) for number in range(5000)]
    assert (
        isinstance(planned[0].task, Task) and Image("b.png", planned[0].task.image_sha256).name == planned[0].task.image
    )
