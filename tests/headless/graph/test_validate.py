"""Validate graphs: faults on their nodes, messages, converted values, notes."""

from __future__ import annotations

import copy
import json
import math
import time
from typing import Any

import pytest
from error_checks import check_facts, raises
from svd_stages.headless.graph import Engine, explain, raise_if_invalid, validate
from svd_stages.headless.graph.node_schema import types_match
from svd_stages.svd_core.errors import GraphError

from .cases import FAILING, INVALID, VALID, A, B, Case
from .toys import ANY, TOYS, graph, node, shown

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
BROKEN = {
    "not an object": [],
    "a graph in UI format": {"nodes": [], "links": []},
    "a node that is a number": {"a": 5},
    "a node that is a list": {"a": []},
    "a class_type that is a list": {"a": {"class_type": ["Number"], "inputs": {}}},
    "a class_type that is a number": {"a": {"class_type": 7, "inputs": {}}},
    "a node without inputs": {"a": {"class_type": "Number"}},
    "inputs that are a list": {"a": {"class_type": "Number", "inputs": []}},
    "an input name that is a number": {"a": {"class_type": "Number", "inputs": {1: 2}}},
    "a node id that is a number": {1: {"class_type": "Number", "inputs": {}}},
}


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_every_fault_is_reported_on_its_node(case: Case):
    checked = validate(case.prompt, TOYS, case.targets)
    assert not checked.ok and checked.error is not None and checked.outputs == []
    faults = {node_id: entry["errors"][0]["type"] for node_id, entry in checked.node_errors.items()}
    assert (faults or {"": checked.error["type"]}) == case.faults


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_the_message_is_one_paragraph_that_names_node_and_class(case: Case):
    with pytest.raises(GraphError) as caught:
        raise_if_invalid(validate(case.prompt, TOYS, case.targets))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and caught.value.exit_status == 2
    for node_id in filter(None, case.faults):
        check_facts(message, node_id, *filter(None, [case.prompt[node_id].get("class_type")]))
    assert caught.value.code == f"graph.{next(iter(case.faults.values()))}"


@pytest.mark.parametrize("prompt", BROKEN.values(), ids=BROKEN)
def test_values_that_are_not_graphs_are_refused(prompt):
    checked = validate(prompt, TOYS)
    assert not checked.ok and checked.error is not None and checked.error["type"] == "invalid_prompt"
    with raises(GraphError, "graph.invalid_prompt"):
        raise_if_invalid(checked)


@pytest.mark.parametrize("case", VALID + FAILING, ids=lambda case: case.name)
def test_valid_graphs_are_valid_and_not_changed(case: Case):
    before = copy.deepcopy(case.prompt)
    checked = validate(case.prompt, TOYS, case.targets)
    assert checked.ok and checked.error is None and checked.outputs
    assert case.prompt == before
    raise_if_invalid(checked)


def test_converted_values_and_defaults_are_in_the_copy_and_in_notes():
    prompt = shown(B, a=node("Number", "Mine", value="4", colour="red"), b=node("AddDefault", a=A))
    checked = validate(prompt, TOYS)
    assert checked.prompt["a"]["inputs"]["value"] == 4
    assert checked.prompt["b"]["inputs"] == {"a": A, "b": 3}
    facts = [("a", "Number", "Mine", "value", "'4'", 4), ("Number", "Mine", "colour"), ("AddDefault", '"b"', 3)]
    for note, known in zip(checked.notes, facts, strict=True):
        check_facts(note, *known)


def test_a_missing_optional_input_is_not_filled_in():
    assert "b" not in validate(shown(A, a=node("AddMaybe", a=1)), TOYS).prompt["a"]["inputs"]


def test_a_wrapped_list_stays_wrapped():
    wrapped = {"__value__": ["a", 0]}
    assert validate(shown(wrapped), TOYS).prompt["show"]["inputs"]["value"] == wrapped


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "nan", "inf", "1e999"])
@pytest.mark.parametrize("class_type", ["Number", "Decimal", "ValidatesValue"])
def test_numbers_that_are_not_finite_are_refused(class_type, number):
    checked = validate(shown(A, a=node(class_type, value=number, other=1)), TOYS)
    assert checked.node_errors["a"]["errors"][0]["type"] == "invalid_input_type"


@pytest.mark.parametrize("value", [[math.nan], {"x": math.inf}, ENDLESS, json.loads("[" * 70 + "]" * 70), math.nan])
def test_numbers_that_are_not_finite_and_deep_nesting_are_refused_inside_values_and_undeclared_ones(value):
    checked = validate(shown({"__value__": value}, a=node("Number", value=1)), TOYS)
    assert not checked.ok
    undeclared = shown(A, a=node("Number", value=1, extra={"__value__": value}))
    assert not validate(undeclared, TOYS).ok


def test_a_flag_is_true_or_false_or_their_numbers():
    for flag in (True, False, 0, 1, 0.0, 1.0):
        checked = validate(shown(A, a=node("Flag", flag=flag)), TOYS)
        assert checked.prompt["a"]["inputs"]["flag"] is bool(flag)
    for other in ("false", "true", "", None, 2, -1, {}, 0.5):
        with raises(GraphError, "graph.invalid_input_type", "a", "Flag", repr(other)):
            raise_if_invalid(validate(shown(A, a=node("Flag", flag=other)), TOYS))


def test_a_cycle_is_named_with_its_path():
    prompt = shown(
        ["c", 0],
        c=node("Add", "The end", a=["b", 0], b=1),
        b=node("Add", a=["a", 0], b=2),
        a=node("Add", a=["b", 0], b=["c", 0]),
    )
    checked = validate(prompt, TOYS)
    error = checked.node_errors["b"]["errors"][0]
    assert error["type"] == "dependency_cycle" and "b -> a -> b" in error["details"]
    with raises(GraphError, "graph.dependency_cycle") as caught:
        raise_if_invalid(checked)
    assert str(caught.value).count("b -> a -> b") == 1


def test_a_cycle_fails_only_the_outputs_that_need_it():
    prompt = graph(a=node("Add", a=B, b=1), b=node("Add", a=A, b=1), x=node("Show", value=A), y=node("Show", value=3))
    checked = validate(prompt, TOYS)
    assert checked.ok and checked.outputs == ["y"]
    assert checked.node_errors["a"]["dependent_outputs"] == ["x"]
    more = (checked.node_errors, checked.prompt)
    assert checked.error is None and explain(None, *more) != explain({}, *more)  # the message says that some can run


def test_a_fault_names_exactly_the_outputs_that_need_it():
    low = node("Number", value=-1)
    prompt = graph(a=low, b=low, x=node("Show", value=A), y=node("Show", value=["c", 0]), c=node("Add", a=A, b=B))
    errors = validate(prompt, TOYS).node_errors
    assert {node_id: entry["dependent_outputs"] for node_id, entry in errors.items()} == {"a": ["x", "y"], "b": ["y"]}


def test_nearest_names_are_offered_for_classes_choices_and_links():
    many = node("ManyChoices", choice="option 40")
    for kind, facts, prompt in (
        ("missing_node_type", ["a", "Numbr", "First", "Number"], shown(A, a=node("Numbr", "First", value=1))),
        ("value_not_in_list", ["a", "ManyChoices", "choice", 40, 4], shown(A, a=many)),
        ("bad_linked_input", ["numbr", "number"], shown(["numbr", 0], number=node("Number", value=1))),
    ):
        with raises(GraphError, f"graph.{kind}", *facts):
            raise_if_invalid(validate(prompt, TOYS))


def test_all_unknown_classes_are_listed_and_the_first_has_comfyuis_shape():
    checked = validate(graph(a=node("One", "Mine"), b=node("Two")), TOYS)
    assert list(checked.node_errors) == ["a", "b"]
    assert checked.error is not None
    check_facts(checked.error["message"], "Mine")
    check_facts(checked.error["details"], "#a")
    info = checked.error["extra_info"]
    assert (info["node_id"], info["class_type"], info["node_title"]) == ("a", "One", "Mine")


def test_titles_and_ids_cannot_put_line_breaks_or_control_characters_into_a_message():
    prompt = shown(["a\n\x1b[2J", 0], **{"a\n\x1b[2J": node("Number", "My\nnode \x07\ud800" + "x" * 1000, value=-1)})
    with pytest.raises(GraphError) as caught:
        raise_if_invalid(validate(prompt, TOYS))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    check_facts(message, "a", "[2J", "Number", "My")


def test_errors_repeat_only_the_start_of_long_values():
    for value in ("9" * 100_000 + "x", [1] * 100_000):
        checked = validate(shown(A, a=node("Number", value=value)), TOYS)
        assert len(repr(checked.node_errors)) < 5000


def test_kept_nodes_are_outputs_and_precomputed_ones_are_not_checked():
    prompt = graph(a=node("NotInstalled", x=1), b=node("Add", a=A, b=["z", 1]))
    assert not validate(prompt, TOYS, keep=["b"]).ok
    checked = validate(prompt, TOYS, precomputed={"a": [[1]], "z": [[1], [2]]}, keep=["b"])
    assert checked.ok and checked.outputs == ["b"]
    short = validate(prompt, TOYS, precomputed={"a": [[1]], "z": [[1]]}, keep=["b"])
    (fault,) = short.node_errors["b"]["errors"]
    assert fault["type"] == "bad_linked_input"
    check_facts(fault["details"], "b", 1, "z")


def test_a_precomputed_node_of_a_known_class_keeps_its_types():
    prompt = graph(a=node("Text", text="x"), b=node("Add", a=A, b=1))
    checked = validate(prompt, TOYS, precomputed={"a": [["x"]]}, keep=["b"])
    assert checked.node_errors["b"]["errors"][0]["type"] == "return_type_mismatch"


@pytest.mark.parametrize(
    ("received", "wanted", "fits"),
    [
        ("INT", "INT", True),
        ("INT", "FLOAT", False),
        ("SVD_MODEL", "SVD_MODEL,MODEL", True),
        ("MODEL", "SVD_MODEL, MODEL", True),
        ("A,B", "B,C", True),
        ("A,B", "C,D", False),
        ("*", "INT", True),
        ("INT", "*", True),
        ("INT", "FLOAT,*", True),
        (ANY, "INT", True),
        ("INT", ANY, True),
        (["p", "q"], ["p", "q"], True),
        (["p", "q"], ["p"], False),
        (["p", "q"], "COMBO", True),
        (["p", "q"], "STRING", False),
        ("STRING", ["p", "q"], False),
    ],
)
def test_types_match_by_the_rule_of_comfyui_0_10(received, wanted, fits):
    assert types_match(received, wanted) is fits


def chain(length: int) -> dict[str, Any]:
    nodes = {str(index): node("Add", a=[str(index - 1), 0], b=1) for index in range(1, length)}
    return {"0": node("Number", value=1), **nodes, "show": node("Show", value=[str(length - 1), 0])}


def test_a_chain_of_three_thousand_nodes_is_checked_and_run_in_two_seconds():
    start = time.process_time()
    checked = validate(chain(3000), TOYS)
    assert checked.ok
    assert Engine(TOYS).run(checked.prompt, checked.outputs).ui["show"] == {"value": ["3000"]}
    assert time.process_time() - start < 10


def test_a_long_cycle_and_many_faults_are_reported_in_two_seconds():
    start = time.process_time()
    ring = chain(3000)
    ring["0"] = node("Add", a=["2999", 0], b=1)
    assert not validate(ring, TOYS).ok
    faulty = {name: {**each, "inputs": {**each["inputs"], "b": "x"}} for name, each in chain(1000).items()}
    checked = validate(faulty, TOYS)
    assert len(checked.node_errors) == 999
    check_facts(explain(checked.error, checked.node_errors, checked.prompt), 979)
    assert time.process_time() - start < 10


def test_suggestions_for_thousands_of_misspelt_links_take_little_time():
    start = time.process_time()
    prompt = {f"node {number}": node("Add", a=[f"node_{number}", 0], b=1) for number in range(5000)}
    prompt["show"] = node("Kwargs", **{name: [name, 0] for name in prompt})
    checked = validate(prompt, TOYS, keep=["show"])
    assert "nearest" in checked.node_errors["node 0"]["errors"][0]["extra_info"]
    assert time.process_time() - start < 20


def test_faults_are_in_the_order_of_the_file():
    names = [f"{7 * number % 20}" for number in range(20)]
    checked = validate({name: node("Number", value=-1) for name in names}, TOYS, keep=names)
    assert list(checked.node_errors) == names
    assert checked.error is not None and checked.error["details"].count("\n") == 19


def test_a_link_under_a_hidden_inputs_name_is_checked():
    checked = validate(graph(a=node("Text", text="x"), b=node("ShowHidden", value=["a", 0], prompt=["zz", 0])), TOYS)
    assert not checked.ok
