"""For scripts: a run again from the video it made, the manifest, the allow-list, and what a graph lacks."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import svd_stages
from error_checks import check_facts, raises
from faults import node
from svd_stages import headless
from svd_stages.headless.cli.main import main
from svd_stages.headless.graph import object_info
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.errors import GraphError
from svd_stages.svd_core.media.hashing import frames_sha256

TEMPLATES = headless.PACKAGE / "example_workflows"
SMALL = {
    "SVDResizeImage": {"width": 64, "height": 64},
    "SVDImageConditioning": {"video_frames": 3},
    "SVDEulerSampler": {"steps": 1, "seed": 11},
}


def small_graph() -> dict[str, Any]:
    """The quickstart, API format, small."""
    prompt = headless.open_graph(TEMPLATES / "quickstart_nano.json").prompt
    for each in prompt.values():
        each["inputs"] |= SMALL.get(each["class_type"], {})
    return prompt


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Path]:
    """A folder in which `svd-stages run --manifest` has made an mp4 and a webp."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", folder / "input")
    (folder / "graph.json").write_text(json.dumps(small_graph()))
    command = ["run", str(folder / "graph.json"), "--manifest", str(folder / "made.json"), "--device", "cpu"]
    assert main([*command, *folders(folder, "output")]) == 0
    yield folder


def folders(folder: Path, output: str) -> list[str]:
    return ["--input-dir", str(folder / "input"), "--output-dir", str(folder / output)]


def results(folder: Path, output: str = "output") -> dict[str, Path]:
    return {path.suffix: path for path in (folder / output).rglob("*") if path.is_file()}


SAVE = node("SaveImage", images=["1", 0], filename_prefix="made")
PICTURE = {"1": node("LoadImage", image="rocket.png"), "2": SAVE}


# Again from a result


@pytest.mark.parametrize("ending", [".mp4", ".webp"])
def test_a_result_makes_itself_again(made, ending):
    output = f"again{ending}"
    assert main(["run", str(results(made)[ending]), "--device", "cpu", *folders(made, output)]) == 0
    again, first = results(made, output), results(made)
    assert again.keys() == first.keys()
    assert [frames_sha256(again[end]) for end in first] == [frames_sha256(path) for path in first.values()]


def test_the_graph_inside_a_result_is_the_one_that_ran(made):
    for path in results(made).values():
        opened = headless.open_graph(path)
        assert {each["class_type"] for each in opened.prompt.values()} >= {"SVDEulerSampler", "SaveVideo"}
        assert opened.prompt == headless.open_graph(made / "graph.json").prompt


def test_a_picture_without_a_graph_says_so(capsys):
    assert main(["validate", str(TEMPLATES / "rocket.png"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == "graph.not_inside" and "rocket.png" in error["message"]


def with_text(path: Path, **texts: str) -> Path:
    """A PNG that holds these texts."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_what_comfyui_notes_in_a_prompt_while_it_runs_is_dropped(tmp_path):
    noted = json.dumps({"1": {**PICTURE["1"], "is_changed": [float("nan")]}, "2": SAVE})
    assert headless.open_graph(with_text(tmp_path / "a.png", prompt=noted)).prompt == PICTURE


def test_a_workflow_that_cannot_be_read_does_not_spoil_the_prompt(tmp_path, caplog):
    opened = headless.open_graph(with_text(tmp_path / "a.png", prompt=json.dumps(PICTURE), workflow="{"))
    assert opened.prompt == PICTURE and opened.workflow is None
    check_facts(caplog.text, '"workflow"', "a.png")
    with pytest.raises(GraphError):
        headless.open_graph(with_text(tmp_path / "b.png", workflow="{"))


def test_a_webm_makes_itself_again(made):
    webm = node("SaveWEBM", images=["1", 0], codec="vp9", fps=6.0, crf=32.0, filename_prefix="w")
    graph = {"1": PICTURE["1"], "2": webm}
    command = ["--device", "cpu", *folders(made, "webm")]
    (made / "webm.json").write_text(json.dumps(graph))
    assert main(["run", str(made / "webm.json"), *command]) == 0
    (first,) = results(made, "webm").values()
    assert headless.open_graph(first).prompt == graph


# The manifest


def test_the_manifest_says_what_the_result_was_made_from(made):
    told = json.loads((made / "made.json").read_text())
    assert told["engine"] == "embedded" and told["versions"]["torch"] and told["device"] == "cpu"
    assert told["graph"] == headless.open_graph(made / "graph.json").prompt
    assert {name.split(".")[1]: seed for name, seed in told["seeds"].items()} == {"seed": 11}
    (model,) = told["models"]
    (file,) = model["files"]
    assert (model["name"], file["sha256"]) == ("svd-nano", hashlib.sha256(EMBEDDED_FILE.read_bytes()).hexdigest())
    (picture,) = told["inputs"]
    assert picture["sha256"] == hashlib.sha256((TEMPLATES / "rocket.png").read_bytes()).hexdigest()
    files = {file["name"]: file for file in told["files"]}
    assert set(files) == {path.relative_to(made / "output").as_posix() for path in results(made).values()}
    for name, file in files.items():
        path = made / "output" / name
        assert file["frames_sha256"] == frames_sha256(path) and file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_holds_no_path_of_the_machine(made):
    text = (made / "made.json").read_text()
    assert str(made) not in text and str(Path.home()) not in text and str(headless.PACKAGE) not in text


def test_the_frames_have_one_fingerprint_in_lossless_and_another_in_lossy_form(made):
    found = results(made)
    assert frames_sha256(found[".webp"]) != frames_sha256(found[".mp4"])
    assert frames_sha256(made / "made.json") is None


def test_pictures_are_found_where_their_names_say_and_long_texts_are_none(made):
    shutil.copy(TEMPLATES / "rocket.png", made / "output" / "earlier.png")
    load = node("LoadImage", image="earlier.png [output]")
    save = node("SaveImage", images=["1", 0], filename_prefix="long")
    text = node("PrimitiveString", value="x" * 300)
    (made / "long.json").write_text(json.dumps({"1": load, "2": save, "3": text}))
    command = ["run", str(made / "long.json"), "--manifest", str(made / "long_made.json"), *folders(made, "output")]
    assert main(command) == 0
    (picture,) = json.loads((made / "long_made.json").read_text())["inputs"]
    assert picture["node"] == "1" and picture["name"] == "earlier.png"
    (made / "output" / "earlier.png").unlink()
    for file in (made / "output").glob("long*"):
        file.unlink()


def test_a_manifest_that_cannot_be_written_is_said_before_the_run(made, capsys):
    command = ["run", str(made / "graph.json"), "--manifest", str(made / "graph.json" / "none" / "m.json")]
    assert main([*command, *folders(made, "never")]) == 2
    assert not (made / "never").exists() and "graph.json" in capsys.readouterr().err


# The allow-list


def test_a_graph_with_other_nodes_is_refused_by_their_names(capsys):
    command = ["validate", str(TEMPLATES / "image_to_video.json"), "--allow-node", "SVD*"]
    assert main(command) == 2
    said = capsys.readouterr().err
    check_facts(said, "CreateVideo", "LoadImage", "SaveVideo")
    assert "SVDEulerSampler" not in said
    with pytest.raises(GraphError) as refused:
        svd_stages.run_graph(TEMPLATES / "image_to_video.json", allowed=["SVD*", "Load*"])
    assert refused.value.code == "graph.not_allowed" and "LoadImage" not in str(refused.value)


def test_other_nodes_are_refused_before_a_comfyui_is_looked_for(tmp_path):
    with pytest.raises(GraphError) as refused:
        svd_stages.run_graph(TEMPLATES / "image_to_video.json", allowed="SVD*", comfyui=tmp_path / "none")
    assert refused.value.code == "graph.not_allowed"


def test_nodes_inside_subgraphs_and_muted_ones_count():
    inside = {"id": "a1", "nodes": [{"id": 5, "type": "Evil", "mode": 2}], "links": []}
    boxes = [{"id": 1, "type": "a1"}, {"id": 2, "type": "Note"}, {"id": 3, "type": "Reroute"}]
    workflow = {"nodes": boxes, "links": [], "definitions": {"subgraphs": [inside]}}
    with raises(GraphError, "graph.not_allowed", '"Evil"') as refused:
        headless.check_allowed_nodes(workflow, ["SVD*"])
    assert '"Note"' not in str(refused.value) and '"a1"' not in str(refused.value)
    headless.check_allowed_nodes(workflow, ["Ev?l"])


def test_only_what_would_run_counts():
    chain_callbacks = {"output": {"1": {"class_type": "SVDSigmas"}}, "workflow": {"nodes": [{"id": 1, "type": "Evil"}]}}
    headless.check_allowed_nodes(chain_callbacks, ["SVD*"])
    headless.check_allowed_nodes({"prompt": chain_callbacks["output"], "workflow": {"nodes": [{"odd": 1}]}}, ["SVD*"])


def test_a_class_with_the_name_of_a_box_of_the_page_is_no_way_past(monkeypatch, tmp_path):
    class Reroute:
        OUTPUT_NODE = True
        RETURN_TYPES = ()
        INPUT_TYPES = classmethod(lambda cls: {})

    monkeypatch.setitem(headless.NODES, "Reroute", Reroute)
    with raises(GraphError, "graph.not_allowed", '"Reroute"'):
        svd_stages.run_graph({"nodes": [{"id": 1, "type": "Reroute"}], "links": []}, allowed=["SVD*"])


# What is missing


def lacking(graph: Any, folder: Path, *settings: str) -> list[headless.Missing]:
    here = headless.RunConfig(models=folder / "models", input_folder=folder / "input")
    return headless.find_missing(graph, headless.EmbeddedEngine(here), here, settings)


def test_all_that_is_missing_is_named_at_once_with_its_folder_in_a_json_line_each(tmp_path, capsys):
    workflow = json.loads((TEMPLATES / "image_to_video.json").read_text())
    workflow["nodes"] += [{"id": number, "type": "FancyFilter", "order": number, "mode": 0} for number in (50, 51)]
    (tmp_path / "graph.json").write_text(json.dumps(workflow))
    command = ["validate", str(tmp_path / "graph.json"), "--json", "--models", str(tmp_path / "models")]
    assert main([*command, "--input-dir", str(tmp_path / "input")]) == 2
    *lines, error = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["missing"] * 3 and error["event"] == "error"
    found = {line["kind"]: line for line in lines}
    assert (found["node"]["name"], found["node"]["nodes"]) == ("FancyFilter", ["50", "51"])
    model, picture = found["model"], found["input"]
    assert (model["name"], model["folder"]) == ("svd_xt.safetensors", str(tmp_path / "models" / "checkpoints"))
    assert model["url"].endswith("/svd_xt.safetensors")
    assert (picture["name"], picture["folder"]) == ("rocket.png", str(tmp_path / "input"))


def test_nothing_is_missing_where_all_is_there(tmp_path):
    (tmp_path / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", tmp_path / "input")
    assert lacking(small_graph(), tmp_path) == []


def test_what_is_set_is_not_missing(tmp_path):
    workflow = json.loads((TEMPLATES / "image_to_video.json").read_text())
    found = lacking(workflow, tmp_path, "SVDCheckpointLoader.checkpoint=svd-nano", "LoadImage.image=other.png")
    assert [(each.kind, each.name) for each in found] == [("input", "other.png")]


@pytest.mark.parametrize(
    "graph",
    [
        {"1": {"class_type": ["a"], "inputs": {}}},
        {"1": {"class_type": {"a": 1}, "inputs": {}}},
        {"1": 5},
        {"1": {"class_type": "LoadImage", "inputs": None}},
        {"1": None, "2": []},
        {"nodes": [{"id": 1, "type": "LoadImage", "properties": 5, "widgets_values": "x"}]},
    ],
)
def test_an_odd_graph_is_left_to_validation(graph, tmp_path, capsys):
    lacking(graph, tmp_path)
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert main(["validate", str(tmp_path / "graph.json")]) in (2, 3)
    assert capsys.readouterr().err


def test_a_name_too_long_for_a_file_is_a_missing_file(tmp_path, capsys):
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "x" * 300 + ".png"}}, "2": dict(SAVE)}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    assert main(["validate", str(tmp_path / "graph.json"), "--input-dir", str(tmp_path), "--json"]) == 3
    missing = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (missing["event"], missing["kind"]) == ("missing", "input") and missing["name"].startswith("xxx")


def test_two_files_of_one_name_have_each_their_folder(tmp_path, monkeypatch):
    class Both:
        OUTPUT_NODE = True
        RETURN_TYPES = ()
        FILE_INPUTS = ("ckpt_name", "image")
        INPUT_TYPES = classmethod(lambda cls: {"required": {"ckpt_name": (["a"],), "image": (["a"],)}})

    monkeypatch.setitem(headless.NODES, "Both", Both)
    graph = {"1": {"class_type": "Both", "inputs": {"ckpt_name": "x", "image": "x"}}}
    assert {each.kind: each.folder for each in lacking(graph, tmp_path)} == {
        "model": str(tmp_path / "models" / "checkpoints"),
        "input": str(tmp_path / "input"),
    }


def test_a_workflows_word_does_not_name_a_folder_outside(tmp_path):
    workflow = json.loads((TEMPLATES / "image_to_video.json").read_text())
    hostile = copy.deepcopy(workflow)
    for each in hostile["nodes"]:
        for model in each["properties"].get("models", []):
            model["directory"] = "../../etc"
    (model,) = [each for each in lacking(hostile, tmp_path) if each.kind == "model"]
    assert model.folder == str(tmp_path / "models" / "checkpoints")


# Descriptions of nodes from elsewhere


def test_conversion_and_validation_go_by_saved_descriptions(tmp_path, capsys):
    info = object_info(headless.NODES, headless.DISPLAY_NAMES)
    info["FancyFilter"] = {"input": {"required": {"images": ["IMAGE"], "strength": ["FLOAT", {"default": 0.5}]}}}
    info["FancyFilter"]["input"]["required"]["strength"][1] |= {"max": float("inf")}
    info["FancyFilter"] |= {"output": ["IMAGE"], "output_node": True}
    (tmp_path / "info.json").write_text(json.dumps(info))
    workflow = json.loads((TEMPLATES / "image_to_video.json").read_text())
    workflow["nodes"].append({"id": 50, "type": "FancyFilter", "order": 50, "mode": 0, "widgets_values": [0.75]})
    (tmp_path / "graph.json").write_text(json.dumps(workflow))
    described = ["--object-info", str(tmp_path / "info.json")]
    assert main(["convert", str(tmp_path / "graph.json"), "-o", str(tmp_path / "api.json")]) == 2
    assert main(["convert", str(tmp_path / "graph.json"), "-o", str(tmp_path / "api.json"), *described]) == 0
    assert json.loads((tmp_path / "api.json").read_text())["50"]["inputs"] == {"strength": 0.75}
    capsys.readouterr()
    assert main(["validate", str(tmp_path / "graph.json"), *described, "--json"]) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    (fault,) = error["node_errors"]["50"]["errors"]
    assert (fault["type"], fault["extra_info"]["input_name"]) == ("required_input_missing", "images")
