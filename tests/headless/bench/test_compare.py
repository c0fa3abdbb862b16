"""`svd-stages bench` on tiny models: complete results, in turns, with errors against the reference."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from error_checks import check_facts
from svd_stages.headless.bench import models
from svd_stages.headless.bench.measuring import measure
from svd_stages.headless.cli.main import main

TINY = models.Size((64, 64, 128, 128), (1, 1, 2, 2), 32, (32, 32, 32, 32), 3, 8, 8)


@pytest.mark.slow
def test_the_command_compares_and_counts(monkeypatch, capsys):
    monkeypatch.setitem(models.SIZES, "small", TINY)
    assert main(["bench", "--json", "--turns", "2", "--device", "cpu"]) == 0
    *progress, result = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [line["done"] for line in progress] == list(range(len(progress)))
    assert progress[-1]["done"] == progress[-1]["total"]
    assert len(result["measured"]) == 3 and len(result["counted"]) == 2
    for variants in result["measured"].values():
        assert variants["diffusers"]["error"] < 1e-6 and variants["ours"]["error"] < 1e-4
        assert all(variant["seconds"] > 0 and variant["first"] > 0 for variant in variants.values())
    assert result["measured"]["UNet, one step with guidance"]["ours, pieces compiled"]["error"] < 1e-4
    for variants in result["counted"].values():
        assert variants["ours"]["peak"] < variants["diffusers"]["peak"]
    assert {"device", "dtype", "torch", "diffusers", "threads"} <= set(result["machine"])


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
