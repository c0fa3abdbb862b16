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

FOLDER = Path(__file__).parents[1] / "example_workflows"
RECIPES = ("model_offload", "compile_unet", "under_8_gb", "low_vram")
"""image_to_video with SVDModelOptions before the sampler."""
NAMES = ("image_to_video", "more_motion", "one_node", "quickstart_nano", *RECIPES)
WITH_CORE = ("core_loader_our_stages", "our_loader_core_sampler", "reordered_stages")
"""Templates with nodes of ComfyUI's core. tests/comfyui runs them in ComfyUI, this file with compat nodes."""
NOTE = "MarkdownNote"
TITLE_BAR = 30  # pixels above a node's position
LARGE = {"width": 1024, "height": 576, "fit": "stretch"}

# Widget values of the loaded template, by class.
VALUES: dict[str, dict[str, dict[str, Any]]] = {
    "image_to_video": {
        "LoadImage": {"image": "rocket.png"},
        "SVDCheckpointLoader": {"checkpoint": "svd_xt.safetensors", "precision": "auto"},
        "SVDResizeImage": LARGE,
        "SVDCLIPVisionEncode": {"preprocess": "reference"},
        "SVDNoiseAugmentation": {"noise_aug_strength": 0.02, "seed": 0},
        "SVDImageConditioning": {"video_frames": 25},
        "SVDMicroConditioning": {"fps": 7, "motion_bucket_id": 127},
        "SVDEulerSampler": {"steps": 25, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "diffusers"},
        "SVDTemporalVAEDecode": {"mode": "exact", "chunk_size": 8, "context": 2},
        "SaveVideo": {"filename_prefix": "video/svd", "format": "auto", "codec": "auto"},
    },
    "quickstart_nano": {
        "LoadImage": {"image": "rocket.png"},
        "SVDCheckpointLoader": {"checkpoint": "svd-nano", "precision": "auto"},
        "SVDResizeImage": {"width": 128, "height": 128, "fit": "crop"},
        "SVDCLIPVisionEncode": {"preprocess": "reference"},
        "SVDImageConditioning": {"video_frames": 14},
        "SVDMicroConditioning": {"fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.0},
        "SVDEulerSampler": {"seed": 0, "steps": 25, "min_guidance": 1.0, "max_guidance": 2.5, "noise": "comfyui"},
        "SVDTemporalVAEDecode": {"mode": "exact", "chunk_size": 8, "context": 2},
        "SaveVideo": {"filename_prefix": "video/svd-nano", "format": "auto", "codec": "auto"},
        "SaveAnimatedWEBP": {"filename_prefix": "svd-nano", "lossless": True, "quality": 80, "method": "default"},
    },
}
VALUES["one_node"] = {
    **{name: VALUES["image_to_video"][name] for name in ("LoadImage", "SVDCheckpointLoader", "SaveVideo")},
    "SVDImageToVideo": {
        **LARGE, "video_frames": 25, "fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02, "seed": 0,
        "steps": 25, "min_guidance": 1.0, "max_guidance": 3.0, "decode_mode": "exact", "chunk_size": 8, "context": 2,
    },
    "CreateVideo": {"fps": 7},
}  # fmt: skip
VALUES["more_motion"] = {
    **VALUES["image_to_video"],
    "SVDNoiseAugmentation": {"noise_aug_strength": 0.1, "seed": 0},
    "SVDMicroConditioning": {"fps": 7, "motion_bucket_id": 180},
}
OPTIONS = {"memory": "auto", "forward_chunking": "auto", "compile": "off", "attention": "auto"}
for recipe, options, decode in (
    ("model_offload", {"memory": "offload"}, ("windowed", 8)),
    ("compile_unet", {"compile": "regional"}, ("exact", 8)),
    ("under_8_gb", {"memory": "offload"}, ("windowed", 2)),
    ("low_vram", {"memory": "stream"}, ("exact", 8)),
):
    VALUES[recipe] = {
        **VALUES["image_to_video"],
        "SVDModelOptions": {**OPTIONS, **options},
        "SVDTemporalVAEDecode": {"mode": decode[0], "chunk_size": decode[1], "context": 2},
    }

ALL = pytest.mark.parametrize("name", NAMES + WITH_CORE)
EACH = pytest.mark.parametrize("name", NAMES)
LARGE_ONES = pytest.mark.parametrize("name", ["image_to_video", "more_motion", *RECIPES])
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


def inputs_of(prompt: dict[str, dict[str, Any]], class_type: str) -> dict[str, Any]:
    """Return the inputs of the only node of this class."""
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]
    return inputs


def source_of(prompt: dict[str, dict[str, Any]], class_type: str, name: str) -> tuple[str, int]:
    """Return the (class, output slot) that an input is linked to."""
    node_id, slot = inputs_of(prompt, class_type)[name]
    return prompt[node_id]["class_type"], slot


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


@EACH
def test_the_values_land_on_their_inputs(name, prompt):
    for class_type, values in VALUES[name].items():
        inputs = inputs_of(prompt, class_type)
        assert {key: value for key, value in inputs.items() if not isinstance(value, list)} == values, class_type


@LARGE_ONES
def test_seed_strength_and_fps_are_set_in_one_place(name, prompt):
    assert source_of(prompt, "SVDEulerSampler", "seed") == ("SVDNoiseAugmentation", 2)
    assert source_of(prompt, "SVDMicroConditioning", "noise_aug_strength") == ("SVDNoiseAugmentation", 1)
    assert source_of(prompt, "CreateVideo", "fps") == ("SVDMicroConditioning", 2)


def test_the_quickstart_sets_fps_in_one_place_and_conditions_on_no_noise(runtime):
    prompt = to_api(load("quickstart_nano"), NODES)
    for saver in ("CreateVideo", "SaveAnimatedWEBP"):
        assert source_of(prompt, saver, "fps") == ("SVDMicroConditioning", 2)
    assert source_of(prompt, "SVDVAEEncode", "image") == ("SVDResizeImage", 0)
    assert inputs_of(prompt, "SVDMicroConditioning")["noise_aug_strength"] == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "one_node"])
def test_clip_sees_the_image_as_loaded(name, prompt):
    assert source_of(prompt, "SVDCLIPVisionEncode", "image") == ("LoadImage", 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_samples_with_its_options(name, prompt):
    assert source_of(prompt, "SVDEulerSampler", "model") == ("SVDModelOptions", 0)
    assert source_of(prompt, "SVDModelOptions", "model") == ("SVDCheckpointLoader", 0)


def test_more_motion_is_image_to_video_with_two_other_numbers(runtime):
    one, other = (to_api(load(name), NODES) for name in ("image_to_video", "more_motion"))
    changed = {
        (node["class_type"], key): (value, other[node_id]["inputs"][key])
        for node_id, node in one.items()
        for key, value in node["inputs"].items()
        if value != other[node_id]["inputs"][key]
    }
    assert changed == {
        ("SVDNoiseAugmentation", "noise_aug_strength"): (0.02, 0.1),
        ("SVDMicroConditioning", "motion_bucket_id"): (127, 180),
    }


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
