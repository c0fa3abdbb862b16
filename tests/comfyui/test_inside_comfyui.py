"""Test the repository as a custom node of a real ComfyUI: it loads, its graphs run, Cancel stops them."""

from __future__ import annotations

import base64
import copy
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from svd_stages.headless import NODES, open_graph, run_graph
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
    return {
        "load": node("SVDCheckpointLoader", checkpoint="svd-nano", precision="auto"),
        "picture": node("LoadImage", image="picture.png"),
        "resize": node("SVDResizeImage", image=["picture", 0], width=64, height=64, fit="crop"),
        "clip": node("SVDCLIPVisionEncode", clip_vision=["load", 1], image=["picture", 0], preprocess="reference"),
        "augment": node("SVDNoiseAugmentation", image=["resize", 0], noise_aug_strength=0.02, seed=seed),
        "encode": node("SVDVAEEncode", vae=["load", 2], image=["augment", 0]),
        "join": node(
            "SVDImageConditioning", clip_vision_output=["clip", 0], image_latent=["encode", 0], video_frames=3
        ),
        "micro": node(
            "SVDMicroConditioning",
            positive=["join", 0],
            negative=["join", 1],
            fps=7,
            motion_bucket_id=127,
            noise_aug_strength=["augment", 1],
        ),
        "sample": node(
            "SVDEulerSampler",
            model=["load", 0],
            positive=["micro", 0],
            negative=["micro", 1],
            latent=["join", 2],
            seed=["augment", 2],
            steps=steps,
            min_guidance=1.0,
            max_guidance=3.0,
            noise="comfyui",
        ),
        "decode": node(
            "SVDTemporalVAEDecode", vae=["load", 2], latent=["sample", 0], mode="exact", chunk_size=8, context=2
        ),
        "webp": node(
            "SaveAnimatedWEBP",
            images=["decode", 0],
            filename_prefix="nano",
            fps=["micro", 2],
            lossless=True,
            quality=90,
            method="default",
        ),
        "video": node("CreateVideo", images=["decode", 0], fps=["micro", 2]),
        "mp4": node("SaveVideo", video=["video", 0], filename_prefix="video/nano", format="mp4", codec="h264"),
    }


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


@pytest.fixture(scope="module")
def results(server, base) -> Path:
    """Return ComfyUI's output folder after one run of the graph."""
    done = server.wait(server.queue(nano_graph()))
    assert done["status"]["status_str"] == "success", done["status"]
    return base / "output"


def frames_of(animation: Path) -> np.ndarray:
    """Return the frames (F, H, W, 3) from 0 to 255."""
    with Image.open(animation) as opened:
        return np.stack([np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(opened)])


def test_a_graph_writes_an_animation_and_a_video(results):
    assert frames_of(results / "nano_00001_.webp").shape == (3, 64, 64, 3)
    with av.open(results / "video" / "nano_00001_.mp4") as video:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in video.decode(video=0)]
    assert shapes == [(64, 64, 3)] * 3


def test_the_graph_gives_the_same_frames_without_comfyui(results, base, tmp_path):
    report = run_graph(nano_graph(), input_dir=base / "input", output_dir=tmp_path, device="cpu")
    relative = {path.relative_to(tmp_path).as_posix() for path in report.files}
    assert relative == {"nano_00001_.webp", "video/nano_00001_.mp4"}
    difference = np.abs(frames_of(tmp_path / "nano_00001_.webp") - frames_of(results / "nano_00001_.webp"))
    assert difference.max() <= 1  # another release of diffusers may round elsewhere


@pytest.mark.parametrize("template", convertible_templates(), ids=lambda file: file.stem)
def test_a_converted_template_runs(server, template):
    prompt = copy.deepcopy(dict(open_graph(template).prompt))
    for each in prompt.values():
        each["inputs"].update(SMALL.get(each["class_type"], {}))
    done = server.wait(server.queue(prompt))
    assert done["status"]["status_str"] == "success", done["status"]
    assert any("images" in output for output in done["outputs"].values())


def test_the_page_sees_every_step(server):
    with server.page("watching") as messages:
        server.queue(nano_graph(steps=4, seed=2), "watching")
        steps = [step["value"] for step in sampler_steps(messages)]
    assert steps == [1, 2, 3, 4]


def test_cancel_stops_the_sampler_within_a_step(server):
    with server.page("cancelling") as messages:
        prompt = server.queue(nano_graph(steps=1000, seed=3), "cancelling")
        next(sampler_steps(messages))
        server.post("/interrupt", {})
        done = server.wait(prompt)
    events = dict(done["status"]["messages"])
    assert events["execution_interrupted"]["node_id"] == "sample"


def test_cancel_stops_decoding_within_a_window_and_the_next_run_works(server):
    graph = nano_graph(steps=1, seed=4)
    graph["join"]["inputs"]["video_frames"] = 200
    graph["decode"]["inputs"] |= {"mode": "windowed", "chunk_size": 1, "context": 0}
    with server.page("decoding") as messages:
        prompt = server.queue(graph, "decoding")
        next(steps_of("decode", messages))
        server.post("/interrupt", {})
        done = server.wait(prompt)
    assert dict(done["status"]["messages"])["execution_interrupted"]["node_id"] == "decode"
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


def sampler_steps(messages: Iterator[dict]) -> Iterator[dict]:
    """Yield the sampler's progress until its prompt ends: {"value", "max"}."""
    return steps_of("sample", messages)


def steps_of(node: str, messages: Iterator[dict]) -> Iterator[dict]:
    """Yield a node's progress until its prompt ends: {"value", "max"}."""
    return (each["data"] for each in events(messages) if each["type"] == "progress" and each["data"]["node"] == node)


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
