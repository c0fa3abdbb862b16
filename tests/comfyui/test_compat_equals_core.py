"""Test that compat nodes equal ComfyUI's own: declarations, images, file names and embedded graphs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chain import call
from PIL import Image
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.nodes.compat import COMPAT_CLASS_MAPPINGS, COMPAT_DISPLAY_NAME_MAPPINGS
from svd_stages.svd_core.checkpoints.library import EMBEDDED
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

pytestmark = pytest.mark.comfyui

SCRIPT = Path(__file__).with_name("core_compat.py")
HEIGHT, WIDTH = 40, 56
RNG = np.random.default_rng(3)
SCALINGS = [
    {"upscale_method": method, "width": width, "height": height, "crop": crop}
    for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
    for width, height in ((64, 64), (17, 31), (120, 0), (0, 33), (0, 0))
    for crop in ("disabled", "center")
]
GRAPH = {"prompt": {"1": {"class_type": "é"}}, "extra_pnginfo": {"workflow": {"nodes": [1.5]}, "more": "text"}}
PREFIX = "sub/%width%x%height%"
SAVERS = {
    "SaveImage": {},
    "SaveAnimatedWEBP": {"fps": 7.0, "lossless": True, "quality": 80, "method": "default"},
    "SaveVideo": {"format": "auto", "codec": "auto"},
    "SaveAnimatedPNG": {"fps": 7.0, "compress_level": 4},
    "SaveWEBM": {"fps": 7.0, "codec": "vp9", "crf": 20.0},
}
"""Saving nodes and their inputs besides images and prefix."""
FACTORS = [
    {"upscale_method": method, "scale_by": factor}
    for method in ("bilinear", "area", "lanczos")
    for factor in (1.3, 0.5)
]
BEHAVIOUR = (
    "default", "min", "max", "step", "round", "image_upload", "forceInput", "multiline", "control_after_generate",
)  # fmt: skip
"""The options of an input that change what may be typed or saved; tooltips are ours."""


def make_pictures(folder: Path) -> list[str]:
    """Write one file of every common kind and return their names."""
    folder.mkdir()
    colours = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8))
    palette = Image.fromarray(RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    frames = [Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(4)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    colours.convert("RGB").save(folder / "rgb.png")
    colours.save(folder / "rgba.png")
    colours.convert("L").save(folder / "grey.png")
    colours.convert("LA").save(folder / "grey_alpha.png")
    colours.convert("1").save(folder / "black_and_white.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "palette_transparent.png", transparency=1)
    colours.convert("RGB").save(folder / "photo.jpg", quality=90)
    colours.convert("RGB").save(folder / "turned.jpg", exif=rotated)
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.save(folder / "rgba.webp", lossless=True)
    colours.convert("RGB").save(folder / "rgb.bmp")
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:], lossless=True)
    pages = [frames[0], frames[1].resize((8, 8)), frames[2]]
    pages[0].save(folder / "pages.tiff", save_all=True, append_images=pages[1:])
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def core(comfyui, tmp_path_factory):
    """Return core's definitions, results (`ui`), IS_CHANGED values and arrays, and the input frames."""
    folder = tmp_path_factory.mktemp("core")
    frames = RNG.random((3, HEIGHT, WIDTH, 3), dtype=np.float32)
    frames[1] = np.round(frames[1] * 255) / 255
    pictures = make_pictures(folder / "input")
    questions = {"pictures": pictures, "scalings": SCALINGS, "factors": FACTORS, "prefix": PREFIX, **GRAPH}
    questions |= {"nodes": list(COMPAT_CLASS_MAPPINGS), "savers": SAVERS}
    (folder / "questions.json").write_text(json.dumps(questions))
    np.savez(folder / "questions.npz", frames=frames)
    comfyui.run(SCRIPT, folder)
    return SimpleNamespace(
        folder=folder,
        frames=torch.from_numpy(frames),
        arrays=np.load(folder / "answers.npz"),
        **json.loads((folder / "answers.json").read_text()),
    )


@pytest.fixture
def ours(core, tmp_path):
    """Use a runtime on core's input folder and an own output folder."""
    runtime = LocalRuntime(input_folder=core.folder / "input", output_folder=tmp_path / "output")
    with use_runtime(runtime):
        yield runtime


def behaviour(spec: Any) -> tuple:
    """Return the type and the options that must be equal. Combos of both APIs get one form."""
    kind, options = (*spec, {})[:2]
    choices = options.get("options") if kind == "COMBO" else None
    choices = choices or (kind if isinstance(kind, list) else None)
    return (
        kind if choices is None else [choice for choice in choices if choice != EMBEDDED],
        {name: options[name] for name in BEHAVIOUR if options.get(name, False) is not False},
    )


NEWER = {"ManualSigmas"}
"""Nodes that the oldest supported ComfyUI does not have."""


@pytest.mark.parametrize("node_id", COMPAT_CLASS_MAPPINGS)
def test_a_compat_node_declares_the_inputs_and_outputs_of_core(core, ours, node_id):
    if node_id in NEWER and node_id not in core.definitions:
        pytest.skip("this ComfyUI does not have the node yet")
    node, theirs = COMPAT_CLASS_MAPPINGS[node_id], core.definitions[node_id]
    declared = node.INPUT_TYPES()
    for part in ("required", "optional"):
        mine = [(name, behaviour(spec)) for name, spec in declared.get(part, {}).items()]
        assert mine == [(name, behaviour(spec)) for name, spec in theirs["inputs"].get(part, {}).items()]
    hidden = theirs["inputs"].get("hidden") or {}
    values = hidden.values() if isinstance(hidden, dict) else hidden
    assert set(declared.get("hidden", {}).values()) == {
        value[0] if isinstance(value, list) else value for value in values
    }
    assert list(node.RETURN_TYPES) == theirs["outputs"]
    assert list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == theirs["output_names"]
    assert bool(getattr(node, "OUTPUT_NODE", False)) == theirs["output_node"]
    assert theirs["category"] == node.CATEGORY
    assert COMPAT_DISPLAY_NAME_MAPPINGS[node_id] == (theirs["display_name"] or node_id)


def test_pictures_load_as_in_core(core, ours):
    node = COMPAT_CLASS_MAPPINGS["LoadImage"]
    assert len(core.changed) >= 15
    for name, changed in core.changed.items():
        images, mask = node().run(name)
        assert np.array_equal(images.numpy(), core.arrays[f"image {name}"]), name
        assert np.array_equal(mask.numpy(), core.arrays[f"mask {name}"]), name
        assert node.IS_CHANGED(name) == changed


@pytest.mark.parametrize("index", range(len(FACTORS)))
def test_images_scale_by_a_factor_as_in_core(core, index):
    (scaled,) = call("ImageScaleBy", image=core.frames, **FACTORS[index])
    assert scaled.shape == core.arrays[f"scaled by {index}"].shape
    assert np.abs(scaled.numpy() - core.arrays[f"scaled by {index}"]).max() <= 1e-6


@pytest.mark.parametrize("index", range(len(SCALINGS)), ids=lambda index: "-".join(map(str, SCALINGS[index].values())))
def test_images_scale_as_in_core(core, index):
    (scaled,) = call("ImageScale", image=core.frames, **SCALINGS[index])
    assert scaled.shape == core.arrays[f"scaled {index}"].shape
    assert np.abs(scaled.numpy() - core.arrays[f"scaled {index}"]).max() <= 1e-6


def save(core, node_id: str) -> dict:
    images = {"images": core.frames}
    if node_id == "SaveVideo":
        images = {"video": call("CreateVideo", images=core.frames, fps=7.0)[0]}
    return call(node_id, filename_prefix=PREFIX, **images, **SAVERS[node_id], **GRAPH)


def test_files_have_the_names_results_and_graphs_of_core(core, ours):
    for node_id in SAVERS:
        result = save(core, node_id)
        assert json.loads(json.dumps(result)) == core.results[node_id]
        for entry in result["ui"]["images"]:
            theirs = core.folder / "output" / entry["subfolder"] / entry["filename"]
            mine = ours.output_folder / entry["subfolder"] / entry["filename"]
            graphs = {"prompt": GRAPH["prompt"], "workflow": GRAPH["extra_pnginfo"]["workflow"]}
            assert read_embedded_graphs(mine) == read_embedded_graphs(theirs) == graphs
    assert names(ours.output_folder) == names(core.folder / "output")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_still_images_have_cores_metadata_and_pixels(core, ours):
    save(core, "SaveImage")
    save(core, "SaveAnimatedWEBP")
    for path in (ours.output_folder / "sub").iterdir():
        with Image.open(path) as mine, Image.open(core.folder / "output" / "sub" / path.name) as theirs:
            assert mine.mode == theirs.mode
            assert mine.info.keys() == theirs.info.keys()
            assert dict(mine.getexif()) == dict(theirs.getexif())
            assert getattr(mine, "text", None) == getattr(theirs, "text", None)
            difference = np.asarray(mine, int) - np.asarray(theirs, int)
            assert (difference.min(), difference.max()) in ((0, 0), (0, 1))  # ours is rounded, theirs is cut
