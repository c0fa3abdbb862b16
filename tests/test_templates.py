"""The templates: files for ComfyUI's template browser, their graphs, and a run of each without ComfyUI."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from svd_stages.headless import DISPLAY_NAMES, NODES, run_graph
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.headless.graph.convert import to_api
from svd_stages.headless.graph.node_schema import read_declaration, return_types, types_match
from svd_stages.headless.graph.validate import validate
from svd_stages.svd_core.checkpoints.library import ModelLibrary
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

TESTS = Path(__file__).parent
FOLDER = TESTS.parent / "example_workflows"
RECIPES = ("model_offload", "compile_unet", "under_8_gb", "low_vram")
"""image_to_video with SVDModelOptions before the sampler."""
NAMES = ("image_to_video", "more_motion", "one_node", "quickstart_nano", *RECIPES)
WITH_CORE = ("core_loader_our_stages", "our_loader_core_sampler", "reordered_stages")
"""Templates with nodes of ComfyUI's core. tests/comfyui runs them in ComfyUI, this file with compat nodes."""
NOTE = "MarkdownNote"
TITLE_BAR = 30  # pixels above a node's position
VALUES: dict[str, dict[str, dict[str, Any]]] = json.loads((TESTS / "data/template_values.json").read_text())
"""Template -> class -> widget values of its node."""
OPTIONS = {
    "model": ("SVDCheckpointLoader", 0),
    "memory": "auto",
    "forward_chunking": "auto",
    "compile": "off",
    "attention": "auto",
}
OTHER_INPUTS: dict[str, dict[str, dict[str, Any]]] = {
    "more_motion": {
        "SVDNoiseAugmentation": {"noise_aug_strength": 0.1},
        "SVDMicroConditioning": {"motion_bucket_id": 180},
    },
    "model_offload": {"SVDModelOptions": {"memory": "offload"}, "SVDTemporalVAEDecode": {"mode": "windowed"}},
    "compile_unet": {"SVDModelOptions": {"compile": "regional"}},
    "under_8_gb": {
        "SVDModelOptions": {"memory": "offload"},
        "SVDTemporalVAEDecode": {"mode": "windowed", "chunk_size": 2},
    },
    "low_vram": {"SVDModelOptions": {"memory": "stream"}},
}
"""Template -> class -> inputs that differ from those of image_to_video, and from OPTIONS."""

ALL = pytest.mark.parametrize("name", NAMES + WITH_CORE)
RUN_EACH = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "compile_unet" else ())
        for name in (*NAMES, "core_loader_our_stages", "our_loader_core_sampler")
    ],
)


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def runnable(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes that run without ComfyUI."""
    return [node for node in classes(workflow) if node["type"] in NODES]


def classes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes without notes."""
    return [node for node in workflow["nodes"] if node["type"] != NOTE]


@pytest.fixture
def runtime(tmp_path: Path):
    """Use a runtime that has the model and the image of the templates."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "svd_xt.safetensors").touch()
    with use_runtime(LocalRuntime(library=ModelLibrary.from_roots([tmp_path]), input_folder=FOLDER)) as runtime:
        yield runtime


@pytest.fixture
def prompt(name: str, runtime) -> dict[str, dict[str, Any]]:
    return to_api(load(name), NODES, DISPLAY_NAMES)


def inputs_by_class(prompt: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return class -> inputs of its node. A link is the (class, output slot) that it comes from."""
    return {
        node["class_type"]: {
            name: (prompt[value[0]]["class_type"], value[1]) if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for node in prompt.values()
    }


# The files


def test_the_folder_holds_the_templates_their_thumbnails_and_the_image():
    expected = {f"{name}.{kind}" for name in NAMES + WITH_CORE for kind in ("json", "jpg")} | {
        "rocket.png",
        "svd_nano.webp",
    }
    assert {file.name for file in FOLDER.iterdir()} == expected


@ALL
def test_a_thumbnail_is_a_small_wide_jpeg(name):
    file = FOLDER / f"{name}.jpg"
    assert file.stat().st_size < 100_000
    with Image.open(file) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 288))


def test_thumbnails_tell_the_templates_apart():
    small = [Image.open(FOLDER / f"{name}.jpg").convert("L").resize((32, 18)) for name in NAMES + WITH_CORE]
    for left, right in itertools.combinations([list(each.tobytes()) for each in small], 2):
        assert sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(left) > 8


# The saved graph


@ALL
def test_the_format_is_the_pages_own(name):
    workflow = load(name)
    assert workflow["version"] == 0.4
    assert {"last_node_id", "last_link_id", "nodes", "links", "groups", "config", "extra"} < set(workflow)
    keys = {"id", "type", "pos", "size", "flags", "order", "mode", "inputs", "outputs", "properties", "widgets_values"}
    for node in workflow["nodes"]:
        assert keys <= set(node), node["type"]
        assert node["mode"] == 0
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids)
    assert workflow["last_node_id"] == max(ids)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])


@ALL
def test_both_ends_of_a_link_know_it_and_agree_on_its_type(name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    at_inputs, at_outputs = set(), set()
    for link_id, source, slot, target, place, kind in workflow["links"]:
        output, taker = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert output["type"] == kind
        assert types_match(kind, taker["type"])
        assert link_id in output["links"]
        assert link_id == taker["link"]
        at_inputs.add((target, place))
        at_outputs.add(link_id)
    assert len(at_outputs) == len(workflow["links"])
    linked = {(n["id"], i) for n in workflow["nodes"] for i, each in enumerate(n["inputs"]) if each["link"] is not None}
    assert linked == at_inputs
    links = [link for node in workflow["nodes"] for output in node["outputs"] for link in output["links"] or []]
    assert sorted(links) == sorted(at_outputs)


@ALL
def test_the_order_is_one_in_which_the_nodes_can_run(name):
    workflow = load(name)
    order = {node["id"]: node["order"] for node in workflow["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[source] < order[target] for _, source, _, target, _, _ in workflow["links"])


@ALL
def test_slots_are_those_that_the_classes_declare(name, runtime):
    for node in runnable(load(name)):
        node_class: Any = NODES[node["type"]]
        declared = read_declaration(node["type"], node_class).inputs.values()
        sockets = [(each.name, each.kind) for each in declared if not each.is_widget]
        widgets = [each.name for each in declared if each.is_widget]
        saved = [each for each in node["inputs"] if each["name"] != "upload"]
        assert [(each["name"], each["type"]) for each in saved if "widget" not in each] == sockets
        assert [each["name"] for each in saved if "widget" in each] == widgets
        assert all(each["widget"]["name"] == each["name"] for each in saved if "widget" in each)
        optional = [each.name for each in declared if not each.required and not each.is_widget]
        assert [each["name"] for each in saved if each.get("shape") == 7] == optional
        assert [output["type"] for output in node["outputs"]] == return_types(node_class)
        names = getattr(node_class, "RETURN_NAMES", node_class.RETURN_TYPES)
        assert [output["name"] for output in node["outputs"]] == list(names)


@ALL
def test_every_widget_has_its_value_and_seeds_one_more(name, runtime):
    for node in runnable(load(name)):
        declared = read_declaration(node["type"], NODES[node["type"]]).inputs.values()
        slots = [each.name for each in declared if each.is_widget]
        extra = ["upload"] if node["type"] == "LoadImage" else ["after"] if "seed" in slots else []
        assert len(node["widgets_values"]) == len(slots) + len(extra), node["type"]
        if "seed" in slots:
            assert node["widgets_values"][slots.index("seed") + 1] in ("fixed", "randomize")


@ALL
def test_nodes_have_their_name_and_pack(name):
    for node in classes(load(name)):
        pack = "svd-stages" if node["type"].startswith("SVD") else "comfy-core"
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] == pack


def rectangle(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom), including the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + width, y + height


@ALL
def test_nodes_do_not_overlap_and_leave_room_for_a_page_that_draws_them_larger(name):
    for one, other in itertools.combinations(load(name)["nodes"], 2):
        left, top, right, bottom = rectangle(one)
        other_left, other_top, other_right, other_bottom = rectangle(other)
        beside = right + 30 <= other_left or other_right + 30 <= left
        above = bottom + 30 <= other_top or other_bottom + 30 <= top
        assert beside or above, (one["type"], other["type"])


@ALL
def test_every_node_that_runs_stands_in_one_group(name):
    workflow = load(name)
    for node in classes(workflow):
        left, top, right, bottom = rectangle(node)
        groups = [
            group["title"]
            for x, y, width, height, group in ((*group["bounding"], group) for group in workflow["groups"])
            if x <= left and y <= top and right <= x + width and bottom <= y + height
        ]
        assert len(groups) == 1, node["type"]


@ALL
def test_links_go_from_left_to_right_or_to_the_node_below_or_above(name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert all(nodes[link[1]]["pos"][0] <= nodes[link[3]]["pos"][0] for link in workflow["links"])


@ALL
def test_one_note_gives_instructions(name):
    (note,) = [node for node in load(name)["nodes"] if node["type"] == NOTE]
    (text,) = note["widgets_values"]
    assert "**Run**" in text
    assert "rocket.png" in text
    assert 200 < len(text) < 1500


# The converted graph


@ALL
def test_a_template_is_valid_without_notes(name, prompt):
    validation = validate(prompt, NODES)
    assert (validation.error, validation.node_errors, validation.notes) == (None, {}, [])
    outputs = {prompt[node_id]["class_type"] for node_id in validation.outputs}
    assert outputs == ({"SaveVideo", "SaveAnimatedWEBP"} if name == "quickstart_nano" else {"SaveVideo"})


@pytest.mark.parametrize("name", VALUES)
def test_the_values_land_on_their_inputs(name, prompt):
    inputs = inputs_by_class(prompt)
    for class_type, expected in VALUES[name].items():
        values = {key: value for key, value in inputs[class_type].items() if not isinstance(value, tuple)}
        assert values == expected, class_type


@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_a_variant_is_image_to_video_with_a_few_other_inputs(name, prompt):
    expected = inputs_by_class(to_api(load("image_to_video"), NODES, DISPLAY_NAMES))
    if name in RECIPES:
        expected["SVDModelOptions"] = OPTIONS
        expected["SVDEulerSampler"]["model"] = ("SVDModelOptions", 0)
    for class_type, others in OTHER_INPUTS[name].items():
        expected[class_type] = {**expected[class_type], **others}
    assert inputs_by_class(prompt) == expected


@pytest.mark.parametrize("name", ["image_to_video"])
def test_seed_strength_and_fps_are_set_in_one_place_and_clip_sees_the_image_as_loaded(name, prompt):
    inputs = inputs_by_class(prompt)
    assert inputs["SVDEulerSampler"]["seed"] == ("SVDNoiseAugmentation", 2)
    assert inputs["SVDMicroConditioning"]["noise_aug_strength"] == ("SVDNoiseAugmentation", 1)
    assert inputs["CreateVideo"]["fps"] == ("SVDMicroConditioning", 2)
    assert inputs["SVDCLIPVisionEncode"]["image"] == ("LoadImage", 0)


@pytest.mark.parametrize("name", ["quickstart_nano"])
def test_the_quickstart_sets_fps_in_one_place_and_conditions_on_no_noise(name, prompt):
    inputs = inputs_by_class(prompt)
    assert inputs["CreateVideo"]["fps"] == inputs["SaveAnimatedWEBP"]["fps"] == ("SVDMicroConditioning", 2)
    assert inputs["SVDVAEEncode"]["image"] == ("SVDResizeImage", 0)
    assert inputs["SVDCLIPVisionEncode"]["image"] == ("LoadImage", 0)


# The result

FRAMES = 3


def with_small_settings(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with small settings: the built-in model, 64x64, 3 frames, 2 steps."""
    changes = {
        "SVDCheckpointLoader": {0: "svd-nano"},
        "ImageOnlyCheckpointLoader": {0: "svd-nano"},
        "KSampler": {2: 2},
        "SVDResizeImage": {0: 64, 1: 64},
        "SVDImageConditioning": {0: FRAMES},
        "SVDEulerSampler": {2: 2},
        "SVDImageToVideo": {0: 64, 1: 64, 3: FRAMES, 9: 2},
        "SVDTemporalVAEDecode": {1: 2, 2: 1},
    }
    small = copy.deepcopy(workflow)
    for node in classes(small):
        for place, value in changes.get(node["type"], {}).items():
            node["widgets_values"][place] = value
    return small


def mp4_facts(file: Path) -> tuple[int, tuple[int, int], float]:
    """Return the number of decodable frames, the size and the frames per second."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        frames = sum(1 for _ in container.decode(video=0))
        return frames, (stream.width, stream.height), float(stream.average_rate)


@RUN_EACH
def test_a_template_runs_without_comfyui_to_files_that_open_again(name, tmp_path):
    workflow = with_small_settings(load(name))
    report = run_graph(workflow, input_dir=FOLDER, output_dir=tmp_path, device="cpu")
    files = {file.suffix: file for file in report.files}
    assert len(files) == len(report.files)
    assert files[".mp4"].parent == tmp_path / "video"
    assert mp4_facts(files[".mp4"]) == (FRAMES, (64, 64), 7.0)
    assert (".webp" in files) == (name == "quickstart_nano")
    if ".webp" in files:
        with Image.open(files[".webp"]) as animation:
            assert (getattr(animation, "n_frames", 1), animation.size) == (FRAMES, (64, 64))
    for file in report.files:
        assert read_embedded_graphs(file)["workflow"] == workflow
