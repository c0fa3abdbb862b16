"""What a user should know of a run is in its report, its events, its manifest and a batch's record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from error_checks import check_facts
from PIL import Image
from svd_stages import headless
from svd_stages.headless.batch.graph_rendering import GraphRenderer, RenderSettings
from svd_stages.headless.batch.tasks import Task
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.media.hashing import file_sha256
from svd_stages.svd_core.models.components import SVDVae

EXAMPLES = headless.PACKAGE / "example_workflows"
SMALL = {
    "SVDResizeImage": {"width": 64, "height": 64},
    "SVDImageConditioning": {"video_frames": 2},
    "SVDEulerSampler": {"steps": 1},
    "SVDTemporalVAEDecode": {"mode": "windowed", "chunk_size": 2, "context": 0},
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a small graph and its picture, and a decoder whose float16 overflows in the first frame."""
    (tmp_path / "input").mkdir()
    shutil.copy(EXAMPLES / "rocket.png", tmp_path / "input")
    graph = headless.open_graph(EXAMPLES / "quickstart_nano.json").prompt
    for node in graph.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    graph = {key: node for key, node in graph.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    original = SVDVae.decode_clip

    def decode(vae, latents, *arguments, **options):
        pixels = original(vae, latents, *arguments, **options).clone()
        if pixels.dtype == torch.float16:
            pixels[0, 1, 5, 7] = float("inf")
        return pixels

    monkeypatch.setattr(SVDVae, "decode_clip", decode)
    return tmp_path


def folders(here: Path) -> list[str]:
    return ["--input-dir", str(here / "input"), "--output-dir", str(here / "output"), "--device", "cpu"]


WINDOWS = [{"video": 0, "frames": [0, 2]}]


def test_a_run_tells_its_notes_and_its_manifest_keeps_them(here, capsys, caplog):
    manifest = here / "made.json"
    command = ["run", str(here / "graph.json"), "--json", "--precision", "fp16", "--manifest", str(manifest)]
    assert main([*command, *folders(here)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (note,) = [event for event in events if event["event"] == "note"]
    assert (note["code"], note["windows"]) == ("numbers.float32", WINDOWS)
    (kept,) = json.loads(manifest.read_text())["notes"]
    assert kept == {key: value for key, value in note.items() if key != "event"}
    check_facts(kept["message"], 2, "float32")
    assert kept["message"] in caplog.text
    assert [path for path in (here / "output").rglob("*") if path.is_file()]


def test_a_run_as_it_was_asked_has_no_notes(here, capsys):
    manifest = here / "made.json"
    command = ["run", str(here / "graph.json"), "--json", "--precision", "fp32", "--manifest", str(manifest)]
    assert main([*command, *folders(here)]) == 0
    assert json.loads(manifest.read_text())["notes"] == []
    assert '"note"' not in capsys.readouterr().out


def test_from_python_they_are_in_the_report(here):
    told: list = []
    run_config = headless.RunConfig(device="cpu", precision="fp16", on_note=told.append)
    animation = headless.VideoSettings(width=64, height=64, num_frames=2, steps=1)
    report = headless.animate_file(here / "input" / "rocket.png", here / "rocket.mp4", animation, run_config)
    assert [note.code for note in report.notes] == ["image.stretched", "numbers.float32"] and told == report.notes


def test_what_was_done_to_a_picture_is_kept_too(here):
    logo = torch.full((64, 64, 4), 200, dtype=torch.uint8)
    logo[:, :32, 3] = 0
    Image.fromarray(logo.numpy(), "RGBA").save(here / "input" / "logo.png")
    animation = headless.VideoSettings(width=64, height=64, num_frames=2, steps=1)
    made = headless.animate_file(here / "input" / "logo.png", here / "logo.mp4", animation, headless.RunConfig())
    (note,) = made.notes
    assert note.code == "image.transparent"
    check_facts(note.text, "logo.png", 0.5)


def test_each_clip_of_a_batch_has_its_own(here):
    graph = json.loads((here / "graph.json").read_text())
    (image,) = [key for key, node in graph.items() if node["class_type"] == "LoadImage"]
    (saver,) = [key for key, node in graph.items() if node["class_type"].startswith("Save")]
    asked = RenderSettings(graph, (image, "image"), str(here / "input"), device="cpu", precision="fp16")
    renderer = GraphRenderer(asked.as_dict())

    def notes(name: str, prefix: str) -> list[str]:
        path = here / "input" / name
        task = Task("0" * 64, name, file_sha256(path), {f"{saver}.filename_prefix": prefix}, None)
        return [note["code"] for note in renderer.render(task, renderer.prepare(task)).notes]

    assert notes("rocket.png", "a") == ["numbers.float32"]
    assert notes("rocket.png", "b") == ["numbers.float32"]
