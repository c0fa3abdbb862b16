"""Test that warnings are in the report, the events, the manifest and a batch's record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from error_checks import check_facts
from faults import change
from PIL import Image
from svd_stages import headless
from svd_stages.headless.batch.graph_rendering import GraphRenderer, RenderSettings
from svd_stages.headless.batch.tasks import Task
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.media.hashing import file_sha256

EXAMPLES = headless.PACKAGE / "example_workflows"
SMALL = {
    "SVDResizeImage": {"width": 64, "height": 64},
    "SVDImageConditioning": {"video_frames": 2},
    "SVDEulerSampler": {"steps": 1},
    "SVDTemporalVAEDecode": {"mode": "windowed", "chunk_size": 2, "context": 0},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder with a small graph and its image. The decoder overflows in float16 in the first frame."""
    (tmp_path / "input").mkdir()
    shutil.copy(EXAMPLES / "rocket.png", tmp_path / "input")
    graph = headless.open_graph(EXAMPLES / "quickstart_nano.json").prompt
    for node in graph.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    graph = {key: node for key, node in graph.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}
    (tmp_path / "graph.json").write_text(json.dumps(graph))

    def overflow(pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype == torch.float16:
            pixels[0, 1, 5, 7] = float("inf")
        return pixels

    change(monkeypatch, "decoder", overflow)
    return tmp_path


WINDOWS = [{"video": 0, "frames": [0, 2]}]
SETTINGS = headless.VideoSettings(width=64, height=64, num_frames=2, steps=1, fit="stretch")


def run(folder: Path, precision: str, capsys) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the graph and return its JSON events and its manifest."""
    options = ["--json", "--device", "cpu", "--precision", precision, "--manifest", str(folder / "manifest.json")]
    folders = ["--input-dir", str(folder / "input"), "--output-dir", str(folder / "output")]
    assert main(["run", str(folder / "graph.json"), *options, *folders]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return events, json.loads((folder / "manifest.json").read_text())


def test_notes_are_events_and_in_the_manifest(folder, capsys, caplog):
    events, manifest = run(folder, "fp16", capsys)
    (event,) = [event for event in events if event["event"] == "note"]
    assert (event["code"], event["windows"]) == ("numbers.float32", WINDOWS)
    (note,) = manifest["notes"]
    assert note == {key: value for key, value in event.items() if key != "event"}
    check_facts(note["message"], 2, "float32")
    assert note["message"] in caplog.text
    assert [path for path in (folder / "output").rglob("*") if path.is_file()]


def test_a_run_without_deviations_has_no_notes_and_its_result_is_the_last_event(folder, capsys):
    events, manifest = run(folder, "fp32", capsys)
    assert manifest["notes"] == [] and "note" not in [event["event"] for event in events]
    hashing = [event for event in events if event.get("stage") == "hashing"]
    assert hashing and not any("node" in event for event in hashing)
    assert events[-1]["event"] == "result"


def test_notes_are_in_the_report(folder):
    notes: list = []
    run_config = headless.RunConfig(device="cpu", precision="fp16", on_note=notes.append)
    report = headless.animate_file(folder / "input" / "rocket.png", folder / "rocket.mp4", SETTINGS, run_config)
    assert [note.code for note in report.notes] == ["image.stretched", "numbers.float32"] and notes == report.notes


def test_notes_about_an_image_are_in_the_report(folder):
    logo = torch.full((64, 64, 4), 200, dtype=torch.uint8)
    logo[:, :32, 3] = 0
    Image.fromarray(logo.numpy(), "RGBA").save(folder / "input" / "logo.png")
    path = folder / "input" / "logo.png"
    (note,) = headless.animate_file(path, folder / "logo.mp4", SETTINGS, headless.RunConfig()).notes
    assert note.code == "image.transparent"
    check_facts(note.text, "logo.png", 0.5)


def test_each_task_of_a_batch_has_its_own_notes(folder):
    graph = json.loads((folder / "graph.json").read_text())
    (image,) = [key for key, node in graph.items() if node["class_type"] == "LoadImage"]
    (saver,) = [key for key, node in graph.items() if node["class_type"].startswith("Save")]
    settings = RenderSettings(
        graph, (image, "image"), {"input_folder": folder / "input", "device": "cpu", "precision": "fp16"}
    )
    renderer = GraphRenderer(vars(settings))

    def notes(name: str, prefix: str) -> list[str]:
        path = folder / "input" / name
        task = Task("0" * 64, name, file_sha256(path), {f"{saver}.filename_prefix": prefix}, None)
        return [note["code"] for note in renderer.render(task, renderer.prepare(task)).notes]

    assert notes("rocket.png", "a") == ["numbers.float32"]
    assert notes("rocket.png", "b") == ["numbers.float32"]
