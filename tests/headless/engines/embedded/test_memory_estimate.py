"""What a graph would take is known before it runs, and only what surely cannot fit is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from error_checks import check_facts
from svd_stages import headless
from svd_stages.headless.engines.embedded import memory_estimate
from svd_stages.headless.graph.validate import validate
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE, ModelLibrary
from svd_stages.svd_core.errors import GraphError
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

TEMPLATES = headless.PACKAGE / "example_workflows"
GIB = 2**30


def graph(name: str, *settings: str) -> dict[str, Any]:
    return headless.open_graph(
        TEMPLATES / f"{name}.json", ["SVDCheckpointLoader.checkpoint=svd-nano", *settings]
    ).prompt


def refused(prompt: dict[str, Any], here: LocalRuntime | None = None) -> GraphError:
    outputs = [key for key, node in prompt.items() if node["class_type"].startswith(("Save", "Preview"))]
    with pytest.raises(GraphError) as caught:
        memory_estimate.check_memory_budget(prompt, outputs, here or LocalRuntime(device_name="cpu"))
    assert caught.value.code == "graph.too_expensive" and caught.value.exit_status == 2
    return caught.value


def accepted(prompt: dict[str, Any], here: LocalRuntime | None = None) -> None:
    memory_estimate.check_memory_budget(prompt, list(prompt), here or LocalRuntime(device_name="cpu"))


@pytest.fixture
def machine(monkeypatch):
    """Have the machine so many GiB, none of them to swap."""

    def has(gib: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(gib * GIB)))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0))

    return has


@pytest.mark.parametrize("name", ["image_to_video", "one_node", "low_vram", "more_motion", "quickstart_nano"])
def test_what_the_templates_ask_for_is_never_refused(name, machine):
    machine(16)
    accepted(graph(name))


@pytest.mark.parametrize(
    ("name", "sized", "decoder"),
    [
        ("image_to_video", "SVDResizeImage", "SVDTemporalVAEDecode"),
        ("one_node", "SVDImageToVideo", "SVDImageToVideo"),
    ],
)
def test_sixteen_thousand_pixels_by_four_thousand_frames_are_refused_whatever_the_machine(
    name, sized, decoder, machine
):
    machine(100_000)
    counted = "SVDImageToVideo" if name == "one_node" else "SVDImageConditioning"
    error = refused(graph(name, f"{sized}.width=16384", f"{sized}.height=16384", f"{counted}.video_frames=4096"))
    (node_id,) = error.node_errors
    assert error.node_errors[node_id]["class_type"] in (decoder, "SVDEulerSampler")
    check_facts(str(error), node_id, error.node_errors[node_id]["class_type"], 4096, "16384x16384")


def test_frames_that_the_memory_cannot_hold_are_refused_and_those_that_it_just_can_are_not(machine):
    """1000 frames of 1024x576 take 6.6 GiB as float32, whatever the model, which nobody knows here."""
    settings = ("SVDResizeImage.width=1024", "SVDResizeImage.height=576", "SVDImageConditioning.video_frames=1000")
    prompt = graph("image_to_video", *settings, "SVDCheckpointLoader.checkpoint=gone.safetensors")
    machine(6.5)
    check_facts(str(refused(prompt)), "6.6", "6.5")
    machine(6.7)
    accepted(prompt)


def test_a_clip_decoded_whole_takes_more_than_its_frames_and_the_way_out_is_windows(machine):
    """64 first-width numbers of two bytes for each pixel, where windows need twelve bytes."""
    settings = ("SVDResizeImage.width=1024", "SVDResizeImage.height=576", "SVDImageConditioning.video_frames=1000")
    machine(30)
    error = refused(graph("image_to_video", *settings, "SVDTemporalVAEDecode.mode=exact"))
    check_facts(str(error), "SVDTemporalVAEDecode", "windowed")
    accepted(graph("image_to_video", *settings, "SVDTemporalVAEDecode.mode=windowed"))


def test_sampling_is_held_against_the_device(machine):
    machine(1)
    settings = ("SVDResizeImage.width=2048", "SVDResizeImage.height=2048", "SVDImageConditioning.video_frames=60")
    prompt = graph("image_to_video", *settings, "SVDTemporalVAEDecode.mode=windowed")
    check_facts(str(refused(prompt)), "SVDEulerSampler", 60, "2048x2048")


def test_widths_come_from_the_checkpoint_that_is_named_and_without_one_nothing_is_guessed(machine, tmp_path):
    shutil.copy(EMBEDDED_FILE, tmp_path / "mine.safetensors")
    here = LocalRuntime(device_name="cpu", library=ModelLibrary.from_roots([tmp_path]))
    channels = {
        name: memory_estimate.base_channels(here, name) for name in ("mine.safetensors", "svd-nano", "gone", None)
    }
    assert channels == {"mine.safetensors": (64, 64), "svd-nano": (64, 64), "gone": (0, 0), None: (0, 0)}
    settings = ("SVDResizeImage.width=2048", "SVDResizeImage.height=2048", "SVDImageConditioning.video_frames=60")
    prompt = graph("image_to_video", *settings, "SVDTemporalVAEDecode.mode=windowed")
    machine(3)  # 60 frames take 2.8 GiB, sampling them with svd-nano 5.2
    loader = next(node for node in prompt.values() if node["class_type"] == "SVDCheckpointLoader")
    loader["inputs"]["checkpoint"] = "mine.safetensors"
    check_facts(str(refused(prompt, here)), "SVDEulerSampler", "5.2")
    loader["inputs"]["checkpoint"] = "gone.safetensors"
    accepted(prompt, here)


def test_what_no_output_needs_costs_nothing(machine):
    machine(1)
    prompt = graph("image_to_video", "SVDImageConditioning.video_frames=4096")
    refused(prompt)
    memory_estimate.check_memory_budget(prompt, [], LocalRuntime(device_name="cpu"))


def test_every_class_that_the_rules_name_is_one_of_the_table_and_has_the_inputs_that_they_ask_for():
    for class_type in {**memory_estimate.RULES, **memory_estimate.STAGES}:
        declared = {**headless.NODES[class_type].INPUT_TYPES()["required"]}
        declared |= headless.NODES[class_type].INPUT_TYPES().get("optional", {})
        asked: set[str] = set()
        for rule in (
            memory_estimate.RULES.get(class_type),
            getattr(memory_estimate.STAGES.get(class_type), "clip", None),
        ):
            if rule is not None:
                rule(lambda name: asked.add(name))  # noqa: B023
        assert asked <= set(declared), class_type


def test_sizes_that_come_through_primitives_and_other_nodes_are_followed(machine):
    machine(4)
    prompt = graph("image_to_video", "SVDTemporalVAEDecode.mode=windowed")
    resize = next(node for node in prompt.values() if node["class_type"] == "SVDResizeImage")
    prompt["w"] = {"class_type": "PrimitiveInt", "inputs": {"value": 8192}}
    accepted(prompt)
    resize["inputs"] |= {"width": ["w", 0], "height": ["w", 0]}
    check_facts(str(refused(prompt)), 25, "8192x8192")


def test_the_engine_refuses_before_anything_runs_and_validation_needs_no_torch(tmp_path, machine):
    (tmp_path / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", tmp_path / "input")
    around = headless.RunConfig(device="cpu", input_folder=tmp_path / "input", output_folder=tmp_path / "out")
    prompt = graph("image_to_video", "SVDImageConditioning.video_frames=4096", "SVDResizeImage.width=16384")
    engine, events = headless.EmbeddedEngine(around), []
    for attempt in (engine.check, lambda graph: engine.run(graph, lambda *event: events.append(event))):
        with pytest.raises(GraphError) as caught:
            attempt(headless.Graph(prompt))
        assert caught.value.code == "graph.too_expensive"
    assert events == [] and not list(tmp_path.glob("out/*"))
    with use_runtime(around.runtime()):
        assert validate(prompt, headless.NODES).ok  # it is the machine that refuses it


def test_validate_refuses_it_without_torch(tmp_path):
    code = (
        "import sys; from svd_stages.__main__ import main\n"
        f"status = main(['validate', {str(TEMPLATES / 'one_node.json')!r}, '--input-dir', {str(TEMPLATES)!r}, '--set',"
        " 'SVDCheckpointLoader.checkpoint=svd-nano', '--set', 'SVDImageToVideo.width=16384', '--set',"
        " 'SVDImageToVideo.height=16384', '--set', 'SVDImageToVideo.video_frames=4096', '--json'])\n"
        "print(status, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert '"code": "graph.too_expensive"' in ran.stdout and ran.stdout.endswith("2 False\n"), ran.stderr
