"""Set values by NODE.INPUT=VALUE."""

from __future__ import annotations

import copy

import pytest
from error_checks import raises
from svd_stages.headless.graph import apply_settings, set_value
from svd_stages.svd_core.errors import GraphError

from .cases import A, B, C, D
from .toys import TOYS, declared, graph, node

GRAPH = graph(
    a=node("Number", "The number", value=1),
    b=node("Choice", choice="p"),
    c=node("Text", "v1.5", text="x"),
    d=node("Flag", flag=False),
    e=node("Decimal", "Twin", value=0.5),
    f=node("Union", "Twin", value=1),
    g=node("Add", a=A, b=1),
    h=node("Add", a=A, b=1),
    i=node("Show", value=B),
    j=node("NewChoice", choice="p"),
    k=node("ShowHidden", value=C),
    l=node("Silent", value=D),
)


@pytest.mark.parametrize(
    ("setting", "node_id", "name", "value"),
    [
        ("a.value=7", "a", "value", 7),
        ("Number.value=-7", "a", "value", -7),
        ("The number.value=+7", "a", "value", 7),
        ("a.value= 7 ", "a", "value", 7),
        ("Choice.choice=q", "b", "choice", "q"),
        ("Choice.choice=not there", "b", "choice", "not there"),
        ("j.choice=q", "j", "choice", "q"),
        ("v1.5.text=a=b.c ", "c", "text", "a=b.c "),
        ("c.text=", "c", "text", ""),
        ("Flag.flag=TRUE", "d", "flag", True),
        ("Flag.flag=0", "d", "flag", False),
        ("e.value=1e-3", "e", "value", 0.001),
        ("Union.value=2.5", "f", "value", 2.5),
        ("g.a=3", "g", "a", 3),
        ("i.value=[1, 2]", "i", "value", {"__value__": [1, 2]}),
    ],
)
def test_a_value_is_set_by_id_type_or_title_and_read_by_its_type(setting, node_id, name, value):
    before = copy.deepcopy(GRAPH)
    changed = set_value(GRAPH, setting, TOYS)
    new_value = changed[node_id]["inputs"].pop(name)
    assert new_value == value and type(new_value) is type(value)
    assert before == GRAPH
    before[node_id]["inputs"].pop(name)
    assert changed == before


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("a.value", ["NODE.INPUT=VALUE"]),
        ("value=3", ["NODE.INPUT=VALUE"]),
        (".value=3", ["NODE.INPUT=VALUE"]),
        ("a.=3", ["NODE.INPUT=VALUE"]),
        ("Numbr.value=3", ["Numbr", "Number"]),
        ("a.vale=3", ["vale", "value"]),
        ("Add.a=3", ["Add", "g", "h"]),
        ("Twin.value=3", ["Twin", "e", "f"]),
        ("a.value=many", ["value", "a", "Number", "many"]),
        ("a.value=1.5", ["value", "1.5"]),
        ("a.value=1_0", ["value", "1_0"]),
        ("a.value=\u0663", ["value", "\u0663"]),
        ("e.value=1_0.5", ["value", "1_0.5"]),
        ("e.value=nan", ["value", "nan"]),
        ("e.value=1e999", ["value", "1e999"]),
        ("d.flag=maybe", ["flag", "maybe"]),
        ("i.value=NaN", ["value", "JSON", "NaN"]),
        ("f.value=x", ["value", "JSON", "x"]),
    ],
)
def test_the_error_for_a_wrong_setting_has_the_nearest_names(setting, facts):
    with raises(GraphError, "graph.setting", *facts) as caught:
        set_value(GRAPH, setting, TOYS)
    assert caught.value.exit_status == 2


def test_an_input_that_takes_only_a_link_cannot_be_set():
    nodes = {**TOYS, "Needs": declared({"model": ("MODEL",)})}
    with raises(GraphError, "graph.setting", "model", "Needs", "MODEL"):
        set_value(graph(a=node("Needs", model=["b", 0])), "a.model=x", nodes)


def test_a_node_of_an_unknown_type_cannot_be_set():
    with raises(GraphError, "graph.setting", "Numbr", "Number"):
        set_value(graph(a=node("Numbr", value=1)), "a.value=2", TOYS)


def test_settings_are_applied_in_order():
    changed = apply_settings(GRAPH, ["a.value=2", "c.text=y", "a.value=3"], TOYS)
    assert changed["a"]["inputs"]["value"] == 3 and changed["c"]["inputs"]["text"] == "y"
    assert apply_settings(GRAPH, [], TOYS) == GRAPH


@pytest.mark.parametrize(
    ("not_graph", "code"),
    [
        ({}, "graph.setting"),
        ({"1": {}}, "graph.setting"),
        ({"1": {"inputs": {}}}, "graph.setting"),
        ({"error": "x"}, "graph.invalid_prompt"),
        ({"1": {"class_type": "Number"}}, "graph.invalid_prompt"),
        ({"1": {"class_type": None, "inputs": None}}, "graph.invalid_prompt"),
    ],
    ids=str,
)
def test_values_that_are_not_graphs_are_refused(not_graph, code):
    with raises(GraphError, code) as caught:
        apply_settings(not_graph, ["2.value=3", "1.value=3"], TOYS)
    assert caught.value.exit_status == 2
