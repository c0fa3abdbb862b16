"""Graphs of toy nodes that our executor and ComfyUI's are both given.

`faults` of an invalid graph: the node at fault ("" for the whole graph) -> the type of its first error.
`differs` says where ours departs from ComfyUI 0.3.64 on purpose, as {what: why}; what is one of decision, errors,
dependents, ui, runs. The comparison fails when a difference that is named here has gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .toys import graph, node

A, B, C, D = ["a", 0], ["b", 0], ["c", 0], ["d", 0]


@dataclass(frozen=True)
class Case:
    name: str
    prompt: dict[str, Any]
    targets: list[str] | None = None
    faults: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)


def shown(value: Any, **nodes: Any) -> dict[str, Any]:
    """A graph whose one output shows `value`."""
    return graph(**nodes, show=node("Show", value=value))


NAMED = "an error of its own node and a type, not a KeyError"
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
    Case("a seed with nothing behind its point", shown(A, a=node("Seed", seed=7.0))),
    Case("a choice", shown(A, a=node("Choice", choice="q"))),
    Case("a new choice", shown(A, a=node("NewChoice", choice="q"))),
    Case("a wrapped text", shown(A, a=node("Text", text={"__value__": "x"}))),
    Case("a wrapped list of three", shown({"__value__": [1, 2, 3]})),
    Case(
        "a wrapped list that looks like a link",
        shown({"__value__": ["b", 0]}, b=node("Number", value=1)),
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
    Case("a list maps the next node", shown(B, a=node("CountTo", count=3), b=node("Add", a=A, b=10))),
    Case(
        "a shorter list repeats its last",
        graph(
            a=node("CountTo", count=4),
            b=node("CountTo", count=2),
            c=node("Add", a=A, b=B),
            show=node("ShowList", value=C),
        ),
    ),
    Case("a list of one value each", graph(a=node("CountTo", count=3), show=node("ShowList", value=A))),
    Case(
        "lists of lists are joined",
        graph(a=node("CountTo", count=4), b=node("CountTo", count=A), show=node("ShowList", value=B)),
    ),
    Case(
        "a list and a single output",
        graph(
            a=node("CountTo", count=3),
            b=node("CountAndLast", count=A),
            show=node("ShowList", value=B),
            last=node("ShowList", value=["b", 1]),
        ),
    ),
    Case("a list is taken whole", shown(B, a=node("CountTo", count=4), b=node("SumList", values=A, offset=1))),
    Case(
        "an empty list is taken whole",
        shown(["b", 1], a=node("CountTo", count=0), b=node("SumList", values=A, offset=1)),
    ),
    Case("results over a list are joined", graph(a=node("CountTo", count=3), b=node("ShowAndPass", value=A))),
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
    Case(
        "titles do not make nodes different",
        graph(
            a=node("Number", "one", value=3),
            b=node("Number", "two", value=3),
            c=node("Add", a=A, b=B),
            x=node("Show", value=C),
        ),
    ),
    Case(
        "nodes that are not idempotent all run",
        graph(
            a=node("NotIdempotent", value=3),
            b=node("NotIdempotent", value=3),
            c=node("Add", a=A, b=B),
            x=node("Show", value=C),
        ),
    ),
    Case(
        "nodes that know their id all run",
        graph(a=node("OwnId", value=3), b=node("OwnId", value=3), x=node("Show", value=A), y=node("Show", value=B)),
    ),
    Case(
        "nodes that always change all run",
        graph(
            a=node("AlwaysChanged", value=3),
            b=node("AlwaysChanged", value=3),
            c=node("Add", a=A, b=B),
            x=node("Show", value=C),
        ),
    ),
    Case(
        "nodes with equal fingerprints run once",
        graph(
            a=node("ChangedByValue", value=3, other=1),
            b=node("ChangedByValue", value=3, other=1),
            c=node("Add", a=A, b=B),
            x=node("Show", value=C),
        ),
    ),
    Case("a mapped node keeps its instance", shown(B, a=node("CountTo", count=3), b=node("Mutable", value=A))),
    Case(
        "lazy inputs",
        shown(C, a=node("Number", value=1), b=node("Number", value=2), c=node("Lazy", a=A, b=B)),
        differs={"runs": "lazy inputs are computed too"},
    ),
    Case("a class that validates its value", shown(A, a=node("ValidatesValue", value=-4, other=1))),
    Case("a class that validates all", shown(A, a=node("ValidatesAll", value=-4, other=-1))),
    Case(
        "a class that validates types", shown(B, a=node("Decimal", value=1), b=node("ValidatesTypes", value=A, other=1))
    ),
    Case("nodes beside the outputs are not looked at", shown(A, a=node("Number", value=1), b=node("Number", value=-1))),
    Case(
        "one of two outputs is good",
        graph(a=node("Number", value=1), x=node("Show", value=A), b=node("Number", value=-1), y=node("Show", value=B)),
    ),
    Case(
        "only the asked output runs",
        graph(a=node("Number", value=1), x=node("Show", value=A), b=node("Number", value=2), y=node("Show", value=B)),
        targets=["x"],
    ),
    Case(
        "a dangling link spoils its own output only",
        graph(a=node("Number", value=1), x=node("Show", value=A), y=node("Show", value=["gone", 0])),
        differs={"errors": NAMED},
    ),
    Case(
        "a default is filled in",
        shown(A, a=node("AddDefault", a=1)),
        differs={"decision": "a declared default is used"},
    ),
]
FAILING = [
    Case("a node raises", shown(B, a=node("Number", value=1), b=node("Fails", value=A))),
    Case("a node gives None", shown(A, a=node("GivesNone"))),
    Case("an empty list is mapped", shown(B, a=node("CountTo", count=0), b=node("Add", a=A, b=1))),
]
INVALID = [
    Case("no nodes", {}, faults={"": "prompt_no_outputs"}),
    Case("no class_type", {"a": {"inputs": {}}}, faults={"a": "missing_node_type"}),
    Case("an unknown class", shown(A, a=node("Numbr", value=1)), faults={"a": "missing_node_type"}),
    Case("no output", graph(a=node("Number", value=1)), faults={"": "prompt_no_outputs"}),
    Case(
        "no output that was asked for",
        shown(A, a=node("Number", value=1)),
        targets=["a"],
        faults={"": "prompt_no_outputs"},
    ),
    Case("no targets", shown(A, a=node("Number", value=1)), targets=[], faults={"": "prompt_no_outputs"}),
    Case("a required input is missing", shown(A, a=node("Number")), faults={"a": "required_input_missing"}),
    Case("a required link is missing", graph(show=node("Show")), faults={"show": "required_input_missing"}),
    Case(
        "a socket is missing in spite of its default",
        shown(A, a=node("Socket")),
        faults={"a": "required_input_missing"},
    ),
    Case("a list of three for a link", shown(A, a=node("Number", value=[1, 2, 3])), faults={"a": "bad_linked_input"}),
    Case("an empty list for a link", shown(A, a=node("Number", value=[])), faults={"a": "bad_linked_input"}),
    Case(
        "text into a number",
        shown(B, a=node("Text", text="x"), b=node("Add", a=A, b=1)),
        faults={"b": "return_type_mismatch"},
    ),
    Case(
        "a choice into a number",
        shown(B, a=node("Choice", choice="p"), b=node("Add", a=A, b=1)),
        faults={"b": "return_type_mismatch"},
    ),
    Case(
        "a fraction as text for a whole number",
        shown(A, a=node("Number", value="3.7")),
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "text for a flag",
        shown(A, a=node("Flag", flag="false")),
        differs={"decision": "any text is true to ComfyUI"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "null for a flag",
        shown(A, a=node("Flag", flag=None)),
        differs={"decision": "null is false to ComfyUI"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "a fraction for a seed",
        shown(A, a=node("Seed", seed=1.9)),
        differs={"decision": "ComfyUI cuts it"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "true for a seed",
        shown(A, a=node("Seed", seed=True)),
        differs={"decision": "true is 1 to ComfyUI"},
        faults={"a": "invalid_input_type"},
    ),
    Case("None for a number", shown(A, a=node("Number", value=None)), faults={"a": "invalid_input_type"}),
    Case("words for a number", shown(A, a=node("Number", value="many")), faults={"a": "invalid_input_type"}),
    Case("a hexadecimal seed", shown(A, a=node("Seed", seed="0x10")), faults={"a": "invalid_input_type"}),
    Case("a negative seed", shown(A, a=node("Seed", seed=-1)), faults={"a": "value_smaller_than_min"}),
    Case("a seed of 2**64", shown(A, a=node("Seed", seed=2**64)), faults={"a": "value_bigger_than_max"}),
    Case("a seed of 1e30", shown(A, a=node("Seed", seed=1e30)), faults={"a": "value_bigger_than_max"}),
    Case("a number that is too small", shown(A, a=node("Number", value=-1)), faults={"a": "value_smaller_than_min"}),
    Case("a number that is too large", shown(A, a=node("Decimal", value=9)), faults={"a": "value_bigger_than_max"}),
    Case("a value that is not in a list", shown(A, a=node("Choice", choice="zz")), faults={"a": "value_not_in_list"}),
    Case(
        "a value that is not in a long list",
        shown(A, a=node("ManyChoices", choice="option 40")),
        faults={"a": "value_not_in_list"},
    ),
    Case(
        "a class that refuses its value",
        shown(A, a=node("ValidatesValue", value=9, other=1)),
        faults={"a": "custom_validation_failed"},
    ),
    Case(
        "a class that refuses its value, and a minimum",
        shown(A, a=node("ValidatesValue", value=9, other=-1)),
        faults={"a": "value_smaller_than_min"},
    ),
    Case(
        "a class that refuses all",
        shown(A, a=node("ValidatesAll", value=9, other=-1)),
        faults={"a": "custom_validation_failed"},
    ),
    Case(
        "a class that refuses types",
        shown(B, a=node("Number", value=1), b=node("ValidatesTypes", value=A, other=1)),
        faults={"b": "custom_validation_failed"},
    ),
    Case(
        "an output that others can read is behind a fault",
        graph(a=node("Number", value=-1), b=node("ShowAndPass", value=A)),
        faults={"a": "value_smaller_than_min"},
    ),
    Case("two faults in one node", shown(A, a=node("Add", a="x", b="y")), faults={"a": "invalid_input_type"}),
    Case(
        "two faulty nodes",
        shown(C, a=node("Number", value=-1), b=node("Number", value=101), c=node("Add", a=A, b=B)),
        faults={"a": "value_smaller_than_min", "b": "value_bigger_than_max"},
    ),
    Case(
        "a fault behind a fault",
        shown(B, a=node("Number", value=-1), b=node("Add", a=A, b="y")),
        faults={"a": "value_smaller_than_min", "b": "invalid_input_type"},
    ),
    Case(
        "two outputs need one faulty node",
        graph(a=node("Number", value=-1), x=node("Show", value=A), y=node("Show", value=A)),
        faults={"a": "value_smaller_than_min"},
    ),
    Case(
        "two outputs with a fault each",
        graph(a=node("Number", value=-1), x=node("Show", value=A), b=node("Number", value=-2), y=node("Show", value=B)),
        differs={"dependents": "ComfyUI also lists outputs that do not need the node"},
        faults={"a": "value_smaller_than_min", "b": "value_smaller_than_min"},
    ),
    Case(
        "a value that is not in a new list",
        shown(A, a=node("NewChoice", choice="zz")),
        differs={"decision": "ComfyUI checks these since 0.10"},
        faults={"a": "value_not_in_list"},
    ),
    Case(
        "a link to a missing node", shown(["gone", 0]), differs={"errors": NAMED}, faults={"show": "bad_linked_input"}
    ),
    Case(
        "a link to a missing node, deep",
        shown(A, a=node("Add", a=["gone", 0], b=1)),
        differs={"errors": NAMED},
        faults={"a": "bad_linked_input"},
    ),
    Case(
        "a slot out of range",
        shown(["a", 1], a=node("Number", value=1)),
        differs={"errors": NAMED},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a negative slot",
        shown(["a", -1], a=node("Number", value=1)),
        differs={"decision": "ComfyUI counts from the end"},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a slot that is a fraction",
        shown(["a", 0.5], a=node("Number", value=1)),
        differs={"errors": NAMED},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a slot that is text",
        shown(["a", "0"], a=node("Number", value=1)),
        differs={"errors": NAMED},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a slot that is false",
        shown(["a", False], a=node("Number", value=1)),
        differs={"decision": "ComfyUI reads false as 0"},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a node id that is a number",
        shown([1, 0], a=node("Number", value=1)),
        differs={"errors": NAMED},
        faults={"show": "bad_linked_input"},
    ),
    Case(
        "a node that needs itself",
        shown(A, a=node("Add", a=A, b=1)),
        differs={"errors": "the cycle is named"},
        faults={"a": "dependency_cycle"},
    ),
    Case(
        "two nodes that need each other",
        shown(A, a=node("Add", a=B, b=1), b=node("Add", a=A, b=1)),
        differs={"errors": "the cycle is named"},
        faults={"a": "dependency_cycle", "b": "dependency_cycle"},
    ),
    Case(
        "a class that raises while it is asked",
        shown(A, a=node("ValidationRaises", value=1)),
        differs={"errors": "ComfyUI says inner validation, and whose input led there"},
        faults={"a": "exception_during_validation"},
    ),
    Case(
        "NaN",
        shown(A, a=node("Decimal", value=float("nan"))),
        differs={"decision": "NaN passes every comparison"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "infinity as text",
        shown(A, a=node("Decimal", value="inf")),
        differs={"errors": "refused as it is converted"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "text compared with a minimum",
        shown(A, a=node("Union", value="x")),
        differs={"errors": "a type, not an exception"},
        faults={"a": "invalid_input_type"},
    ),
    Case(
        "an undeclared link to a missing node",
        shown(A, a=node("Kwargs", one=["gone", 0])),
        differs={"decision": "ComfyUI finds out when it runs"},
        faults={"a": "bad_linked_input"},
    ),
    Case(
        "a fault behind an undeclared link",
        shown(B, a=node("Number", value=-1), b=node("Kwargs", one=A)),
        differs={"decision": "ComfyUI runs it unchecked"},
        faults={"a": "value_smaller_than_min"},
    ),
    Case(
        "a fault behind a link of the wrong type",
        shown(B, a=node("Decimal", value=-1), b=node("Add", a=A, b=1)),
        differs={"errors": "ComfyUI stops looking there"},
        faults={"a": "value_smaller_than_min", "b": "return_type_mismatch"},
    ),
]
