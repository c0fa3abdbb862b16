"""Whether a graph can run, and what is said when it cannot."""

from __future__ import annotations

import copy
import math
import random
import time
from typing import Any

import pytest
from error_checks import check_facts, raises
from svd_stages.headless.graph import Engine, RunResult, explain, raise_if_invalid, validate
from svd_stages.headless.graph.node_schema import types_match
from svd_stages.svd_core.errors import GraphError, NodeError

from .cases import FAILING, INVALID, VALID, A, B, Case, shown
from .toys import ANY, TOYS, graph, node


def nested(depth: int) -> Any:
    """[[[...]]]"""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


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
def test_every_fault_is_found_on_its_node(case: Case):
    checked = validate(case.prompt, TOYS, case.targets)
    assert not checked.ok and checked.error is not None and checked.outputs == []
    named = {node_id: entry["errors"][0]["type"] for node_id, entry in checked.node_errors.items()}
    assert (named or {"": checked.error["type"]}) == case.faults


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
def test_what_is_no_graph_at_all_is_refused(prompt):
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


def test_the_copy_holds_converted_values_and_defaults_and_notes_say_so():
    prompt = shown(B, a=node("Number", "Mine", value="4", colour="red"), b=node("AddDefault", a=A))
    checked = validate(prompt, TOYS)
    assert checked.prompt["a"]["inputs"]["value"] == 4
    assert checked.prompt["b"]["inputs"] == {"a": A, "b": 3}
    facts = [("a", "Number", "Mine", "value", "'4'", 4), ("Number", "Mine", "colour"), ("AddDefault", '"b"', 3)]
    for note, known in zip(checked.notes, facts, strict=True):
        check_facts(note, *known)


def test_an_optional_input_is_left_to_the_function():
    assert "b" not in validate(shown(A, a=node("AddMaybe", a=1)), TOYS).prompt["a"]["inputs"]


def test_a_wrapped_list_stays_wrapped_so_that_nothing_takes_it_for_a_link():
    wrapped = {"__value__": ["a", 0]}
    assert validate(shown(wrapped), TOYS).prompt["show"]["inputs"]["value"] == wrapped


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "nan", "inf", "1e999"])
@pytest.mark.parametrize("class_type", ["Number", "Decimal", "ValidatesValue"])
def test_no_number_that_is_not_finite_gets_through(class_type, number):
    checked = validate(shown(A, a=node(class_type, value=number, other=1)), TOYS)
    assert checked.node_errors["a"]["errors"][0]["type"] == "invalid_input_type"


@pytest.mark.parametrize("value", [[math.nan], {"x": math.inf}, nested(70), math.nan])
def test_nor_inside_lists_dicts_and_values_that_no_class_declares(value):
    checked = validate(shown({"__value__": value}, a=node("Number", value=1)), TOYS)
    assert not checked.ok
    undeclared = shown(A, a=node("Number", value=1, extra={"__value__": value}))
    assert not validate(undeclared, TOYS).ok


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


def test_a_cycle_spoils_only_the_outputs_that_need_it():
    prompt = graph(
        a=node("Add", a=B, b=1),
        b=node("Add", a=A, b=1),
        x=node("Show", value=A),
        y=node("Show", value=3),
    )
    checked = validate(prompt, TOYS)
    assert checked.ok and checked.outputs == ["y"]
    assert checked.node_errors["a"]["dependent_outputs"] == ["x"]
    more = (checked.node_errors, checked.prompt)
    assert checked.error is None and explain(None, *more) != explain({}, *more)  # that some can run is told


def test_a_fault_names_exactly_the_outputs_that_need_it():
    prompt = graph(
        a=node("Number", value=-1),
        b=node("Number", value=-1),
        x=node("Show", value=A),
        y=node("Show", value=["c", 0]),
        c=node("Add", a=A, b=B),
    )
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


def test_titles_and_ids_cannot_break_the_paragraph_or_talk_to_the_terminal():
    prompt = shown(["a\n\x1b[2J", 0], **{"a\n\x1b[2J": node("Number", "My\nnode \x07\ud800" + "x" * 1000, value=-1)})
    with pytest.raises(GraphError) as caught:
        raise_if_invalid(validate(prompt, TOYS))
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    check_facts(message, "a", "[2J", "Number", "My")


def test_long_values_are_not_repeated_whole():
    checked = validate(shown(A, a=node("Number", value="9" * 100_000 + "x")), TOYS)
    assert len(repr(checked.node_errors)) < 5000
    checked = validate(shown(A, a=node("Number", value=[1] * 100_000)), TOYS)
    assert len(repr(checked.node_errors)) < 5000


def test_a_seed_that_javascript_rounded_up_is_explained():
    with raises(GraphError, "graph.value_bigger_than_max", "seed", 2**64 - 1, 2**64, "JavaScript"):
        raise_if_invalid(validate(shown(A, a=node("Seed", seed=2**64)), TOYS))


def test_kept_nodes_are_outputs_too_and_given_ones_are_not_looked_at():
    prompt = graph(a=node("NotInstalled", x=1), b=node("Add", a=A, b=["z", 1]))
    assert not validate(prompt, TOYS, keep=["b"]).ok
    checked = validate(prompt, TOYS, precomputed={"a": [[1]], "z": [[1], [2]]}, keep=["b"])
    assert checked.ok and checked.outputs == ["b"]
    short = validate(prompt, TOYS, precomputed={"a": [[1]], "z": [[1]]}, keep=["b"])
    (fault,) = short.node_errors["b"]["errors"]
    assert fault["type"] == "bad_linked_input"
    check_facts(fault["details"], "b", 1, "z")


def test_a_given_node_of_a_known_class_keeps_its_types():
    prompt = graph(a=node("Text", text="x"), b=node("Add", a=A, b=1))
    assert validate(prompt, TOYS, precomputed={"a": [["x"]]}, keep=["b"]).node_errors["b"]["errors"][0]["type"] == (
        "return_type_mismatch"
    )


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


def chain(length: int, **inputs: Any) -> dict[str, Any]:
    nodes = {str(place): node("Add", a=[str(place - 1), 0], b=1) for place in range(1, length)}
    return {"0": node("Number", value=1), **nodes, "show": node("Show", value=[str(length - 1), 0])}


def test_a_chain_of_three_thousand_nodes_is_checked_and_run_in_two_seconds():
    start = time.perf_counter()
    checked = validate(chain(3000), TOYS)
    assert checked.ok
    assert Engine(TOYS).run(checked.prompt, checked.outputs).ui["show"] == {"value": ["3000"]}
    assert time.perf_counter() - start < 2


def test_a_long_cycle_and_many_faults_are_told_in_two_seconds():
    start = time.perf_counter()
    ring = chain(3000)
    ring["0"] = node("Add", a=["2999", 0], b=1)
    assert not validate(ring, TOYS).ok
    faulty = {name: {**each, "inputs": {**each["inputs"], "b": "x"}} for name, each in chain(1000).items()}
    checked = validate(faulty, TOYS)
    assert len(checked.node_errors) == 999
    check_facts(explain(checked.error, checked.node_errors, checked.prompt), 979)
    assert time.perf_counter() - start < 2


def test_thousands_of_misspelt_links_do_not_buy_hours_of_comparing():
    start = time.perf_counter()
    prompt = {f"node {number}": node("Add", a=[f"node_{number}", 0], b=1) for number in range(5000)}
    prompt["show"] = node("Kwargs", **{name: [name, 0] for name in prompt})
    checked = validate(prompt, TOYS, keep=["show"])
    assert "nearest" in checked.node_errors["node 0"]["errors"][0]["extra_info"]
    assert time.perf_counter() - start < 5


def test_the_same_graph_gives_the_same_answer_word_for_word():
    prompt = {}
    for case in INVALID[6:]:
        prompt.update({f"{case.name} {key}": _moved(each, case.name) for key, each in case.prompt.items()})
    found = validate(prompt, TOYS)
    assert len(found.node_errors) > 30
    assert repr(found) == repr(validate(copy.deepcopy(prompt), TOYS))
    assert list(found.node_errors) == [key for key in prompt if key in found.node_errors]


def _moved(each: dict[str, Any], name: str) -> dict[str, Any]:
    inputs = {
        key: [f"{name} {value[0]}", *value[1:]]
        if isinstance(value, list) and value[:1] and value[0] in "abcd"
        else value
        for key, value in each["inputs"].items()
        if not (isinstance(value, list) and value and not isinstance(value[0], str))
    }
    return {**each, "inputs": inputs}


STRANGE = [
    None,
    True,
    -1,
    0.5,
    2**64,
    1e400,
    "x",
    "",
    [],
    ["a", 0],
    ["a", -1],
    ["a", 0, 0],
    [0, "a"],
    {},
    {"__value__": 1},
]


def _mutate(prompt: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """`prompt` with one to three strange things in it."""
    prompt = copy.deepcopy(prompt)
    strange = copy.deepcopy(STRANGE)  # which may come to hold itself
    for _ in range(rng.randint(1, 3)):
        node_id = rng.choice(list(prompt))
        what = rng.randrange(6)
        if what == 0:
            del prompt[node_id]
        elif what == 1:
            prompt[node_id] = rng.choice(strange)
        elif isinstance(prompt[node_id], dict) and what == 2:
            prompt[node_id]["class_type"] = rng.choice([*TOYS, *strange])
        elif isinstance(prompt[node_id], dict) and what == 3:
            prompt[node_id]["inputs"] = rng.choice(strange)
        elif isinstance(prompt[node_id], dict) and isinstance(prompt[node_id].get("inputs"), dict):
            name = rng.choice([*prompt[node_id]["inputs"], "value", "strange"])
            prompt[node_id]["inputs"][name] = rng.choice([*strange, [rng.choice(list(prompt)), 0]])
        if not prompt:
            break
    return prompt


@pytest.mark.parametrize("seed", range(5))
def test_strange_graphs_bring_out_nothing_but_our_errors(seed):
    rng = random.Random(seed)
    prompts = [case.prompt for case in VALID]
    for _ in range(200):
        checked = validate(_mutate(rng.choice(prompts), rng), TOYS)
        try:
            raise_if_invalid(checked)
            assert isinstance(Engine(TOYS).run(checked.prompt, checked.outputs), RunResult)
        except (GraphError, NodeError) as error:
            assert str(error) and "\n" not in str(error)


def test_a_link_under_a_hidden_inputs_name_is_checked():
    checked = validate(graph(a=node("Text", text="x"), b=node("ShowHidden", value=["a", 0], prompt=["zz", 0])), TOYS)
    assert not checked.ok
