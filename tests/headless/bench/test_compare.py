"""`svd-stages bench` on tiny models: rows as they are known, in turns, with errors against the reference."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import torch
from error_checks import check_facts
from svd_stages.headless.bench import compare, measuring, models
from svd_stages.headless.bench.measuring import measure
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.errors import MemoryBudgetError

TINY = models.Size((64, 64, 128, 128), (1, 1, 2, 2), 32, (32, 32, 32, 32), 3, 8, 8)


SIZES = dict(models.SIZES)


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    monkeypatch.setitem(models.SIZES, "small", TINY)


def events(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_the_command_compares_and_counts(capsys):
    assert main(["bench", "--json", "--turns", "2", "--device", "cpu"]) == 0
    machine, *others, result = events(capsys)
    assert machine["event"] == "machine" and 0 <= machine["busy_percent"] <= 100
    assert {"device", "dtype", "torch", "diffusers", "threads"} <= set(result["machine"])
    rows = [each for each in others if each["event"] != "progress"]
    assert [each["event"] for each in rows] == ["counted"] * 6 + ["measured"] * 9
    for row in rows:
        values = result[row["event"]][row["comparison"]][row["variant"]]
        assert row == {name: row[name] for name in ("event", "comparison", "variant")} | values
    assert len(result["measured"]) == 4 and len(result["counted"]) == 3
    check_cache(result["measured"].pop(compare.COMPARISONS["cache"]))
    counted = result["counted"].popitem()[1]
    assert counted["ours"]["flops"] / 3 < counted[compare.CACHED]["flops"] < counted["ours"]["flops"]
    for variants in result["measured"].values():
        assert variants["diffusers"]["error"] < 1e-6 and variants["ours"]["error"] < 1e-4
        assert all(variant["seconds"] > 0 and variant["first"] > 0 for variant in variants.values())
    assert result["measured"]["UNet, one step with guidance"]["ours, pieces compiled"]["error"] < 1e-4
    for variants in result["counted"].values():
        assert variants["ours"]["peak"] < variants["diffusers"]["peak"]


def check_cache(variants: dict) -> None:
    """Check that cached calls at the same input give the result of whole ones."""
    assert list(variants) == ["ours", compare.CACHED]
    assert all(variant["error"] < 1e-5 and variant["seconds"] > 0 for variant in variants.values())


def test_the_step_cache_is_measured_against_whole_steps(capsys):
    assert main(["bench", "--json", "--turns", "1", "--device", "cpu", "--only", "cache"]) == 0
    *_, result = events(capsys)
    assert list(result["measured"]) == [compare.COMPARISONS["cache"]] and result["counted"] == {}
    check_cache(result["measured"][compare.COMPARISONS["cache"]])


def test_a_video_of_the_pipeline_is_diffusers(capsys):
    before = torch.get_num_threads()
    try:
        assert main(["bench", "--json", "--turns", "1", "--device", "cpu", "--only", "video", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    *_, result = events(capsys)
    assert result["counted"] == {} and result["machine"]["threads"] == 1
    ((title, variants),) = result["measured"].items()
    assert title == compare.COMPARISONS["video"] and variants["ours"]["error"] < 1e-4
    assert variants["ours"]["turns"] == 1


def test_the_sizes_can_be_the_size_of_a_video():
    assert all(size.width % 8 == size.height % 8 == 0 for size in SIZES.values())  # multiples of 64 pixels


def test_ctrl_c_keeps_the_rows_so_far(monkeypatch, capsys):
    def stop(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare._Models, "video", stop)
    assert main(["bench", "--turns", "1", "--device", "cpu", "--only", "decode,video"]) == 130
    printed = capsys.readouterr().out
    assert printed.count(f"| {compare.COMPARISONS['decode']} |") == 2 and compare.COMPARISONS["video"] not in printed


def test_an_unknown_part_is_a_usage_error(capsys):
    assert main(["bench", "--only", "step,decoding"]) == 2
    check_facts(capsys.readouterr().err, "decoding", "decode")


@pytest.mark.parametrize("part", ["step", "decode", "video"])
def test_where_the_reference_does_not_fit_errors_are_against_our_float32(monkeypatch, caplog, capsys, part):
    """Diffusers' decoder takes 60 GB in float32 at full size."""

    def no_room():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    original = compare._Models._reference
    monkeypatch.setattr(compare._Models, "_reference", lambda bench, stock, ours: original(bench, no_room, ours))
    assert main(["bench", "--json", "--turns", "1", "--device", "cpu", "--only", part]) == 0
    *_, result = events(capsys)
    (variants,) = result["measured"].values()
    assert variants["diffusers"]["error"] < 1e-4 and variants["ours"]["error"] < 1e-4
    assert [each.levelname for each in caplog.records if each.name == compare.logger.name] == ["WARNING"]


def test_a_comparison_that_fails_loses_no_other(monkeypatch, caplog, capsys):
    def fail(self):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(compare._Models, "step", fail)
    assert main(["bench", "--json", "--turns", "1", "--device", "cpu", "--only", "step,decode"]) == 0
    *_, result = events(capsys)
    assert list(result["measured"]) == [compare.COMPARISONS["decode"]]
    check_facts(caplog.text, compare.COMPARISONS["step"], "CUDNN_STATUS_EXECUTION_FAILED")


def test_a_variant_that_fails_in_a_turn_is_left_out(caplog):
    calls = []

    def second():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: launch failure")
        return torch.ones(1)

    variants = {"a": lambda: torch.ones(1), "b": second}
    results = measure(variants, torch.ones(1).double(), torch.device("cpu"), turns=3)
    assert list(results) == ["a"] and results["a"].turns == 3
    check_facts(caplog.text, "b", "launch failure")


def test_a_variant_of_ours_that_does_not_fit_is_left_out_and_the_first_ends_the_turns():
    def ours():
        raise MemoryBudgetError("no room")

    variants = {"a": lambda: torch.ones(1), "b": ours}
    assert list(measure(variants, torch.ones(1).double(), torch.device("cpu"), turns=2)) == ["a"]
    calls = iter([torch.ones(1)])
    with pytest.raises(RuntimeError):
        measure({"a": lambda: next(calls, None) or fails()}, torch.ones(1).double(), torch.device("cpu"), turns=2)


def fails():
    raise RuntimeError("CUDA error: launch failure")


def test_variants_are_timed_in_turns_and_one_that_does_not_fit_is_left_out(caplog):
    calls = []

    def run(name: str) -> torch.Tensor:
        calls.append(name)
        if name == "c":
            raise torch.cuda.OutOfMemoryError
        return torch.full((2,), 2.0 if name == "a" else 3.0)

    variants = {name: functools.partial(run, name) for name in "abc"}
    results = measure(variants, torch.tensor([2.0, 2.0], dtype=torch.float64), torch.device("cpu"), turns=2)
    assert calls == [*"abc", *"ab", *"ab"]
    assert results["a"].error == 0.0 and results["b"].error == pytest.approx(0.5)
    (record,) = caplog.records
    assert list(results) == ["a", "b"] and record.levelname == "WARNING"
    check_facts(record.getMessage(), "c")
    assert results["a"].peak is None


@pytest.mark.parametrize(("second", "turns"), [([2.0] * 7, 3), ([2.0, 2.0, 3.0, 2.0, 2.0, 2.0, 2.0], 7)])
def test_turns_end_when_the_ratios_agree(monkeypatch, second, turns):
    """`a` takes 1 s in each turn; `b` takes `second`. The first call of each is no turn."""
    seconds = itertools.chain([9.0, 9.0], *zip([1.0] * 7, second, strict=True))
    monkeypatch.setattr(measuring, "timed", lambda variant, device: (next(seconds), variant()))
    variants = {name: functools.partial(torch.ones, 1) for name in "ab"}
    result = measure(variants, torch.ones(1).double(), torch.device("cpu"), 7)["b"]
    assert (result.turns, result.seconds, result.faster, result.first) == (turns, 2.0, 0.5, 9.0)
    assert (result.faster_least, result.faster_most) == (1 / max(second[:turns]), 0.5)
