"""The command `compare-samplers` on svd-nano: its rows, files, and what an interruption keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from svd_stages import headless
from svd_stages.headless.animation.sampler_table import CANDIDATES
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.pipeline import PRESETS
from svd_stages.svd_core.sampler_comparison import ComparedVideo

ROCKET = str(headless.PACKAGE / "example_workflows" / "rocket.png")
QUICK = ("--width", "64", "--height", "64", "--frames", "2", "--steps", "4", "--seed", "5")
CACHED = "euler:karras:3:guidance=0-30:cache=2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(capsys, *arguments: str, status: int = 0) -> dict[str, list[dict]]:
    """Run the command with --json, and return its events by name."""
    assert main(["compare-samplers", ROCKET, *QUICK, *arguments, "--json"]) == status
    named: dict[str, list[dict]] = {}
    for line in capsys.readouterr().out.splitlines():
        event = json.loads(line)
        named.setdefault(event["event"], []).append(event)
    return named


def test_rows_name_their_preset_and_count_their_calls(capsys):
    seen = events(capsys, "--candidate", "fast", "--candidate", CACHED, "--candidate", "reference")
    (start,), (result,) = seen["comparison"], seen["result"]
    rows = seen["compared"]
    texts = [
        "dpmpp_2m:karras:4",
        "euler:karras:25",
        "euler:align_your_steps:10:guidance=0.28-5.42",
        CACHED.replace("0-30", "0.0-30.0"),
    ]
    assert [row["candidate"] for row in rows] == texts and start["candidates"] == texts[1:]
    assert [row["preset"] for row in rows] == [None, "reference", "fast", None]
    assert [(row["calls"], row["cached"]) for row in rows] == [(8, 0), (50, 0), (14, 0), (5, 2)]
    assert start["calls"] == sum(row["calls"] for row in rows) == 77
    progress = [event for event in seen["progress"] if event["stage"] == "comparing"]
    assert [progress[0]["done"], progress[-1]["done"], progress[-1]["total"]] == [0, 77, 77]
    assert [row["converged"] for row in rows] == [True, False, False, False] and rows[0]["error"] == 0.0
    assert [rows[0]["of_reference"], rows[1]["of_reference"]] == [None, 1.0]
    assert rows[2]["of_reference"] == pytest.approx(rows[2]["error"] / rows[1]["error"])
    assert result["fastest"] is None or result["fastest"]["error"] <= rows[1]["error"]
    assert result["files"] == []


def test_saved_videos_hold_the_graph_that_makes_them_again(capsys, here):
    seen = events(capsys, "--candidate", CACHED, "-o", "samplers")
    written = [Path(file) for event in seen["wrote"] for file in event["files"]]
    assert [path.name for path in written] == [
        "rocket_dpmpp_2m_karras_4.mp4",
        "rocket_euler_karras_25.mp4",
        "rocket_euler_karras_3_guidance=0.0-30.0_cache=2.mp4",
    ]
    assert seen["result"][0]["files"] == [str(path) for path in written]
    for path in (written[0], written[2]):
        report = headless.run_graph(path, input_dir=Path(ROCKET).parent, output_dir="again", background=0.5)
        assert report.files[0].read_bytes() == path.read_bytes()
    again = events(capsys, "--candidate", CACHED, "-o", "samplers")["result"][0]["files"]
    assert not set(again) & set(map(str, written)) and all(path.is_file() for path in written)


def test_an_interruption_keeps_the_printed_rows_and_no_half_file(capsys, here, monkeypatch):
    sample, calls = ComparedVideo.sample, []

    def stopped(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, *arguments)

    monkeypatch.setattr(ComparedVideo, "sample", stopped)
    assert main(["compare-samplers", ROCKET, *QUICK, "-o", "samplers"]) == 130
    printed = capsys.readouterr().out
    assert [text in printed for text in ("dpmpp_2m, karras, 4", "euler, karras, 25", "align_your_steps")] == [
        True,
        True,
        False,
    ]
    assert sorted(path.name for path in Path("samplers").iterdir()) == [
        "rocket_dpmpp_2m_karras_4.mp4", "rocket_euler_karras_25.mp4",
    ]  # fmt: skip


def test_the_default_is_small_and_has_the_presets():
    assert len(CANDIDATES) <= 8 and len(set(CANDIDATES)) == len(CANDIDATES)
    assert {candidate.preset for candidate in CANDIDATES} >= {"reference", "balanced", "fast"} & PRESETS.keys()
