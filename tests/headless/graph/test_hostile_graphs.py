"""Open bad graphs: each is refused with a code and its faulty node, and nothing runs.

The rows are those of the project's table of threats to graphs. Variants of a fault that one function finds are with
the tests of that function: test_read.py, test_convert.py, test_subgraphs.py, test_validate.py and cases.py.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from error_checks import check_error, check_facts, raises
from svd_stages import headless
from svd_stages.headless.graph.prompt import MAX_NODES
from svd_stages.svd_core.errors import GraphError

TEMPLATES = headless.PACKAGE / "example_workflows"
PAGE = json.loads((TEMPLATES / "image_to_video.json").read_text(encoding="utf-8"))
BASE = headless.open_graph(PAGE, ["SVDCheckpointLoader.checkpoint=svd-nano"]).prompt
ID = {node["class_type"]: node_id for node_id, node in BASE.items()}
SAMPLER, DECODER, RESIZE, LOADER = (
    ID[name] for name in ("SVDEulerSampler", "SVDTemporalVAEDecode", "SVDResizeImage", "SVDCheckpointLoader")
)


@dataclass(frozen=True)
class Row:
    """A bad graph.

    Attributes:
        node: The faulty node, or None.
        make: Returns the content of the file.
        facts: Facts of the message, separated by spaces.
    """

    name: str
    code: str
    node: str | None
    make: Callable[[], bytes | str]
    facts: str = ""


def changed(base: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> str:
    """Return the JSON of a copy after `change`. If `change` returns a value, it replaces the graph."""
    graph = copy.deepcopy(base)
    replacement = change(graph)
    return json.dumps(graph if replacement is None else replacement)


def api(name: str, code: str, node: str | None, change: Callable[[dict[str, Any]], Any], says: str = "") -> Row:
    """Create a row of a changed graph in API format. See `changed`."""
    return Row(name, code, node, partial(changed, BASE, change), says)


def value(node: str, name: str, new: Any, code: str, says: str = "", label: str = "") -> Row:
    """Create a row of one changed input."""
    title = label or f"{BASE[node]['class_type']}.{name} = {json.dumps(new)[:40]}"
    return api(title, code, node, lambda prompt: prompt[node]["inputs"].__setitem__(name, new), says)


def page(name: str, code: str, change: Callable[[dict[str, Any]], Any], says: str = "") -> Row:
    """Create a row of a changed graph in UI format. See `changed`."""
    return Row(name, code, None, partial(changed, PAGE, change), says)


def text(name: str, code: str, content: bytes | str, says: str = "") -> Row:
    """Create a row of a file's content."""
    return Row(name, code, None, lambda: content, says)


def ring(length: int) -> Callable[[dict[str, Any]], Any]:
    """Link many samplers by their latents in a cycle."""

    def change(prompt: dict[str, Any]) -> None:
        for index in range(length):
            inputs = {**BASE[SAMPLER]["inputs"], "latent": [f"r{(index + 1) % length}", 0]}
            prompt[f"r{index}"] = {"class_type": "SVDEulerSampler", "inputs": inputs}
        prompt[DECODER]["inputs"]["latent"] = ["r0", 0]

    return change


def linked(node: str, name: str, *link: Any, says: str = "", code: str = "graph.bad_linked_input") -> Row:
    """Create a row of a bad link."""
    return value(node, name, list(link), code, says, f"{BASE[node]['class_type']}.{name} <- {json.dumps(link)[:40]}")


def too_many_boxes(graph: dict[str, Any]) -> None:
    graph["nodes"] = [{"id": number, "type": "Note"} for number in range(MAX_NODES + 1)]


def contain_itself(graph: dict[str, Any]) -> None:
    graph["nodes"].append({"id": 78, "type": "s"})
    graph["definitions"] = {"subgraphs": [{"id": "s", "nodes": [{"id": 1, "type": "s"}], "links": []}]}


EXPENSIVE = {"width": 16384, "height": 16384}
ROWS = [
    # G1, G2: cycles
    linked(SAMPLER, "latent", SAMPLER, 0, code="graph.dependency_cycle", says="->"),
    api("a ring of two", "graph.dependency_cycle", "r0", ring(2), "r0 r1"),
    api("a ring of two thousand", "graph.dependency_cycle", "r0", ring(2000)),
    # G3 to G6: links
    linked(DECODER, "latent", "99", 0, says="99"),
    linked(DECODER, "latent", "", 0),
    linked(DECODER, "latent", SAMPLER, -1, says="-1"),
    linked(DECODER, "latent", int(SAMPLER), 0, says=f"'{SAMPLER}' {SAMPLER}"),
    linked(DECODER, "latent", SAMPLER, 0, 0),
    linked(DECODER, "latent", LOADER, 0, code="graph.return_type_mismatch", says="LATENT"),
    api("a required link is gone", "graph.required_input_missing", DECODER, lambda p: p[DECODER]["inputs"].pop("latent")
        and None, "latent"),
    # G7, G17: classes
    api("an unknown class", "graph.missing_node_type", SAMPLER, lambda p: p[SAMPLER].update(class_type="SVDEulerSampl"),
        "SVDEulerSampl SVDEulerSampler"),
    api("no class", "graph.missing_node_type", SAMPLER, lambda p: p[SAMPLER].pop("class_type") and None, "class_type"),
    api("a class called as a method", "graph.missing_node_type", SAMPLER,
        lambda p: p[SAMPLER].update(class_type="__class__")),
    api("a node that runs a command", "graph.missing_node_type", "e",
        lambda p: p.update(e={"class_type": "RunCommand", "inputs": {"command": "id"}})),
    # G8: shapes
    api("a class that is a list", "graph.invalid_prompt", None,
        lambda p: p[SAMPLER].update(class_type=["SVDEulerSampler"]), "class_type"),
    api("a node that is a number", "graph.invalid_prompt", None, lambda p: p.update({SAMPLER: 5}), f"#{SAMPLER} int"),
    api("a list at the top", "graph.shape", None, lambda p: [p]),
    api("nothing in it", "graph.prompt_no_outputs", None, lambda p: {}),
    api("nothing that is saved", "graph.prompt_no_outputs", None,
        lambda p: {key: node for key, node in p.items() if not node["class_type"].startswith(("Save", "Preview"))},
        "SaveVideo"),
    # G9: JSON by the letter
    text("NaN", "graph.non_finite", json.dumps({**BASE, "nan": math.nan}), "NaN"),
    text("Latin-1", "graph.encoding", '{"é": 1}'.encode("latin-1")),
    text("UTF-16", "graph.encoding", json.dumps(BASE).encode("utf-16")),
    text("cut in the middle", "graph.json", json.dumps(BASE)[:500]),
    text("empty", "graph.json", b""),
    text("a page of HTML", "graph.json", "<!DOCTYPE html><title>404</title>"),
    text("a pickle", "graph.encoding", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94"),
    # G10: seeds
    value(SAMPLER, "seed", -1, "graph.value_smaller_than_min", "seed 0 -1"),
    value(SAMPLER, "seed", 2**64, "graph.value_bigger_than_max", f"seed {2**64 - 1} {2**64} JavaScript"),
    value(SAMPLER, "seed", 1.9, "graph.invalid_input_type", "seed 1.9"),
    # other values
    value(SAMPLER, "max_guidance", "1e999", "graph.invalid_input_type", "max_guidance 1e999"),
    value(SAMPLER, "noise", "comfy", "graph.value_not_in_list", "comfy comfyui"),
    value(DECODER, "mode", ["exact"], "graph.bad_linked_input"),
    value(LOADER, "checkpoint", "../../etc/passwd", "graph.custom_validation_failed", "../../etc/passwd"),
    value(LOADER, "checkpoint", None, "graph.value_not_in_list", "checkpoint None"),
    value(ID["LoadImage"], "image", None, "graph.value_not_in_list"),
    value(ID["LoadImage"], "image", "../../../etc/passwd", "graph.custom_validation_failed", "../../../etc/passwd"),
    value(ID["LoadImage"], "image", "/etc/hostname", "graph.custom_validation_failed", "/etc/hostname"),
    value(ID["LoadImage"], "image", "a\0b.png", "graph.custom_validation_failed"),
    # G11, G12: sizes
    value(SAMPLER, "steps", [1, 2, 3], "graph.bad_linked_input", "steps [1, 2, 3]"),
    text("a string of a megabyte and more", "graph.too_large", json.dumps({"a": "x" * 1_048_577}), "1048577"),
    text("an escaped string of a megabyte and more", "graph.too_large", '{"a": "' + "\\n" * 600_000 + '"}'),
    text("nested 65 deep", "graph.too_large", '{"a":' * 65 + "1" + "}" * 65, "64"),
    text("nested 100,000 deep", "graph.too_large", "[" * 100_000),
    text("32 MB and a byte", "graph.too_large", b" " * (32 * 2**20 + 1)),
    text("millions of empty objects", "graph.too_large", "[" + "{}," * 5_000_000 + "{}]"),
    text("millions of strings", "graph.too_large", "[" + '"",' * 5_000_000 + '""]'),
    text("millions of quotes", "graph.too_large", '"' * 20_000_000),
    text("millions of closing brackets", "graph.too_large", "]" * 20_000_000),
    api("20,001 nodes", "graph.too_large", None, lambda p: {str(n): {} for n in range(MAX_NODES + 1)}, "20000"),
    page("20,001 boxes", "graph.too_large", too_many_boxes, "20001"),
    # G13: cost
    api("16384 x 16384 pixels x 4096 frames", "graph.too_expensive", SAMPLER, lambda p: p[RESIZE]["inputs"].update(
        EXPENSIVE) or p[ID["SVDImageConditioning"]]["inputs"].update(video_frames=4096), "4096 16384x16384"),
    # the page's format
    page("two nodes of one id", "graph.shape", lambda g: g["nodes"][0].update(id=g["nodes"][1]["id"])),
    page("links that are text", "graph.shape", lambda g: g.update(links="all")),
    page("an unknown box", "graph.missing_node_type", lambda g: g["nodes"].append({"id": 77, "type": "X"}), "77 X"),
    page("a group node", "graph.unsupported", lambda g: g["nodes"].append({"id": 77, "type": "workflow>x"}), "77"),
    page("a subgraph that contains itself", "graph.shape", contain_itself, "78"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bad_graph_is_refused_by_its_code_and_node_at_once_and_nothing_runs(row, run_config, calls, tmp_path):
    path = tmp_path / "graph.json"
    content = row.make()
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    began = time.process_time()
    with pytest.raises(GraphError) as caught:
        headless.EmbeddedEngine(run_config).run(headless.open_graph(path))
    assert time.process_time() - began < 5  # on a slow machine; a second is usual
    error, message = caught.value, str(caught.value)
    check_error(error, row.code, *row.facts.split())
    if row.node is not None:
        check_facts(message, row.node)
        class_type = json.loads(content)[row.node].get("class_type")
        assert error.node_errors[row.node]["class_type"] == class_type
    assert message.isprintable() and len(message) < 2000
    assert calls == [] and not run_config.runtime().output_folder.exists()


def test_ignored_and_filled_in_values_are_in_notes_warnings_and_manifest(run_config, caplog):
    """G15, G16."""
    loader = {"class_type": "LoadImage", "inputs": {"image": "rocket.png", "colour": "red"}}
    scale = {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 32, "height": 32, "crop": "disabled"}}
    scale["inputs"]["upscale_method"] = "bilinear"
    saver = {"class_type": "SaveAnimatedPNG", "inputs": {"images": ["2", 0], "filename_prefix": "x", "fps": 7}}
    engine, graph = headless.EmbeddedEngine(run_config), headless.Graph({"1": loader, "2": scale, "3": saver})
    facts = [(1, "LoadImage", "colour"), (3, "SaveAnimatedPNG", "compress_level", 4)]
    for note, known in zip(notes := engine.check(graph).notes, facts, strict=True):
        check_facts(note, *known)
    report = engine.run(graph)
    assert set(notes) <= {record.getMessage() for record in caplog.records}
    recorded = headless.make_manifest(graph, report, run_config, engine, 1.0)["notes"]
    assert recorded == [{"code": "graph.note", "message": note} for note in notes]
    shutil.rmtree(run_config.runtime().output_folder)


def test_the_maximum_number_of_nodes_is_checked_in_seconds(run_config, calls):
    nodes = {str(n): {"class_type": "PrimitiveInt", "inputs": {"value": n}} for n in range(MAX_NODES - 1)}
    prompt = {**nodes, "p": {"class_type": "PreviewImage", "inputs": {f"x{n}": [n, 0] for n in nodes}}}
    with raises(GraphError, "graph.required_input_missing", "PreviewImage", "images"):
        headless.EmbeddedEngine(run_config).check(headless.Graph(prompt))
