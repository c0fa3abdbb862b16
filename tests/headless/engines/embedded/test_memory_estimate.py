"""Test that graphs that cannot fit into memory are refused before they run, and no others."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from error_checks import check_facts, raises
from svd_stages import headless
from svd_stages.headless.engines.embedded import memory_estimate
from svd_stages.headless.graph.validate import validate
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE, ModelLibrary
from svd_stages.svd_core.errors import GraphError
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

TEMPLATES = headless.PACKAGE / "example_workflows"
GIB = 2**30


def graph(name: str, *settings: str) -> dict[str, Any]:
    """Return a template with svd-nano and other settings."""
    settings = ("SVDCheckpointLoader.checkpoint=svd-nano", *settings)
    return headless.open_graph(TEMPLATES / f"{name}.json", settings).prompt


def sized(width: int, height: int, frames: int, *settings: str) -> dict[str, Any]:
    """Return the template image_to_video with a size and other settings."""
    size = (f"SVDResizeImage.width={width}", f"SVDResizeImage.height={height}")
    return graph("image_to_video", *size, f"SVDImageConditioning.video_frames={frames}", *settings)


def check(prompt: dict[str, Any], outputs: list[str] | None = None, runtime: LocalRuntime | None = None) -> None:
    outputs = list(prompt) if outputs is None else outputs
    memory_estimate.check_memory_budget(prompt, outputs, runtime or LocalRuntime(device_name="cpu"))


def check_refused(prompt: dict[str, Any], *facts: object, runtime: LocalRuntime | None = None) -> GraphError:
    outputs = [key for key, node in prompt.items() if node["class_type"].startswith(("Save", "Preview"))]
    with raises(GraphError, "graph.too_expensive", *facts) as error:
        check(prompt, outputs, runtime)
    assert error.value.exit_status == 2
    return error.value


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets the machine's memory in GiB, without swap."""

    def set_memory(gib: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(gib * GIB)))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0))

    return set_memory


@pytest.mark.parametrize("name", ["image_to_video", "one_node", "low_vram", "more_motion", "quickstart_nano"])
def test_the_templates_are_accepted(name, machine):
    machine(16)
    check(graph(name))


@pytest.mark.parametrize("name", ["image_to_video", "one_node"])
def test_4096_frames_of_16384x16384_are_refused_on_any_machine(name, machine):
    machine(100_000)
    one_node = [f"SVDImageToVideo.{key}" for key in ("width=16384", "height=16384", "video_frames=4096")]
    error = check_refused(graph(name, *one_node) if name == "one_node" else sized(16384, 16384, 4096))
    (node_id,) = error.node_errors
    class_type = error.node_errors[node_id]["class_type"]
    assert class_type in ("SVDImageToVideo", "SVDTemporalVAEDecode", "SVDEulerSampler")
    check_facts(str(error), node_id, class_type, 4096, "16384x16384")


def test_frames_are_refused_only_if_they_exceed_the_memory(machine):
    """1000 frames of 1024x576 take 6.6 GiB as float32. The model is unknown."""
    prompt = sized(1024, 576, 1000, "SVDCheckpointLoader.checkpoint=gone.safetensors")
    machine(6.5)
    check_refused(prompt, "6.6", "6.5")
    machine(6.7)
    check(prompt)


def test_the_error_for_an_exact_decode_suggests_windows(machine):
    """An exact decode takes 64 channels of two bytes for each pixel, windows take twelve bytes."""
    machine(30)
    check_refused(sized(1024, 576, 1000, "SVDTemporalVAEDecode.mode=exact"), "SVDTemporalVAEDecode", "windowed")
    check(sized(1024, 576, 1000, "SVDTemporalVAEDecode.mode=windowed"))


def test_sampling_is_compared_with_the_device(machine):
    machine(1)
    prompt = sized(2048, 2048, 60, "SVDTemporalVAEDecode.mode=windowed")
    check_refused(prompt, "SVDEulerSampler", 60, "2048x2048")


def test_channels_are_read_from_the_checkpoint_and_not_guessed(machine, tmp_path):
    shutil.copy(EMBEDDED_FILE, tmp_path / "mine.safetensors")
    runtime = LocalRuntime(device_name="cpu", library=ModelLibrary.from_roots([tmp_path]))
    expected = {"mine.safetensors": (64, 64), "svd-nano": (64, 64), "gone.safetensors": (0, 0), None: (0, 0)}
    assert {name: memory_estimate.base_channels(runtime, name) for name in expected} == expected
    prompt = sized(2048, 2048, 60, "SVDTemporalVAEDecode.mode=windowed")
    machine(3)  # 60 frames take 2.8 GiB, sampling them with svd-nano 5.2
    loader = next(node for node in prompt.values() if node["class_type"] == "SVDCheckpointLoader")
    loader["inputs"]["checkpoint"] = "mine.safetensors"
    check_refused(prompt, "SVDEulerSampler", "5.2", runtime=runtime)
    loader["inputs"]["checkpoint"] = "gone.safetensors"
    check(prompt, runtime=runtime)


def test_nodes_that_no_output_needs_are_ignored(machine):
    machine(1)
    prompt = graph("image_to_video", "SVDImageConditioning.video_frames=4096")
    check_refused(prompt)
    check(prompt, [])


@pytest.mark.parametrize("class_type", memory_estimate.RULES)
def test_the_rules_read_declared_inputs(class_type):
    types = headless.NODES[class_type].INPUT_TYPES()
    names: set[str] = set()
    memory_estimate.RULES[class_type](names.add)
    assert names <= {*types["required"], *types.get("optional", {})}


def test_sizes_are_followed_through_primitives_and_other_nodes(machine):
    machine(4)
    prompt = graph("image_to_video", "SVDTemporalVAEDecode.mode=windowed")
    resize = next(node for node in prompt.values() if node["class_type"] == "SVDResizeImage")
    prompt["w"] = {"class_type": "PrimitiveInt", "inputs": {"value": 8192}}
    check(prompt)
    resize["inputs"] |= {"width": ["w", 0], "height": ["w", 0]}
    check_refused(prompt, 25, "8192x8192")


def test_the_engine_refuses_before_a_node_runs(tmp_path, machine):
    (tmp_path / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", tmp_path / "input")
    run_config = headless.RunConfig(device="cpu", input_folder=tmp_path / "input", output_folder=tmp_path / "out")
    prompt = graph("image_to_video", "SVDImageConditioning.video_frames=4096", "SVDResizeImage.width=16384")
    engine, events = headless.EmbeddedEngine(run_config), []
    for call in (engine.check, lambda graph: engine.run(graph, lambda *event: events.append(event))):
        with raises(GraphError, "graph.too_expensive"):
            call(headless.Graph(prompt))
    assert events == [] and not list(tmp_path.glob("out/*"))
    with use_runtime(run_config.runtime()):
        assert validate(prompt, headless.NODES).ok  # valid, but too large for this machine
