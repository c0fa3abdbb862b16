"""The repository as a folder under a real ComfyUI's custom_nodes: it loads, its graphs run, Cancel stops them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from svd_stages.nodes import NODE_CLASS_MAPPINGS

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
FOLDER = "SVD-Stages v1.0 (copy)"
"""Spaces, a dash, a dot and brackets: the import must not depend on the folder's name."""
NOT_SHIPPED = (".*", "__pycache__", "build", "dist", "*.egg-info", "tests", "node_modules")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A ComfyUI base directory with the repository as its one custom node, and a picture in its input folder."""
    base = tmp_path_factory.mktemp("comfyui_base")
    shutil.copytree(REPOSITORY, base / "custom_nodes" / FOLDER, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    (base / "input").mkdir()
    Image.radial_gradient("L").convert("RGB").resize((160, 96)).save(base / "input" / "picture.png")
    return base


@pytest.fixture(scope="module")
def server(comfyui, base):
    with comfyui.serve(base) as server:
        yield server


def nano_graph(steps: int = 2, seed: int = 1) -> dict:
    """Picture to three frames of 64x64 with the embedded model, API format; ids are words."""
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


def test_the_folder_imports_under_any_name(server):
    said = server.said()
    assert FOLDER in said
    assert "IMPORT FAILED" not in said
    assert "Traceback" not in said


def test_comfyui_knows_every_node(server):
    info = server.get("/object_info")
    assert set(NODE_CLASS_MAPPINGS) <= set(info)
    for name in NODE_CLASS_MAPPINGS:
        assert info[name]["description"]
        assert info[name]["python_module"].startswith("custom_nodes.")


def test_a_graph_writes_a_video_and_an_animation(server, base):
    done = server.wait(server.queue(nano_graph()))
    assert done["status"]["status_str"] == "success", done["status"]
    with Image.open(base / "output" / "nano_00001_.webp") as animation:
        assert (animation.size, animation.n_frames) == ((64, 64), 3)
    assert (base / "output" / "video" / "nano_00001_.mp4").stat().st_size > 0


def test_the_page_sees_every_step(server):
    with server.page("watching") as messages:
        server.queue(nano_graph(steps=4, seed=2), "watching")
        steps = [told["value"] for told in sampler_steps(messages)]
    assert steps == [1, 2, 3, 4]


def test_cancel_stops_the_sampler_within_a_step(server):
    with server.page("cancelling") as messages:
        prompt = server.queue(nano_graph(steps=1000, seed=3), "cancelling")
        next(sampler_steps(messages))
        server.post("/interrupt", {})
        done = server.wait(prompt)
    events = dict(done["status"]["messages"])
    assert events["execution_interrupted"]["node_id"] == "sample"


def sampler_steps(messages: Iterator[dict]) -> Iterator[dict]:
    """The sampler's progress until its prompt ends: {"value", "max"}."""
    for message in messages:
        told = message["data"]
        if message["type"] == "progress" and told["node"] == "sample":
            yield told
        if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
            return


def test_the_template_browser_lists_the_shipped_graphs(server):
    shipped = {file.stem for file in (REPOSITORY / "example_workflows").glob("*.json")}
    assert set(server.get("/workflow_templates").get(FOLDER, [])) == shipped
