"""`svd-stages bench --card`: each row is in the file as soon as it is measured, whatever happens to the next one."""

from __future__ import annotations

import functools
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from error_checks import check_facts
from svd_stages.headless.bench import card, card_models, card_rows_machine, card_table, measuring, models
from svd_stages.headless.bench.card import GROUPS, NEEDS_CUDA, Row
from svd_stages.headless.bench.card_models import Card, NotMeasured
from svd_stages.headless.bench.card_table import format_file, read_rows
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.models import vae_decoder

TINY = models.Size((32, 32, 64, 64), (1, 1, 2, 2), 32, (32, 32, 32, 32), 2, 8, 8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    monkeypatch.setitem(models.SIZES, "small", TINY)
    monkeypatch.setattr(card_rows_machine, "CHECKED", TINY)


@pytest.fixture
def cpu_card() -> Card:
    return Card(CPU, torch.float32, "small", turns=1)


def run(path: Path, *options: str) -> int:
    return main(["bench", "--card", "-q", "--device", "cpu", "-o", str(path), *options])


def rows_in(path: Path) -> list[dict]:
    run_line, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert run_line["group"] == "run"
    return rows


@pytest.mark.slow
def test_every_row_is_measured_or_says_why_not(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        assert run(tmp_path / "card.jsonl", "--threads", "1") == 0
    finally:
        torch.set_num_threads(before)
    rows = {(row["group"], row["row"]): row for row in rows_in(tmp_path / "card.jsonl")}
    assert list(rows) == [(group, row.name) for group, members in GROUPS.items() for row in members]
    for group, members in GROUPS.items():
        for member in members:
            row = rows[group, member.name]
            assert (row["status"] == "skipped") == member.cuda, row
            assert row["status"] in ("ok", "skipped") and row.get("reason") == (NEEDS_CUDA if member.cuda else None)
            assert member.cuda or group in ("machine", "checks") or row["seconds"] > 0
    for group in ("step", "decode", "rewrites"):
        assert all(row.get("difference", 0) < 1e-5 for (of, _), row in rows.items() if of == group)
    assert all("GiB" in row["plan"] for (group, _), row in rows.items() if group == "memory")
    assert capsys.readouterr().out.count("|---|") >= len(GROUPS)
    printed = format_file(tmp_path / "card.jsonl", ["step"])
    assert f"| ours | {rows['step', 'ours']['seconds']:.4g} |" in printed


def raises(error: BaseException):
    def fail(card: Card):
        raise error

    return fail


FAKES = {
    "first": [
        Row("good", lambda card: {"seconds": 2.0}),
        Row("error", raises(RuntimeError("cuDNN error: EXECUTION_FAILED\nmore"))),
        Row("no memory", raises(torch.cuda.OutOfMemoryError("CUDA out of memory."))),
        Row("no attribute", raises(AttributeError("uuid"))),
        Row("impossible", raises(NotMeasured("no such tool"))),
        Row("wrong", lambda card: {"passed": False}),
        Row("for a card", lambda card: {"seconds": 1.0}, cuda=True),
    ],
    "second": [Row("good", lambda card: {"seconds": 3.0})],
}


@pytest.fixture
def fakes(monkeypatch):
    """Replace the groups, and give their tables the columns of others."""
    for module in (card, card_table):
        monkeypatch.setattr(module, "GROUPS", dict(FAKES))
    monkeypatch.setattr(card_table, "OF_GROUP", dict.fromkeys(FAKES, ("seconds", "note")))


def test_errors_are_rows_and_what_does_not_fit_is_skipped(fakes, tmp_path, capsys):
    assert run(tmp_path / "card.jsonl", "--json") == 0
    rows = rows_in(tmp_path / "card.jsonl")
    assert [row["status"] for row in rows] == [
        "ok", "error", "skipped", "error", "skipped", "failed", "skipped", "ok"
    ]  # fmt: skip
    assert rows[1]["reason"] == "RuntimeError: cuDNN error: EXECUTION_FAILED"
    check_facts(rows[2]["reason"], "memory", "OutOfMemoryError")
    assert rows[3]["reason"] == "AttributeError: uuid" and rows[4]["reason"] == "no such tool"
    assert rows[6]["reason"] == NEEDS_CUDA
    _machine, *events, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{"event": "card", **row} for row in rows] == [each for each in events if each["event"] == "card"]
    assert {name: result[name] for name in ("ok", "failed", "error", "skipped")} == {
        "ok": 2, "failed": 1, "error": 2, "skipped": 3
    }  # fmt: skip


def test_ctrl_c_loses_no_row_and_a_second_run_adds_the_others(fakes, monkeypatch, tmp_path):
    path = tmp_path / "card.jsonl"
    with monkeypatch.context() as patch:
        patch.setitem(card.GROUPS, "second", [Row("good", raises(KeyboardInterrupt()))])
        assert run(path) == 130
    assert [row["row"] for row in rows_in(path)] == [row.name for row in FAKES["first"]]
    assert run(path, "--only", "second") == 0
    _, rows = read_rows(path)
    assert [*rows] == [(group, row.name) for group, members in FAKES.items() for row in members]


def test_a_row_is_on_the_disk_before_the_next_one_is_measured(fakes, monkeypatch, tmp_path):
    path, seen = tmp_path / "card.jsonl", []

    def look(card: Card):
        seen.extend(row["row"] for row in rows_in(path))
        return {}

    monkeypatch.setitem(card.GROUPS, "second", [Row("look", look)])
    assert run(path) == 0
    assert seen == [row.name for row in FAKES["first"]]


def test_only_chooses_groups(fakes, tmp_path, capsys):
    assert run(tmp_path / "card.jsonl", "--only", "second") == 0
    assert [(row["group"], row["row"]) for row in rows_in(tmp_path / "card.jsonl")] == [("second", "good")]
    capsys.readouterr()
    assert run(tmp_path / "other.jsonl", "--only", "secnd") == 2
    check_facts(capsys.readouterr().err, "secnd", "second", "first")
    assert not (tmp_path / "other.jsonl").exists()


def test_rows_after_the_time_limit_are_skipped(fakes, cpu_card):
    from svd_stages.svd_core.utils.progress import no_progress

    bench = card.CardBench(cpu_card, ["second", "first"], 60, no_progress)
    rows = list(card.measure_card(bench, clock=functools.partial(next, itertools.count(0, 25))))
    statuses = [row["status"] for row in rows]
    assert statuses[0] == "ok" and statuses[-1] == "skipped"
    check_facts(rows[-1]["reason"], "minutes")


def test_nothing_is_measured_after_the_device_broke_down(fakes, monkeypatch, tmp_path):
    monkeypatch.setattr(card, "is_device_lost", lambda error: "EXECUTION_FAILED" in str(error))
    assert run(tmp_path / "card.jsonl") == 0
    rows = rows_in(tmp_path / "card.jsonl")
    assert [row["status"] for row in rows] == ["ok", "error", *["skipped"] * 6]
    assert all("EXECUTION_FAILED" in row["reason"] and "lost" not in row for row in rows[1:])


def test_a_file_that_cannot_be_written_is_an_error_before_the_first_row(fakes, tmp_path, capsys):
    assert run(tmp_path / "missing" / "card.jsonl") == 4
    assert "| good |" not in capsys.readouterr().out


# the file and its tables


def write(path: Path, *rows: dict, end: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")


def run_line(device: str) -> dict:
    return {"group": "run", "row": "settings", "device": device, "dtype": "float16", "size": "full"}


def step(seconds: float, status: str = "ok") -> dict:
    return {"group": "step", "row": "ours", "status": status, "seconds": seconds}


def test_a_line_that_was_not_completed_is_passed_over(tmp_path):
    write(tmp_path / "a", run_line("H200"), step(0.5), end='{"group": "step", "row": "ours", "sec')
    assert read_rows(tmp_path / "a")[1] == {("step", "ours"): step(0.5)}


def test_the_last_figures_of_the_last_device_count(tmp_path):
    lines = [run_line("A"), step(1.0), run_line("B"), step(2.0), step(3.0), run_line("A"), step(9.0, "skipped")]
    write(tmp_path / "a", *lines)
    assert read_rows(tmp_path / "a") == (run_line("A"), {("step", "ours"): step(1.0)})
    write(tmp_path / "b", *lines[:5])
    assert read_rows(tmp_path / "b")[1] == {("step", "ours"): step(3.0)}


def test_rows_without_a_figure_are_empty_in_the_table(tmp_path, capsys):
    write(tmp_path / "a", run_line("H200"), step(0.5) | {"peak": 2**30})
    assert main(["bench", "--table", str(tmp_path / "a"), "--only", "step"]) == 0
    printed = capsys.readouterr().out
    check_facts(printed, "H200")
    ours, stock = (
        next(line for line in printed.splitlines() if line.startswith(f"| {name} |")) for name in ("ours", "diffusers")
    )
    assert ours.split(" | ")[1] == "0.5" and "1.0 GiB" in ours
    assert set(stock.removeprefix("| diffusers |")) == {" ", "|"}


@pytest.mark.parametrize("text", [None, "", "{}", '[1]\n{"group": "step", "row": "ours"}'])
def test_another_file_is_refused(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "a").write_text(text, encoding="utf-8")
    assert main(["bench", "--table", str(tmp_path / "a")]) == 2
    check_facts(capsys.readouterr().err, str(tmp_path / "a"))


# rows


def test_a_variant_is_timed_alone_where_diffusers_does_not_fit(cpu_card):
    def no_room():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    values = cpu_card.compare(no_room, lambda: torch.ones(2), flops=10**12)
    assert values["seconds"] > 0 and values["tflop_per_s"] == pytest.approx(1 / values["seconds"])
    check_facts(values["note"], "diffusers")
    assert not {"faster", "difference"} & set(values)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        cpu_card.compare(lambda: torch.ones(2), no_room)


def test_short_computations_are_called_several_times_in_a_turn(monkeypatch, cpu_card):
    calls = []

    def timed(variant, device):
        before = len(calls)
        result = variant()
        return 0.004 * (len(calls) - before), result

    monkeypatch.setattr(measuring, "timed", timed)
    timing = measuring.repeat(lambda: calls.append(1), CPU, 3)
    assert (timing.calls, timing.turns) == (5, 3) and len(calls) == 2 + 3 * 5
    assert timing.seconds == pytest.approx(0.004) and timing.first == pytest.approx(0.004)
    calls.clear()
    values = cpu_card.compare(*[lambda: calls.append(1) or torch.ones(1)] * 2, calls=4)
    assert len(calls) == 2 * 2 * 4 and values["seconds"] == pytest.approx(0.004)
    assert values["difference"] == 0 and "error" not in values


def test_models_that_a_row_does_not_use_leave_the_device(cpu_card, monkeypatch):
    moved = []
    monkeypatch.setattr(
        cpu_card, "new_model", lambda name: SimpleNamespace(to=lambda device: moved.append((name, str(device))))
    )
    cpu_card.device = torch.device("meta")
    cpu_card.use("UNet", "VAE")
    cpu_card.use("VAE")
    assert moved == [("UNet", "meta"), ("VAE", "meta"), ("UNet", "cpu"), ("VAE", "meta")]


def test_the_counted_flops_are_those_of_diffusers_modules(cpu_card):
    """A step has both sides of guidance. The two counts agree with those of the full-size models."""
    full = Card(CPU, torch.float32, "full", turns=1)
    assert full.step_flops == pytest.approx(2 * 79.95e12, rel=0.001)
    assert full.decode_flops == pytest.approx(173.6e12, rel=0.001)


def test_a_wrong_decoder_fails_its_check(cpu_card, monkeypatch):
    assert card_rows_machine.check_decoder(cpu_card)["passed"]
    decode = vae_decoder.decode
    monkeypatch.setattr(vae_decoder, "decode", lambda *arguments: decode(*arguments) * 1.001)
    assert not card_rows_machine.check_decoder(cpu_card)["passed"]


def test_what_compiles_eagerly_is_no_figure(monkeypatch):
    monkeypatch.setattr(card_models.COMPILERS[True], "broken", True)
    with pytest.raises(RuntimeError):
        card_models.fail_if_broken(CPU)


def test_nvidia_smi_is_asked_for_the_card_that_is_measured(monkeypatch, tmp_path, cpu_card):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho "H200, 570.1, 143771 MiB"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a1"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert card_rows_machine.clocks(cpu_card)["values"] == {
        "name": "H200", "driver_version": "570.1", "memory.total": "143771 MiB"
    }  # fmt: skip
    assert "--id=GPU-a1" in (tmp_path / "asked").read_text(encoding="utf-8")
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    with pytest.raises(NotMeasured):
        card_rows_machine.clocks(cpu_card)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(NotMeasured):
        card_rows_machine.clocks(cpu_card)


def test_the_page_lists_the_groups_in_order():
    page = (Path(__file__).parents[3] / "docs/reference/bench-card.md").read_text(encoding="utf-8")
    section = page.partition("## Groups")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(GROUPS)
