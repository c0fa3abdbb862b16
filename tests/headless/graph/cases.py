"""Graphs of toy nodes for our executor and ComfyUI's.

`faults` of an invalid graph: the type of the first error by faulty node ("" for the whole graph).
`differs`: intended differences from ComfyUI 0.3.64 as {aspect: reason}. Aspects are decision, errors, dependents,
ui and runs. The comparison fails if a difference that is named here no longer exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .toys import graph, node, shown, twins

A, B, C, D = ["a", 0], ["b", 0], ["c", 0], ["d", 0]


@dataclass(frozen=True)
class Case:
    name: str
    prompt: dict[str, Any]
    targets: list[str] | None = None
    faults: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)


def bad_node(name: str, fault: str, bad: dict[str, Any], /, **differs: str) -> Case:
    """Create a case with one faulty node "a", whose output is shown."""
    return Case(name, shown(A, a=bad), faults={"a": fault}, differs=differs)


def bad_type(name: str, first: dict[str, Any], second: dict[str, Any], fault: str = "return_type_mismatch") -> Case:
    """Create a case with a node "b" that does not accept the output of "a"."""
    return Case(name, shown(B, a=first, b=second), faults={"b": fault})


def bad_link(name: str, link: list[Any], **differs: str) -> Case:
    """Create a case that shows an output of "a" through a faulty link."""
    prompt = shown(link, a=node("Number", value=1))
    return Case(name, prompt, faults={"show": "bad_linked_input"}, differs=differs or {"errors": NAMED})


def two_outputs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Create a graph in which "x" shows the first node and "y" the second one."""
    return graph(a=first, x=node("Show", value=A), b=second, y=node("Show", value=B))


NAMED = "an error of its own node and a type, not a KeyError"
ONE, LOW = node("Number", value=1), node("Number", value=-1)
LOW_FAULT = {"a": "value_smaller_than_min"}
COUNT_3, COUNT_4 = node("CountTo", count=3), node("CountTo", count=4)
VALID = [
    Case("a constant is shown", shown(A, a=node("Number", value=3))),
    Case("a string becomes a whole number", shown(A, a=node("Number", value="4"))),
    Case("a fraction is cut to a whole number", shown(A, a=node("Number", value=3.7))),
    Case("true is one", shown(A, a=node("Number", value=True))),
    Case("a number becomes text", shown(A, a=node("Text", text=12))),
    Case("a whole number becomes a fraction", shown(A, a=node("Decimal", value=1))),
    Case("zero for a flag is false", shown(A, a=node("Flag", flag=0))),
    Case("the largest seed", shown(A, a=node("Seed", seed=2**64 - 1))),
    Case("a seed as text", shown(A, a=node("Seed", seed="123"))),
    Case("a seed with a fraction of zero", shown(A, a=node("Seed", seed=7.0))),
    Case("a choice", shown(A, a=node("Choice", choice="q"))),
    Case("a new choice", shown(A, a=node("NewChoice", choice="q"))),
    Case("a wrapped text", shown(A, a=node("Text", text={"__value__": "x"}))),
    Case("a wrapped list of three", shown({"__value__": [1, 2, 3]})),
    Case(
        "a wrapped list that looks like a link",
        shown({"__value__": ["b", 0]}, b=ONE),
        differs=dict.fromkeys(("ui", "runs"), "ComfyUI unwraps the list at validation, and then takes it for a link"),
    ),
    Case("a union takes a member", shown(B, a=node("Number", value=3), b=node("Union", value=A))),
    Case("a union gives to a member", shown(B, a=node("Union", value=3), b=node("Add", a=A, b=1))),
    Case("anything takes a choice", shown(B, a=node("Choice", choice="p"), b=node("PassAnything", value=A))),
    Case("an optional input that is missing", shown(A, a=node("AddMaybe", a=1))),
    Case("an optional input that is there", shown(A, a=node("AddMaybe", a=1, b=2))),
    Case("an undeclared value is dropped", shown(A, a=node("Number", value=1, colour="red"))),
    Case("an undeclared link reaches kwargs", shown(B, a=node("Number", value=2), b=node("Kwargs", one=A, two=A))),
    Case("no inputs", shown(A, a=node("NoInputs"))),
    Case("a list maps the next node", shown(B, a=COUNT_3, b=node("Add", a=A, b=10))),
    Case(
        "a shorter list repeats its last",
        graph(a=COUNT_4, b=node("CountTo", count=2), c=node("Add", a=A, b=B), show=node("ShowList", value=C)),
    ),
    Case("a list of one value each", graph(a=COUNT_3, show=node("ShowList", value=A))),
    Case("lists of lists are joined", graph(a=COUNT_4, b=node("CountTo", count=A), show=node("ShowList", value=B))),
    Case(
        "a list and a single output",
        graph(
            a=COUNT_3,
            b=node("CountAndLast", count=A),
            show=node("ShowList", value=B),
            last=node("ShowList", value=["b", 1]),
        ),
    ),
    Case("a list is taken whole", shown(B, a=COUNT_4, b=node("SumList", values=A, offset=1))),
    Case(
        "an empty list is taken whole",
        shown(["b", 1], a=node("CountTo", count=0), b=node("SumList", values=A, offset=1)),
    ),
    Case("results over a list are joined", graph(a=COUNT_3, b=node("ShowAndPass", value=A))),
    Case("an output that others read", shown(B, a=node("Number", value=3), b=node("ShowAndPass", value=A))),
    Case("an output that shows nothing", graph(a=node("Number", value=3), b=node("Silent", value=A))),
    Case("hidden inputs", graph(a=node("Number", value=3), b=node("ShowHidden", value=A))),
    Case(
        "equal nodes run once",
        graph(
            a=node("Number", value=3),
            b=node("Number", value=3),
            c=node("Add", a=A, b=1),
            d=node("Add", a=B, b=1),
            x=node("Show", value=C),
            y=node("Show", value=D),
        ),
    ),
    Case("titles do not make nodes different", twins("Number", value=3)),
    Case("nodes that are not idempotent all run", twins("NotIdempotent", value=3)),
    Case(
        "nodes that know their id all run",
        graph(a=node("OwnId", value=3), b=node("OwnId", value=3), x=node("Show", value=A), y=node("Show", value=B)),
    ),
    Case("nodes that always change all run", twins("AlwaysChanged", value=3)),
    Case("nodes with equal fingerprints run once", twins("ChangedByValue", value=3, other=1)),
    Case("a mapped node keeps its instance", shown(B, a=COUNT_3, b=node("Mutable", value=A))),
    Case(
        "lazy inputs",
        shown(C, a=ONE, b=node("Number", value=2), c=node("Lazy", a=A, b=B)),
        differs={"runs": "lazy inputs are computed too"},
    ),
    Case("a class that validates its value", shown(A, a=node("ValidatesValue", value=-4, other=1))),
    Case("a class that validates all", shown(A, a=node("ValidatesAll", value=-4, other=-1))),
    Case(
        "a class that validates types", shown(B, a=node("Decimal", value=1), b=node("ValidatesTypes", value=A, other=1))
    ),
    Case("nodes that no output needs are not checked", shown(A, a=ONE, b=LOW)),
    Case("one of two outputs is good", two_outputs(ONE, LOW)),
    Case("only the requested output runs", two_outputs(ONE, node("Number", value=2)), targets=["x"]),
    Case(
        "a dangling link spoils its own output only",
        graph(a=ONE, x=node("Show", value=A), y=node("Show", value=["gone", 0])),
        differs={"errors": NAMED},
    ),
    Case("a default is filled in", shown(A, a=node("AddDefault", a=1)), differs={"decision": "a default is used"}),
]
FAILING = [
    Case("a node raises", shown(B, a=ONE, b=node("Fails", value=A))),
    Case("a node returns None", shown(A, a=node("GivesNone"))),
    Case("an empty list is mapped", shown(B, a=node("CountTo", count=0), b=node("Add", a=A, b=1))),
]
INVALID = [
    Case("no nodes", {}, faults={"": "prompt_no_outputs"}),
    Case("no class_type", {"a": {"inputs": {}}}, faults={"a": "missing_node_type"}),
    bad_node("an unknown class", "missing_node_type", node("Numbr", value=1)),
    Case("no output", graph(a=ONE), faults={"": "prompt_no_outputs"}),
    Case("no output that is a target", shown(A, a=ONE), targets=["a"], faults={"": "prompt_no_outputs"}),
    Case("no targets", shown(A, a=ONE), targets=[], faults={"": "prompt_no_outputs"}),
    bad_node("a required input is missing", "required_input_missing", node("Number")),
    Case("a required link is missing", graph(show=node("Show")), faults={"show": "required_input_missing"}),
    bad_node("a socket is missing in spite of its default", "required_input_missing", node("Socket")),
    bad_node("a list of three for a link", "bad_linked_input", node("Number", value=[1, 2, 3])),
    bad_node("an empty list for a link", "bad_linked_input", node("Number", value=[])),
    bad_type("text into a number", node("Text", text="x"), node("Add", a=A, b=1)),
    bad_type("a choice into a number", node("Choice", choice="p"), node("Add", a=A, b=1)),
    bad_node("a fraction as text for a whole number", "invalid_input_type", node("Number", value="3.7")),
    bad_node(
        "text for a flag", "invalid_input_type", node("Flag", flag="false"), decision="any text is true to ComfyUI"
    ),
    bad_node("null for a flag", "invalid_input_type", node("Flag", flag=None), decision="null is false to ComfyUI"),
    bad_node("a fraction for a seed", "invalid_input_type", node("Seed", seed=1.9), decision="ComfyUI cuts it"),
    bad_node("true for a seed", "invalid_input_type", node("Seed", seed=True), decision="true is 1 to ComfyUI"),
    bad_node("None for a number", "invalid_input_type", node("Number", value=None)),
    bad_node("words for a number", "invalid_input_type", node("Number", value="many")),
    bad_node("a hexadecimal seed", "invalid_input_type", node("Seed", seed="0x10")),
    bad_node("a negative seed", "value_smaller_than_min", node("Seed", seed=-1)),
    bad_node("a seed of 2**64", "value_bigger_than_max", node("Seed", seed=2**64)),
    bad_node("a seed of 1e30", "value_bigger_than_max", node("Seed", seed=1e30)),
    bad_node("a number that is too small", "value_smaller_than_min", LOW),
    bad_node("a number that is too large", "value_bigger_than_max", node("Decimal", value=9)),
    bad_node("a value that is not in a list", "value_not_in_list", node("Choice", choice="zz")),
    bad_node("a value that is not in a long list", "value_not_in_list", node("ManyChoices", choice="option 40")),
    bad_node("a class that refuses its value", "custom_validation_failed", node("ValidatesValue", value=9, other=1)),
    bad_node(
        "a class that refuses its value, and a minimum",
        "value_smaller_than_min",
        node("ValidatesValue", value=9, other=-1),
    ),
    bad_node("a class that refuses all", "custom_validation_failed", node("ValidatesAll", value=9, other=-1)),
    bad_type(
        "a class that refuses types", ONE, node("ValidatesTypes", value=A, other=1), fault="custom_validation_failed"
    ),
    Case(
        "an output that others read is behind a fault", graph(a=LOW, b=node("ShowAndPass", value=A)), faults=LOW_FAULT
    ),
    bad_node("two faults in one node", "invalid_input_type", node("Add", a="x", b="y")),
    Case(
        "two faulty nodes",
        shown(C, a=LOW, b=node("Number", value=101), c=node("Add", a=A, b=B)),
        faults={**LOW_FAULT, "b": "value_bigger_than_max"},
    ),
    Case(
        "a fault behind a fault",
        shown(B, a=LOW, b=node("Add", a=A, b="y")),
        faults={**LOW_FAULT, "b": "invalid_input_type"},
    ),
    Case("two outputs need a faulty node", shown(A, a=LOW, x=node("Show", value=A)), faults=LOW_FAULT),
    Case(
        "two outputs with a fault each",
        two_outputs(LOW, node("Number", value=-2)),
        differs={"dependents": "ComfyUI also lists outputs that do not need the node"},
        faults={**LOW_FAULT, "b": "value_smaller_than_min"},
    ),
    bad_node(
        "a value that is not in a new list",
        "value_not_in_list",
        node("NewChoice", choice="zz"),
        decision="ComfyUI checks these since 0.10",
    ),
    Case(
        "a link to a missing node", shown(["gone", 0]), differs={"errors": NAMED}, faults={"show": "bad_linked_input"}
    ),
    bad_node("a link to a missing node, deep", "bad_linked_input", node("Add", a=["gone", 0], b=1), errors=NAMED),
    bad_link("a slot out of range", ["a", 1]),
    bad_link("a negative slot", ["a", -1], decision="ComfyUI counts from the end"),
    bad_link("a slot that is a fraction", ["a", 0.5]),
    bad_link("a slot that is text", ["a", "0"]),
    bad_link("a slot that is false", ["a", False], decision="ComfyUI reads false as 0"),
    bad_link("a node id that is a number", [1, 0]),
    bad_node("a node that needs itself", "dependency_cycle", node("Add", a=A, b=1), errors="the cycle is named"),
    Case(
        "two nodes that need each other",
        shown(A, a=node("Add", a=B, b=1), b=node("Add", a=A, b=1)),
        differs={"errors": "the cycle is named"},
        faults={"a": "dependency_cycle", "b": "dependency_cycle"},
    ),
    bad_node(
        "a class whose validation raises",
        "exception_during_validation",
        node("ValidationRaises", value=1),
        errors="ComfyUI says inner validation, and whose input led there",
    ),
    bad_node("NaN", "invalid_input_type", node("Decimal", value=float("nan")), decision="NaN passes every comparison"),
    bad_node("infinity as text", "invalid_input_type", node("Decimal", value="inf"), errors="refused when converted"),
    bad_node(
        "text compared with a minimum",
        "invalid_input_type",
        node("Union", value="x"),
        errors="a type, not an exception",
    ),
    bad_node(
        "an undeclared link to a missing node",
        "bad_linked_input",
        node("Kwargs", one=["gone", 0]),
        decision="ComfyUI raises when it runs",
    ),
    Case(
        "a fault behind an undeclared link",
        shown(B, a=LOW, b=node("Kwargs", one=A)),
        differs={"decision": "ComfyUI runs it unchecked"},
        faults=LOW_FAULT,
    ),
    Case(
        "a fault behind a link of the wrong type",
        shown(B, a=node("Decimal", value=-1), b=node("Add", a=A, b=1)),
        differs={"errors": "ComfyUI does not check it"},
        faults={**LOW_FAULT, "b": "return_type_mismatch"},
    ),
]
