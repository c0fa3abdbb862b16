"""The command fit-schedule with svd-nano."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from svd_stages.headless.cli.console import JsonConsole
from svd_stages.headless.cli.fit_schedule import fit_schedule
from svd_stages.headless.cli.main import main, make_parser
from svd_stages.svd_core.diffusion.schedules import read_sigmas

ROCKET = str(Path(__file__).parents[3] / "example_workflows" / "rocket.png")
SMALL = ["--width", "64", "--height", "64", "--frames", "2"]
QUICK = ["fit-schedule", ROCKET, "--steps", "2", "--fine-steps", "4", *SMALL]


def events_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_best_row_is_printed_and_written_for_animate(tmp_path, capsys):
    row = tmp_path / "row.txt"
    assert main([*QUICK, "--rounds", "1", "-o", str(row), "--json"]) == 0
    events = events_of(capsys.readouterr().out)
    rows = [event for event in events if event["event"] == "row"]
    assert [each["name"] for each in rows][:3] == ["karras", "align_your_steps", "shortest path"]
    (result,) = [event for event in events if event["event"] == "result"]
    assert result["error"] == min(each["error"] for each in rows)
    assert row.read_text() == result["sigmas"] + "\n"
    assert (
        len(read_sigmas(result["sigmas"])) == 3
        and result["sigmas"].startswith("700,")
        and result["sigmas"][-2:] == ",0"
    )
    (plan,) = [event for event in events if event["event"] == "fit"]
    done = [event for event in events if event.get("stage") == "fitting"]
    assert plan["images"] == 1 and done[0]["total"] == done[-1]["done"] == plan["steps"]
    animated = ["animate", ROCKET, "-o", str(tmp_path / "clip.gif"), "--sigmas", row.read_text().strip(), *SMALL]
    assert main(animated) == 0


def test_an_interrupted_fit_answers_with_the_best_row_so_far(tmp_path):
    printed: list[tuple[str, str]] = []

    class Recording(JsonConsole):
        def part(self, name: str, text: str, /, **values) -> None:
            printed.append((name, values.get("sigmas", text)))

    row = tmp_path / "row.txt"
    arguments = make_parser().parse_args([*QUICK, "-o", str(row)])
    with pytest.raises(KeyboardInterrupt):
        fit_schedule(arguments, Recording(is_stopped=lambda: "row" in dict(printed), quiet=True))
    rows = [sigmas for name, sigmas in printed if name == "row"]
    assert len(rows) == 1 and ("best", rows[0]) in printed and row.read_text() == rows[0] + "\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "1"], ["--steps"]),
        (["--steps", "10", "--fine-steps", "12"], ["--fine-steps", "20"]),
        (["--rounds", "-1"], ["--rounds"]),
        (["--sampler", "lcm"], ["--sampler", "euler"]),
        (["--fps", "0"], ["--fps"]),
        (["--model", "svd-nan"], ["svd-nano"]),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options, words, capsys):
    assert main(["fit-schedule", ROCKET, *SMALL, *options]) in (2, 3)
    error = " ".join(capsys.readouterr().err.split())
    assert all(word in error for word in words), error


def test_a_missing_image_is_named(capsys):
    assert main(["fit-schedule", "missing.png"]) == 3
    assert "missing.png" in capsys.readouterr().err
