"""Convert small UI-format graphs, as ComfyUI's page saves them, to API format."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from error_checks import raises
from svd_stages.headless.graph import to_api, validate
from svd_stages.svd_core.errors import GraphError

from .toys import TOYS, Text, declared

SAMPLER = {
    "seed": ("INT", {"default": 0, "control_after_generate": True}),
    "steps": ("INT", {"default": 20}),
    "model": ("MODEL",),
    "noise_seed": ("INT", {"default": 1}),
    "sampler": (["euler", "heun"],),
}
SAMPLER_OPTIONAL = {
    "strength": ("FLOAT", {"default": 0.5}),
    "lora": (["none", "some"],),
    "hint": ("STRING", {"forceInput": True}),
}
NODES = {
    **TOYS,
    "Scale": declared({"image": ("IMAGE",), "scale": ("FLOAT", {"default": 1.5})}, gives=("IMAGE",)),
    "Load": declared(gives=("IMAGE", "MASK")),
    "Blend": declared({"mask": ("MASK",), "image": ("IMAGE",), "other": ("IMAGE",)}, gives=("IMAGE", "MASK")),
    "Save": declared({"images": ("IMAGE",)}, OUTPUT_NODE=True),
    "SaveAny": declared({"anything": ("*",), "union": ("INT,FLOAT",)}, OUTPUT_NODE=True),
    "Sampler": declared(SAMPLER, SAMPLER_OPTIONAL),
    "SeedThenMode": declared({"seed": ("INT", {}), "mode": (["fixed", "increment"],)}),
    "OddWidget": declared({"points": ("POINTS_widget", {}), "count": ("INT", {})}),
}


def box(id: Any, type: str, values: Any = None, inputs: dict[str, Any] | None = None, outputs: Any = (), **more: Any):
    """Create a node as the page saves it. `inputs` is name -> (type, link id), and "widget" for a widget's socket."""
    slots = []
    for name, (kind, link, *widget) in (inputs or {}).items():
        slots.append({"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})})
    fields = {"id": id, "type": type, "pos": [0, 0], "flags": {}, "order": 0, "mode": 0, "inputs": slots}
    fields["outputs"] = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    return {**fields, **({} if values is None else {"widgets_values": values}), **more}


def page(*boxes: dict[str, Any], links: Any = (), **more: Any) -> dict[str, Any]:
    return {"last_node_id": 9, "nodes": list(boxes), "links": [list(link) for link in links], "version": 0.4, **more}


def inputs_of(workflow: dict[str, Any], node_id: str) -> dict[str, Any]:
    return to_api(workflow, NODES)[node_id]["inputs"]


CHAIN = page(
    box(1, "Load", outputs=["IMAGE", "MASK"]),
    box(2, "Scale", [2.0], {"image": ("IMAGE", 5)}, ["IMAGE"], order=1, title="Twice"),
    box(3, "Save", inputs={"images": ("IMAGE", 6)}, order=2),
    links=[[5, 1, 0, 2, 0, "IMAGE"], [6, 2, 0, 3, 0, "IMAGE"]],
)


def test_a_chain_becomes_nodes_with_values_links_and_titles():
    before = copy.deepcopy(CHAIN)
    assert to_api(CHAIN, NODES, {"Save": "Save the picture"}) == {
        "1": {"class_type": "Load", "inputs": {}, "_meta": {"title": "Load"}},
        "2": {"class_type": "Scale", "inputs": {"scale": 2.0, "image": ["1", 0]}, "_meta": {"title": "Twice"}},
        "3": {"class_type": "Save", "inputs": {"images": ["2", 0]}, "_meta": {"title": "Save the picture"}},
    }
    assert before == CHAIN
    assert validate(to_api(CHAIN, NODES), NODES).ok


def test_both_schemas_of_links_are_the_same_graph():
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    objects = [dict(zip(names, link, strict=True)) for link in CHAIN["links"]]
    assert to_api({**CHAIN, "version": 1, "links": objects}, NODES) == to_api(CHAIN, NODES)


def test_nodes_come_in_the_pages_order_then_by_number():
    boxes = [box(each, "Load", order=order) for each, order in ((10, 1), (9, 1), (2, 3), (30, 0), ("x", 1))]
    assert list(to_api(page(*boxes), NODES)) == ["30", "9", "10", "x", "2"]
    assert to_api(page(*reversed(boxes)), NODES) == to_api(page(*boxes), NODES)


@pytest.mark.parametrize(
    ("saved", "values"),
    [
        ([7, "fixed", 30, 8, "randomize", "heun", 0.1, "some"], (7, 30, 8, "heun", 0.1, "some")),
        ([7, 30, 8, "heun", 0.1, "some"], (7, 30, 8, "heun", 0.1, "some")),
        ([7, True, 30, 8, False, "heun", 0.1, "some"], (7, 30, 8, "heun", 0.1, "some")),
        ([7, "increment", 30, 8, "decrement", "heun"], (7, 30, 8, "heun", 0.5, "none")),
        ([7, "fixed", 30, 8, "fixed", "heun", 0.1, "some", "image", None], (7, 30, 8, "heun", 0.1, "some")),
        ([7], (7, 20, 1, "euler", 0.5, "none")),
        ([], (0, 20, 1, "euler", 0.5, "none")),
        (None, (0, 20, 1, "euler", 0.5, "none")),
        ({"seed": 7, "sampler": "heun", "videopreview": {}}, (7, 20, 1, "heun", 0.5, "none")),
    ],
)
def test_saved_values_are_assigned_to_their_widgets(saved, values):
    names = ("seed", "steps", "noise_seed", "sampler", "strength", "lora")
    assert inputs_of(page(box(1, "Sampler", saved)), "1") == dict(zip(names, values, strict=True))


def test_a_seed_control_that_is_an_option_of_the_next_widget_is_its_value():
    assert inputs_of(page(box(1, "SeedThenMode", [7, "increment"])), "1") == {"seed": 7, "mode": "increment"}
    assert inputs_of(page(box(1, "SeedThenMode", [7, "randomize", "fixed"])), "1") == {"seed": 7, "mode": "fixed"}


def test_a_seed_declared_without_a_control_has_no_saved_control():
    nodes = {"Plain": declared({"seed": ("INT", {"control_after_generate": False}), "word": ("STRING", {})})}
    assert to_api(page(box(1, "Plain", [7, "fixed"])), nodes)["1"]["inputs"] == {"seed": 7, "word": "fixed"}


def test_a_type_in_small_letters_is_a_widget():
    assert inputs_of(page(box(1, "OddWidget", ["[]", 3])), "1") == {"points": "[]", "count": 3}


def test_a_list_value_is_wrapped_in_the_result_alone():
    workflow = page(box(1, "OddWidget", [[1, 2], 3]))
    before = copy.deepcopy(workflow)
    assert inputs_of(workflow, "1")["points"] == {"__value__": [1, 2]}
    assert workflow == before


def test_a_node_id_may_have_any_length():
    workflow = page(box("9" * 5000, "OddWidget", ["[]", 3]), box(1, "OddWidget", ["[]", 3]))
    assert list(to_api(workflow, NODES)) == ["1", "9" * 5000]


def sampler_with(link: int | None, *boxes: dict[str, Any], links: Any) -> dict[str, Any]:
    """Create a sampler whose steps widget has a socket."""
    values = [7, "fixed", 30, 8, "fixed", "heun"]
    return page(box(1, "Sampler", values, {"steps": ("INT", link, "widget")}), *boxes, links=links)


NUMBER = box(2, "Number", [4], outputs=["INT"])
TO_STEPS = [1, 2, 0, 1, 0, "INT"]


def test_a_linked_widget_keeps_its_saved_position_and_gets_the_link():
    inputs = inputs_of(sampler_with(1, NUMBER, links=[TO_STEPS]), "1")
    assert inputs["steps"] == ["2", 0] and inputs["noise_seed"] == 8 and inputs["sampler"] == "heun"


@pytest.mark.parametrize("mode", [2, 4])
def test_a_widget_whose_link_leads_nowhere_keeps_its_saved_value(mode):
    assert inputs_of(sampler_with(1, {**NUMBER, "mode": mode}, links=[TO_STEPS]), "1")["steps"] == 30
    assert inputs_of(sampler_with(1, links=[TO_STEPS]), "1")["steps"] == 30
    assert inputs_of(sampler_with(99, NUMBER, links=[TO_STEPS]), "1")["steps"] == 30


def between(*boxes: dict[str, Any], links: Any, wanted: str = "IMAGE") -> Any:
    """Return the input of node 9, whose link is number 1, behind `boxes`."""
    name, kind = ("images", "Save") if wanted == "IMAGE" else ("anything", "SaveAny")
    workflow = page(
        box(5, "Load", outputs=["IMAGE", "MASK"]),
        box(6, "Load", outputs=["IMAGE", "MASK"]),
        box(9, kind, inputs={name: (wanted, 1)}),
        *boxes,
        links=links,
    )
    return inputs_of(workflow, "9").get(name)


def test_a_muted_node_has_no_outputs():
    muted = box(2, "Scale", [1.0], {"image": ("IMAGE", 2)}, ["IMAGE"], mode=2)
    assert between(muted, links=[[1, 2, 0, 9, 0, "IMAGE"], [2, 5, 0, 2, 0, "IMAGE"]]) is None


BLEND = {"mask": ("MASK", 2), "image": ("IMAGE", 3), "other": ("IMAGE", 4)}
INTO_BLEND = [[2, 5, 1, 2, 0, "MASK"], [3, 5, 0, 2, 1, "IMAGE"], [4, 6, 0, 2, 2, "IMAGE"]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "slot", "wanted", "reached"),
    [
        ({"image": ("IMAGE", 3), "other": ("IMAGE", 4)}, ["IMAGE", "IMAGE"], 0, "IMAGE", ["5", 0]),
        ({"image": ("IMAGE", 3), "other": ("IMAGE", 4)}, ["IMAGE", "IMAGE"], 1, "IMAGE", ["6", 0]),
        (BLEND, ["IMAGE", "MASK"], 0, "IMAGE", ["5", 0]),
        (BLEND, ["IMAGE", "MASK"], 1, "*", ["5", 0]),
        (BLEND, ["MASK", "IMAGE"], 0, "*", ["5", 1]),
        ({"mask": ("MASK", 2), "image": ("IMAGE,MASK", 3)}, ["IMAGE"], 0, "IMAGE", ["5", 0]),
        ({"mask": ("MASK", 2), "image": ("image", 3)}, ["IMAGE"], 0, "IMAGE", ["5", 0]),
        ({"mask": ("MASK", 2), "image": ("*", 3)}, ["IMAGE"], 0, "IMAGE", ["5", 0]),
        ({"loose": ("*", 3), "mask": ("MASK", 2), "image": ("IMAGE", 4)}, ["MASK", "IMAGE"], 1, "IMAGE", ["6", 0]),
        ({"image": ("IMAGE", 3), "mask": ("MASK", 2)}, ["MASK"], 0, "IMAGE,MASK", ["5", 1]),
        ({"mask": ("MASK", 2)}, ["IMAGE"], 0, "IMAGE", None),
        ({"image": ("IMAGE", None), "other": ("IMAGE", 4)}, ["IMAGE"], 0, "IMAGE", None),
        ({}, ["IMAGE"], 0, "IMAGE", None),
        ({}, ["IMAGE"], 0, "*", None),
    ],
)
def test_a_bypassed_node_passes_on_the_input_that_fits(inputs, outputs, slot, wanted, reached):
    bypassed = box(2, "Blend", inputs=inputs, outputs=outputs, mode=4)
    assert between(bypassed, links=[[1, 2, slot, 9, 0, wanted], *INTO_BLEND], wanted=wanted) == reached


def test_reroutes_and_bypassed_nodes_are_followed_one_after_the_other():
    first = box(2, "Reroute", inputs={"": ("*", 2)}, outputs=["IMAGE"])
    second = box(3, "Scale", [1.0], {"image": ("IMAGE", 3)}, ["IMAGE"], mode=4)
    third = box(4, "Reroute", inputs={"": ("*", 4)}, outputs=["IMAGE"])
    links = [[1, 2, 0, 9, 0, "IMAGE"], [2, 3, 0, 2, 0, "*"], [3, 4, 0, 3, 0, "IMAGE"], [4, 6, 0, 4, 0, "*"]]
    assert between(first, second, third, links=links) == ["6", 0]


def test_a_set_node_reaches_its_get_nodes_by_name():
    getter = box(2, "GetNode", ["picture"], outputs=["IMAGE"])
    setter = box(3, "SetNode", ["picture"], {"IMAGE": ("IMAGE", 2)}, ["*"])
    other = box(4, "SetNode", ["other"], {"IMAGE": ("IMAGE", 3)}, ["*"])
    links = [[1, 2, 0, 9, 0, "IMAGE"], [2, 5, 0, 3, 0, "IMAGE"], [3, 6, 0, 4, 0, "IMAGE"]]
    assert between(getter, setter, other, links=links) == ["5", 0]
    for setters in ([], [setter, {**setter, "id": 8}]):
        with raises(GraphError, "graph.shape", "GetNode", "picture", len(setters)):
            between(getter, *setters, links=links)


def test_a_cycle_of_reroutes_is_an_error():
    first = box(2, "Reroute", inputs={"": ("*", 2)}, outputs=["IMAGE"])
    second = box(3, "Reroute", inputs={"": ("*", 3)}, outputs=["IMAGE"])
    with raises(GraphError, "graph.shape", 2):
        between(first, second, links=[[1, 2, 0, 9, 0, "*"], [2, 3, 0, 2, 0, "*"], [3, 2, 0, 3, 0, "*"]])


def test_notes_are_left_out_and_a_class_of_that_name_is_not():
    workflow = page(box(1, "Note", ["text"]), box(2, "MarkdownNote", ["# text"]), box(3, "Load"))
    assert list(to_api(workflow, NODES)) == ["3"]
    assert list(to_api(workflow, {**NODES, "Note": Text})) == ["1", "3"]


def test_links_into_inputs_that_no_class_declares_are_kept():
    workflow = page(
        box(1, "Number", [1], outputs=["INT"]),
        box(2, "Kwargs", inputs={"any name": ("INT", 1)}),
        links=[[1, 1, 0, 2, 0, "INT"]],
    )
    assert inputs_of(workflow, "2") == {"any name": ["1", 0]}


@pytest.mark.parametrize(
    ("type", "more"),
    [("workflow>mine", {}), ("workflow/mine", {}), ("mine", {"extra": {"groupNodes": {"mine": {}}}})],
)
def test_group_nodes_are_refused_by_name_unless_they_are_off(type, more):
    with raises(GraphError, "graph.unsupported", 1, "Mine"):
        to_api(page(box(1, type, title="Mine"), **more), NODES)
    for mode in (2, 4):
        assert to_api(page(box(1, type, mode=mode), **more), NODES) == {}


def test_unknown_types_are_listed_with_the_nearest_names():
    with raises(GraphError, "graph.missing_node_type", "Numbr", 1, 2, "Number", "Sav", 3, "Save") as caught:
        to_api(page(box(1, "Numbr"), box(2, "Numbr"), box(3, "Sav"), box(4, "Gone", mode=2)), NODES)
    assert "Gone" not in str(caught.value)


@pytest.mark.parametrize(
    "workflow",
    [
        {"nodes": [5]},
        {"nodes": [{}]},
        {"nodes": [{"id": True, "type": "Load"}]},
        {"nodes": [{"id": 1, "type": 5}]},
        {"nodes": [{"id": 1, "type": "Load", "inputs": 5}]},
        {"nodes": [{"id": 1, "type": "Load", "inputs": [5]}]},
        {"nodes": [{"id": 1, "type": "Load", "outputs": {}}]},
        {"nodes": [{"id": 1, "type": "Load"}, {"id": "1", "type": "Load"}]},
        {"nodes": [], "links": {}},
        {"nodes": [], "links": [5]},
        {"nodes": [], "links": [[1, 2]]},
        {"nodes": [], "links": [[1, None, 0, 2, 0, "INT"]]},
        {"nodes": [], "links": [{"id": 1}]},
        {"nodes": [], "definitions": {"subgraphs": 5}},
        {},
    ],
)
def test_shapes_that_the_page_does_not_save_are_refused(workflow):
    with raises(GraphError, "graph.shape"):
        to_api(workflow, NODES)


def test_values_of_unusual_types_are_read():
    boxes = [
        box(1, "Number", [5], outputs=["INT"], mode="always", order=None, title=7),
        {"id": 2, "type": "SaveAny", "inputs": [{"name": "anything", "type": 0, "link": 3}], "outputs": None},
    ]
    workflow = page(*boxes, links=[[3, 1, 0, 2, 0, "*"]], extra=None, definitions=None)
    workflow["links"].append(None)
    assert to_api(workflow, NODES) == {
        "1": {"class_type": "Number", "inputs": {"value": 5}, "_meta": {"title": "Number"}},
        "2": {"class_type": "SaveAny", "inputs": {"anything": ["1", 0]}, "_meta": {"title": "SaveAny"}},
    }
