"""Test the repository as a custom node of a real ComfyUI: it loads, its graphs run, Cancel stops them."""

from __future__ import annotations

import base64
import copy
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from svd_stages.headless import NODES, open_graph
from svd_stages.nodes import NODE_CLASS_MAPPINGS

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
TEMPLATES = REPOSITORY / "example_workflows"
FOLDER = "SVD-Stages-v1.0(copy)"
SPACED = "SVD Stages, täglich [1]"
"""A folder name that ComfyUI can import. With some releases of aiohttp it serves no files from it."""
SMALL = {
    "SVDCheckpointLoader": {"checkpoint": "svd-nano"},
    "SVDResizeImage": {"width": 64, "height": 64},
    "SVDImageToVideo": {"width": 64, "height": 64, "video_frames": 3, "steps": 1},
    "SVDImageConditioning": {"video_frames": 2},
    "SVDEulerSampler": {"steps": 1},
}
"""Inputs that make a template fast, by class."""
NOT_SHIPPED = (".*", "__pycache__", "build", "dist", "*.egg-info", "tests", "node_modules")


WANT_LARGE_FILES = {"ImageOnlyCheckpointLoader", "SVDToComfyModel"}
"""Nodes that svd-nano cannot be used with."""


def convertible_templates() -> list[Path]:
    """Return the templates that run with svd-nano and without nodes of other packages."""
    files = sorted(TEMPLATES.glob("*.json"))
    types = {file: {node["type"] for node in json.loads(file.read_text("utf-8"))["nodes"]} for file in files}
    known = {*NODES, "MarkdownNote"} - WANT_LARGE_FILES
    return [file for file in files if types[file] <= known]


def make_base(base: Path, folder: str) -> Path:
    """Make a ComfyUI base directory with the repository as its only custom node, and two input images."""
    shutil.copytree(REPOSITORY, base / "custom_nodes" / folder, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    (base / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", base / "input")
    Image.radial_gradient("L").convert("RGB").resize((160, 96)).save(base / "input" / "picture.png")
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("comfyui_base"), FOLDER)


@pytest.fixture(scope="module")
def server(comfyui, base):
    with comfyui.serve(base) as server:
        yield server


def nano_graph(steps: int = 2, seed: int = 1) -> dict:
    """Return an API-format graph from an image to three frames of 64x64 with the embedded model."""
    graph = saved_graph("nano_graph")
    graph["sample"]["inputs"]["steps"] = steps
    graph["augment"]["inputs"]["seed"] = seed
    return graph


def saved_graph(name: str) -> dict:
    """Read an API-format graph of tests/data."""
    return json.loads((REPOSITORY / "tests" / "data" / f"{name}.json").read_text("utf-8"))


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def test_the_folder_imports_without_complaint(server):
    log = server.log_text()
    assert FOLDER in log
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log


def test_the_folder_may_have_any_name(comfyui, tmp_path):
    with comfyui.serve(make_base(tmp_path, SPACED)) as server:
        assert set(NODE_CLASS_MAPPINGS) <= set(server.get("/object_info"))
        assert "IMPORT FAILED" not in server.log_text()


def test_comfyui_knows_every_node(server):
    info = server.get("/object_info")
    assert set(NODE_CLASS_MAPPINGS) <= set(info)
    for name in NODE_CLASS_MAPPINGS:
        assert info[name]["description"]
        assert info[name]["python_module"].startswith("custom_nodes.")


@pytest.mark.parametrize("template", convertible_templates(), ids=lambda file: file.stem)
def test_a_converted_template_runs(server, template):
    prompt = copy.deepcopy(dict(open_graph(template).prompt))
    for each in prompt.values():
        each["inputs"].update(SMALL.get(each["class_type"], {}))
    done = server.wait(server.queue(prompt))
    assert done["status"]["status_str"] == "success", done["status"]
    assert any("images" in output for output in done["outputs"].values())


def of_many_windows() -> dict:
    """Return a graph that decodes 200 frames one by one."""
    graph = nano_graph(steps=1, seed=4)
    graph["join"]["inputs"]["video_frames"] = 200
    graph["decode"]["inputs"] |= {"mode": "windowed", "chunk_size": 1, "context": 0}
    return graph


CANCELLED = {"sample": nano_graph(steps=1000, seed=3), "decode": of_many_windows()}
"""The node to stop in -> the graph."""


@pytest.mark.parametrize("node_id", CANCELLED)
def test_cancel_stops_a_node_within_a_step_and_the_next_run_works(server, node_id):
    with server.page(f"cancelling-{node_id}") as messages:
        prompt = server.queue(CANCELLED[node_id], f"cancelling-{node_id}")
        next(each for each in events(messages) if each["type"] == "progress" and each["data"]["node"] == node_id)
        server.post("/interrupt", {})
        done = server.wait(prompt)
    assert dict(done["status"]["messages"])["execution_interrupted"]["node_id"] == node_id
    assert server.wait(server.queue(nano_graph(steps=1, seed=5)))["status"]["status_str"] == "success"


def test_the_page_gets_all_frames_of_every_step(server):
    with server.page("looking") as messages:
        server.queue(nano_graph(steps=3, seed=6), "looking")
        sheets = [message for message in events(messages) if message["type"] == "svd_stages.preview"]
    assert len(sheets) == 3
    for sheet in (each["data"] for each in sheets):
        assert (sheet["node"], sheet["frames"], sheet["width"], sheet["height"]) == ("sample", 3, 8, 8)
        picture = Image.open(io.BytesIO(base64.b64decode(sheet["image"])))
        assert picture.size == (8 * sheet["columns"], 8 * -(-3 // sheet["columns"]))


def events(messages: Iterator[dict]) -> Iterator[dict]:
    """Yield the messages to a page until its prompt ends."""
    for message in messages:
        yield message
        if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
            return


def test_the_template_browser_lists_the_shipped_graphs(server):
    names = {file.stem for file in TEMPLATES.glob("*.json")}
    assert set(server.get("/workflow_templates")[FOLDER]) == names
    for name in names:
        assert server.get(f"/api/workflow_templates/{FOLDER}/{name}.json")["nodes"]
        picture = Image.open(io.BytesIO(server.read(f"/api/workflow_templates/{FOLDER}/{name}.jpg")))
        assert picture.format == "JPEG"


def test_the_page_finds_the_help_of_every_node(server):
    for name in NODE_CLASS_MAPPINGS:
        assert server.read(f"/extensions/{FOLDER}/docs/{name}.md").decode().strip()
