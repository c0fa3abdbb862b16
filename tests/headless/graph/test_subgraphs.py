"""Convert subgraphs, primitives and texts. tests/comfyui/test_page_export.py compares with ComfyUI's page."""

from __future__ import annotations

import copy
import itertools
import logging
import time
from datetime import datetime
from typing import Any

import pytest
import ui_cases
from error_checks import check_facts, raises
from svd_stages.headless import EMBEDDED_NODES
from svd_stages.headless.graph import described_nodes, object_info, to_api
from svd_stages.headless.graph.node_schema import DeclaredInput
from svd_stages.headless.graph.subgraphs import MAX_DEPTH, MAX_NODES_UNFOLDED
from svd_stages.headless.graph.text_substitution import Replacements, choose_alternatives
from svd_stages.headless.graph.ui_graph import UINode
from svd_stages.svd_core.errors import GraphError
from ui_cases import GRAPHS, Sheet, instance, load, save, scale, shrink

from .toys import declared

PROMPT_INPUTS = {"text": ("STRING", {"dynamicPrompts": True}), "clip": ("CLIP",)}
NODES = {
    **EMBEDDED_NODES.classes,
    "ImageBatch": declared({"image1": ("IMAGE",), "image2": ("IMAGE",)}, gives=("IMAGE",)),
    "CLIPTextEncode": declared(PROMPT_INPUTS, gives=("CONDITIONING",)),
}


def converted(name: str) -> dict[str, Any]:
    return to_api(GRAPHS[name], NODES)


def widths(prompt: dict[str, Any]) -> list[Any]:
    return [node["inputs"]["width"] for node in prompt.values() if node["class_type"] == "ImageScale"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_primitive_into_a_widget", [320]),
        ("a_primitive_into_two_widgets", [320]),
        ("a_primitive_behind_a_reroute", [128]),
        ("a_muted_and_a_bypassed_primitive", [320]),
        ("a_primitive_that_leaves_its_subgraph", [128]),
        ("widgets_shown_by_proxy_with_prefixes_and_previews", [352]),
        ("a_subgraph_with_a_promoted_width", [192]),
        ("two_instances_with_values_of_their_own", [64, 256]),
        ("an_instance_without_values_of_its_own", [160]),
        ("a_promoted_width_that_is_linked", [["2", 1]]),
        ("a_port_that_leads_to_two_widgets", [224]),
        ("a_subgraph_in_a_subgraph", [288, 96]),
        ("a_bypassed_instance", []),
        ("a_muted_instance", []),
        ("a_width_shown_by_proxy", [352]),
        ("a_linked_width_shown_by_proxy", [416]),
        ("a_primitive_inside_shown_by_proxy", [480]),
        ("a_nested_width_shown_by_proxy", [544]),
    ],
)
def test_values_reach_their_nodes(name, expected):
    assert widths(converted(name)) == expected


def test_ids_of_nodes_inside_begin_with_the_ids_of_their_instances():
    prompt = converted("a_subgraph_in_a_subgraph")
    inside = [node_id for node_id in prompt if ":" in node_id]
    assert [node_id.count(":") for node_id in inside] == [2, 2]
    assert prompt["3"]["inputs"]["images"] == [inside[1], 0]
    assert prompt[inside[1]]["inputs"]["image"] == [inside[0], 0]
    assert prompt[inside[0]]["inputs"]["image"] == ["1", 0]


def test_every_link_has_a_source_and_the_workflow_is_not_changed():
    for name, workflow in GRAPHS.items():
        before = copy.deepcopy(workflow)
        prompt = to_api(workflow, NODES)
        links = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
        assert all(source in prompt for source, _ in links), name
        assert workflow == before


def test_a_bypassed_instance_passes_on_and_a_muted_one_does_not():
    assert converted("a_bypassed_instance")["3"]["inputs"]["images"] == ["1", 0]
    muted = converted("a_muted_instance")
    assert "images" not in muted["3"]["inputs"] and muted["4"]["inputs"]["images"] == ["1", 0]


def test_an_output_node_inside_runs():
    assert "SaveImage" in {node["class_type"] for node in converted("an_output_node_inside").values()}


def test_a_muted_instance_inside_another_stays_closed():
    prompt = to_api(ui_cases.a_muted_instance_inside(), NODES)
    assert [node["inputs"].get("filename_prefix") for node in prompt.values()].count("quiet") == 0
    assert len(prompt) == 3


def test_a_subgraph_can_return_its_input():
    sheet, inside = Sheet(), Sheet("Straight")
    inside.output("same", "IMAGE", inside.input("picture", "IMAGE"))
    save(sheet, (instance(sheet, inside, None, [load(sheet)]), 0))
    assert to_api(sheet.workflow(), NODES)["3"]["inputs"]["images"] == ["1", 0]


def test_values_of_an_instance_go_to_its_ports_in_order():
    sheet, inside = Sheet(), Sheet("Two sides")
    image, wide, high = inside.input("picture", "IMAGE"), inside.input("wide", "INT"), inside.input("high", "INT")
    inside.output("small", "IMAGE", scale(inside, image, 100, {"width": wide, "height": high}))
    save(sheet, (instance(sheet, inside, [224, 80], [load(sheet), None, None]), 0))
    (box,) = [node for node in to_api(sheet.workflow(), NODES).values() if node["class_type"] == "ImageScale"]
    assert (box["inputs"]["width"], box["inputs"]["height"]) == (224, 80)


def test_only_the_value_of_a_primitive_inside_is_shown():
    workflow = copy.deepcopy(GRAPHS["a_primitive_inside_shown_by_proxy"])
    (box,) = [node for node in workflow["nodes"] if "proxyWidgets" in node["properties"]]
    ((number, _),) = box["properties"]["proxyWidgets"]
    box["properties"]["proxyWidgets"] = [[number, "control_after_generate"], [number, "value"]]
    box["widgets_values"] = ["randomize", 512]
    assert widths(to_api(workflow, NODES)) == [512]


def test_a_primitive_writes_only_into_widgets():
    sheet = Sheet()
    number = sheet.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    sheet.add("ImageScale", ["lanczos", 64, 96, "disabled"], {"width": ("INT", (number, 0))})
    assert widths(to_api(sheet.workflow(), NODES)) == [64]


def test_a_description_states_the_order_of_inputs():
    inputs = {"required": {"second": ["INT", {}], "first": ["INT", {}]}}
    table = described_nodes({"Odd": {"input": inputs, "input_order": {"required": ["first", "second"]}, "output": []}})
    workflow = {"nodes": [{"id": 1, "type": "Odd", "widgets_values": [1, 2]}], "links": []}
    assert to_api(workflow, table.classes)["1"]["inputs"] == {"first": 1, "second": 2}


def test_a_graph_is_converted_by_descriptions_as_by_classes():
    info = object_info(NODES, EMBEDDED_NODES.display_names)
    table = described_nodes(info)
    for name, workflow in GRAPHS.items():
        by_classes = to_api(workflow, NODES, EMBEDDED_NODES.display_names)
        assert to_api(workflow, table.classes, table.display_names) == by_classes, name


@pytest.mark.parametrize(
    "entry", [None, {}, {"input": []}, {"input": {"required": {"a": "INT"}}}, {"input": {}, "output": "IMAGE"}]
)
def test_an_error_in_a_description_names_its_class(entry):
    with raises(GraphError, "graph.object_info", "Odd"):
        described_nodes({"Odd": entry})


def test_two_subgraphs_that_contain_each_other_are_refused():
    one, two = Sheet("One"), Sheet("Two")
    one_in, two_in = one.input("wide", "INT"), two.input("wide", "INT")
    one.add(two.id, [1], {"wide": ("INT", one_in, True)})
    two.add(one.id, [1], {"wide": ("INT", two_in, True)})
    sheet = Sheet()
    instance(sheet, one, [1], [None])
    sheet.subgraphs[two.id] = two
    with raises(GraphError, "graph.shape"):
        to_api(sheet.workflow(), NODES)


@pytest.mark.parametrize(
    ("levels", "copies", "filled", "limit"),
    [(12, 10, True, MAX_NODES_UNFOLDED), (40, 2, False, MAX_NODES_UNFOLDED), (70, 1, False, MAX_DEPTH)],
    ids=["nodes multiply", "empty instances multiply", "nested too deep"],
)
def test_subgraphs_that_unfold_to_too_much_are_refused(levels, copies, filled, limit):
    sheets = [Sheet(f"Level {level}") for level in range(levels)]
    if filled:
        load(sheets[0])
    for below, sheet in itertools.pairwise(sheets):
        for _ in range(copies):
            instance(sheet, below, None, [])
    with raises(GraphError, "graph.too_large", limit):
        to_api(sheets[-1].workflow(), NODES)


def took_seconds(workflow: dict[str, Any]) -> float:
    began = time.process_time()
    to_api(workflow, NODES)
    return time.process_time() - began


def test_many_proxies_ports_and_links_do_not_multiply():
    sheet, inside = Sheet(), Sheet("Wide")
    ports = [inside.input(f"wide{number}", "INT") for number in range(800)]
    boxes = [scale(inside, None, 64, {"width": port})[0] for port in ports]
    for port in inside.ports["inputs"]:
        port["linkIds"] = []
    proxies = [[str(box), "width"] for box in boxes]
    instance(sheet, inside, list(range(800)), [None] * 800, properties={"proxyWidgets": proxies})
    assert took_seconds(sheet.workflow()) < 3


def test_long_chains_of_virtual_nodes_are_followed_once():
    sheet = Sheet()
    sheet.add("SetNode", ["name0"], {"IMAGE": ("IMAGE", load(sheet))})
    at = (sheet.add("GetNode", ["name0"], {}), 0)
    for number in range(1, 1500):
        at = (sheet.add("Reroute", None, {"": ("*", at)}), 0)
        save(sheet, at)
        sheet.add("SetNode", [f"name{number}"], {"IMAGE": ("IMAGE", at)})
        save(sheet, (sheet.add("GetNode", [f"name{number}"], {}), 0))
    assert took_seconds(sheet.workflow()) < 3


@pytest.mark.parametrize(
    ("kind", "mode", "source"), [("Reroute", 0, None), ("ImageScale", ui_cases.BYPASSED, ["1", 0])]
)
def test_a_link_from_a_negative_slot_does_not_count_from_the_end(kind, mode, source):
    """A reroute has no such input. A bypassed node passes an input on by its type."""
    sheet = Sheet()
    box = sheet.add(kind, None, {"mask": ("MASK", None), "image": ("IMAGE", load(sheet))}, mode=mode)
    save(sheet, (box, 0))
    sheet.links[-1]["origin_slot"] = -1
    assert to_api(sheet.workflow(as_objects=True), NODES)["3"]["inputs"].get("images") == source


def test_duplicate_ids_are_refused():
    twice = copy.deepcopy(GRAPHS["a_subgraph_with_a_promoted_width"])
    twice["definitions"]["subgraphs"] *= 2
    inside_id = twice["definitions"]["subgraphs"][0]["nodes"][0]["id"]
    met = copy.deepcopy(GRAPHS["a_subgraph_with_a_promoted_width"])
    met["nodes"][0]["id"] = f"2:{inside_id}"
    link = copy.deepcopy(GRAPHS["two_reroutes_in_a_row"])
    link["links"].append([1, 2, 0, 3, 0, "IMAGE"])
    for workflow, *facts in ((twice,), (met, f"2:{inside_id}"), (link, 1)):
        with raises(GraphError, "graph.shape", *facts):
            to_api(workflow, NODES)


def test_many_promoted_inputs_of_nested_subgraphs_are_read_once_each():
    sheets = [shrink("Deep 0")]
    for level in range(1, 20):
        sheet = Sheet(f"Deep {level}")
        image = sheet.input("picture", "IMAGE")
        wide = [sheet.input(f"wide{port}" if port else "wide", "INT") for port in range(4)]
        instances = [
            instance(sheet, sheets[-1], [7], [image, port] + [None] * (len(sheets[-1].ports["inputs"]) - 2))
            for port in wide
        ]
        sheet.output("small", "IMAGE", (instances[0], 0))
        for each in instances[1:]:
            sheet.nodes[each - sheet.nodes[0]["id"]]["mode"] = ui_cases.MUTED
        sheets.append(sheet)
    root = Sheet()
    inputs = [load(root)] + [None] * (len(sheets[-1].ports["inputs"]) - 1)
    save(root, (instance(root, sheets[-1], [9], inputs), 0))
    assert widths(to_api(root.workflow(), NODES)) == [9]


@pytest.mark.parametrize(
    "damage",
    [
        lambda definition: definition.update(id=None),
        lambda definition: definition.update(nodes=None) or definition.pop("nodes"),
        lambda definition: definition.update(inputs=["picture"]),
        lambda definition: definition.update(outputs={"a": 1}),
        lambda definition: definition["inputs"][0].update(linkIds=7),
    ],
)
def test_a_damaged_subgraph_is_refused(damage):
    workflow = copy.deepcopy(GRAPHS["a_subgraph_with_a_promoted_width"])
    damage(workflow["definitions"]["subgraphs"][0])
    with raises(GraphError, "graph.shape"):
        to_api(workflow, NODES)


def test_a_get_node_in_a_subgraph_reads_a_set_node_outside():
    sheet, inside = Sheet(), Sheet("Listens")
    getter = inside.add("GetNode", ["shared"], {})
    inside.output("small", "IMAGE", scale(inside, (getter, 0)))
    sheet.add("SetNode", ["shared"], {"IMAGE": ("IMAGE", load(sheet))})
    save(sheet, (instance(sheet, inside, None, []), 0))
    prompt = to_api(sheet.workflow(), NODES)
    assert [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "ImageScale"] == [["1", 0]]


# Texts


def box(type: str, **properties: Any) -> UINode:
    return UINode("1", type, 0, 0, None, (), (), [], properties)


NOW = datetime(2026, 3, 7, 9, 5, 1)


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("%KSampler.seed%_%Mine.cfg%", "7_2.5"),
        ("%date:yyyy-MM-dd%/%date:yy-M-d hh_mm_ss%/%date:yy.M.d%", "2026-03-07/26-3-7 09_05_01/26"),
        ("%Alias.name%", "a_b_c"),
        ("%width%x%height% %year%", "%width%x%height% %year%"),
        ("%Gone.seed% %KSampler.gone% %a.b.c%", "%Gone.seed% %KSampler.gone% %a.b.c%"),
        ("100%", "100%"),
        ("%KSampler.whole% %KSampler.on%", "3 true"),
    ],
)
def test_a_prefix_is_filled_in_as_the_page_does_it(prefix, filled):
    sampler = {"seed": 7, "cfg": 2.5, "whole": 3.0, "on": True}
    boxes = [(box("KSampler"), "Mine", sampler), (box("X", **{"Node name for S&R": "Alias"}), "X", {"name": "a/b:c"})]
    replacements = Replacements(boxes, NOW)
    assert replacements.fill_prefix("SaveImage", {"filename_prefix": prefix}) == {"filename_prefix": filled}


def test_only_savers_have_their_prefix_filled_in():
    values = {"filename_prefix": "%KSampler.seed%"}
    assert Replacements([(box("KSampler"), "Mine", {"seed": 7})], NOW).fill_prefix("Other", values) == values


PROMPT = DeclaredInput("text", True, "STRING", {"dynamicPrompts": True})


def test_the_choice_of_alternatives_depends_on_the_text_alone_and_is_logged(caplog):
    text = "a {red|green|{dark|light} blue} ball // not this\n/* nor this */ on \\{sand\\}"
    caplog.set_level(logging.WARNING)
    chosen = choose_alternatives([PROMPT], {"text": text, "other": "{a|b}"}, "3")
    assert chosen == choose_alternatives([PROMPT], {"text": text, "other": "{a|b}"}, "3")
    colours = ("red", "green", "dark blue", "light blue")
    assert chosen["text"] in {f"a {colour} ball \n on {{sand}}" for colour in colours}
    assert chosen["other"] == "{a|b}"
    check_facts(caplog.messages[0], 3, "text", "ball")
    seen = {choose_alternatives([PROMPT], {"text": text}, str(node))["text"] for node in range(60)}
    assert len(seen) == 4


def test_nesting_of_braces_is_limited():
    assert choose_alternatives([PROMPT], {"text": "{" * 5000}, "3")["text"] == "{" * (5000 - 32)
