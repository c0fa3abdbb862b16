"""Validate graphs with random faults: decisions are ComfyUI's, every fault is named, and nothing else is raised."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from svd_stages import headless
from svd_stages.headless.graph import Engine, explain, validate
from svd_stages.headless.graph.node_schema import CONVERTED, Declarations, DeclaredInput
from svd_stages.headless.graph.prompt import is_wrapped, looks_like_link, unwrap_value, with_ancestors
from svd_stages.svd_core.errors import GraphError, NodeError
from svd_stages.svd_core.runtime.runtime import use_runtime

from .ask_comfyui import as_answer, ask_comfyui, needs_comfyui
from .cases import FAILING, VALID
from .mutations import mutant
from .toys import TOYS

TEMPLATES = headless.PACKAGE / "example_workflows"
NODES = {**headless.NODES, **TOYS}
DIFFERENCES = {
    "cycle": "ComfyUI follows a cycle until RecursionError, and fails the outputs without naming it",
    "link": "ComfyUI raises for a dangling link, and for a slot that is out of range or not an integer. That hides the "
    "other faults of the node",
    "slot": "ComfyUI counts negative slots from the end, and reads true as 1",
    "finite": "ComfyUI accepts NaN and infinities that no limit refuses",
    "flag": "ComfyUI accepts text and null for a boolean, and truncates a seed",
    "compare": "ComfyUI raises for a value that cannot be compared with its limits",
    "default": "we use the declared default of a required widget that is missing",
    "undeclared": "ComfyUI does not check links that no class declares",
    "behind": "ComfyUI does not check nodes behind an undeclared link, a link of a wrong type or an exception",
    "list": "ComfyUI before 0.10 does not check the options of combos of the new kind",
    "class": "ComfyUI reports an exception of a node's class as inner validation, and hides the node's other faults",
    "name": "core's LoadImage raises for a linked name, and for null, which it cannot distinguish from a link",
    "null": "ComfyUI accepts null for a combo if the class validates its values, because it looks like a link",
    "wrapped": "ComfyUI unwraps a list that looks like a link, and then takes it for one",
    "shape": "ComfyUI raises for a value that is not a graph or not a node, at the latest when the graph runs",
}
"""Intended differences by name."""
RAISING = {"link", "compare", "class"}
"""The differences where ComfyUI raises."""
EXCEPTIONS = {"exception_during_validation", "exception_during_inner_validation"}
Fault = tuple[str, str | None]
"""The type of an error, and its input."""


@pytest.fixture(autouse=True)
def _runtime(run_config) -> Iterator[None]:
    """Nodes list the input folder of `run_config`."""
    with use_runtime(run_config.runtime()):
        yield


def base_graphs() -> list[Any]:
    """Return valid graphs: toys, and four copies of the templates that use only our nodes."""
    toys = [case.prompt for case in VALID + FAILING if not case.differs and case.targets is None]
    templates = []
    for path in sorted(TEMPLATES.glob("*.json")):
        try:
            templates.append(headless.open_graph(path, ["SVDCheckpointLoader.checkpoint=svd-nano"]).prompt)
        except GraphError:
            continue
    assert len(templates) > 4
    return [*toys, *templates * 4]


def mutants(count: int) -> list[Any]:
    """Return mutants as they are after writing and reading a file."""
    bases = base_graphs()
    return [json.loads(json.dumps(mutant(seed, bases, NODES))) for seed in range(count)]


class Comparison:
    """Our answer and ComfyUI's: `names` of intended differences, and `unexpected` ones."""

    def __init__(self, prompt: Any, theirs: dict[str, Any], mine: dict[str, Any]):
        self.prompt, self.theirs, self.mine = prompt, theirs, mine
        self.names: set[str] = set()
        self.unexpected: list[str] = []
        self.declarations = Declarations(NODES)
        if mine["error"] and mine["error"]["type"] in ("invalid_prompt", "missing_node_type"):
            self.compare_refusals()
        else:
            self.compare_nodes()

    def compare_refusals(self) -> None:
        """Compare the answers to a graph that is refused as a whole."""
        theirs = (self.theirs["error"] or {}).get("type")
        if theirs == "invalid_prompt":
            return
        if self.mine["error"]["type"] == "missing_node_type":
            self.unexpected.append("refused for a class that ComfyUI knows")
        self.names.add("shape")

    def compare_nodes(self) -> None:
        checked = self.checked()
        different = {
            node_id
            for node_id in {*self.theirs["node_errors"], *self.mine["node_errors"]}
            if self.compare_node(node_id, node_id in checked)
        }
        sources = {
            node_id: [value[0] for value in node["inputs"].values() if looks_like_link(value)]
            for node_id, node in self.prompt.items()
        }
        for output in set(self.theirs["outputs"]) ^ set(self.mine["outputs"]):
            if not different & with_ancestors([output], sources):
                self.unexpected.append(f"another decision on {output}, with no other fault")
        if self.theirs.get("raised"):
            self.unexpected.append(f"ComfyUI raised {self.theirs['raised']}")
        if self.theirs["ok"] == self.mine["ok"] and kind_of(self.theirs) != kind_of(self.mine):
            self.unexpected.append("another kind of error")

    def checked(self) -> set[str]:
        """Return the nodes that ComfyUI has certainly checked, by the links that it follows."""
        checked, pending = set(), [node_id for node_id in self.prompt if self.is_output(node_id)]
        while pending:
            node_id = pending.pop()
            if node_id in checked:
                continue
            checked.add(node_id)
            faults = faults_of(self.theirs, node_id)
            if any(kind in EXCEPTIONS for kind, _ in faults):
                continue
            for name, value in self.prompt[node_id]["inputs"].items():
                is_link = isinstance(value, list) and len(value) == 2 and value[0] in self.prompt
                if is_link and self.declared(node_id, name) and ("return_type_mismatch", name) not in faults:
                    pending.append(value[0])
        return checked

    def compare_node(self, node_id: str, checked: bool) -> bool:
        """Return True if the faults of a node differ. Unexpected differences are recorded."""
        theirs, shared, names = faults_of(self.theirs, node_id), Counter[Fault](), set[str]()
        for error in errors_of(self.mine, node_id):
            name = self.classify(node_id, error)
            if name is None:
                shared[fault_of(error)] += 1
            else:
                names.add(name)
        defaults = Counter({each: 1 for each in theirs if self.is_default(node_id, each)})
        if any(kind in EXCEPTIONS for kind, _ in theirs):
            names = names & RAISING or self.other_exception(node_id, defaults)
            is_expected = bool(names) and len(theirs) == 1
        elif not theirs and not checked:
            names, is_expected = {"behind"}, True
        else:
            is_expected = not names & RAISING and not shared - theirs and (bool(names) or theirs == shared + defaults)
            names |= {"default"} if defaults else set()
        if not is_expected:
            self.unexpected.append(f"{node_id}: ComfyUI's {theirs}, ours {faults_of(self.mine, node_id)}")
        self.names |= names
        return bool(names)

    def classify(self, node_id: str, error: dict[str, Any]) -> str | None:
        """Return the name of the difference that an error of ours is, or None."""
        kind, name = fault_of(error)
        declared = self.declared(node_id, name)
        if kind == "dependency_cycle":
            return "cycle"
        if kind == "exception_during_validation":
            values = self.prompt[node_id]["inputs"].values()
            wrapped = any(is_wrapped(value) and looks_like_link(unwrap_value(value)) for value in values)
            return "wrapped" if wrapped else "class"
        if kind == "bad_linked_input" and error["details"] != name:
            source, slot = self.prompt[node_id]["inputs"][name]
            if declared is None:
                return "undeclared"
            known = isinstance(source, str) and source in self.prompt
            count = len(NODES[self.prompt[source]["class_type"]].RETURN_TYPES) if known else 0
            if isinstance(slot, int) and -count <= slot < count:
                return "slot"
            return "link"
        if kind == "invalid_input_type":
            return unfit(declared, unwrap_value(self.prompt[node_id]["inputs"][name]), error["extra_info"])
        class_type = self.prompt[node_id]["class_type"]  # core declares combos of these two without their options
        is_new = declared is not None and (declared.kind == "COMBO" or class_type in ("CreateVideo", "SaveVideo"))
        has_validator = hasattr(NODES[class_type], "VALIDATE_INPUTS")
        if kind == "value_not_in_list" and error["extra_info"]["received_value"] is None and has_validator:
            return "null"
        if kind == "value_not_in_list" and is_new:
            return "list"
        return None

    def other_exception(self, node_id: str, defaults: Counter[Fault]) -> set[str]:
        """Return the difference that makes ComfyUI raise: it follows a cycle, or calls a class without an input."""
        raised = self.theirs["node_errors"][node_id]["errors"][0]["extra_info"]["exception_type"]
        if raised == "RecursionError" and "dependency_cycle" in json.dumps(self.mine):
            return {"cycle"}
        if self.prompt[node_id]["class_type"] == "LoadImage" and raised == "AttributeError":
            return {"name"}
        inputs = self.prompt[node_id]["inputs"]
        missing = [each for each in self.all_declared(node_id).values() if each.required and each.name not in inputs]
        if raised == "TypeError" and any("default" in each.options for each in missing):
            return {"default"}
        return set()

    def is_default(self, node_id: str, fault: Fault) -> bool:
        """Return True if ComfyUI reports a missing input that has a default."""
        declared = self.declared(node_id, fault[1])
        return bool(fault[0] == "required_input_missing" and declared and "default" in declared.options)

    def is_output(self, node_id: str) -> bool:
        return getattr(NODES[self.prompt[node_id]["class_type"]], "OUTPUT_NODE", False)

    def declared(self, node_id: str, name: str | None) -> DeclaredInput | None:
        return self.all_declared(node_id).get(name or "")

    def all_declared(self, node_id: str) -> dict[str, DeclaredInput]:
        return dict(self.declarations[self.prompt[node_id]["class_type"]].inputs)


def unfit(declared: DeclaredInput | None, value: Any, info: dict[str, Any]) -> str | None:
    """Return the result of `Comparison.classify` for a value that is not of its input's type."""
    if "finite" in info["exception_message"]:
        return "finite"
    fraction = isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))
    if declared and (declared.kind == "BOOLEAN" or (declared.is_seed and fraction)):
        return "flag"
    if declared and declared.kind not in CONVERTED and {"min", "max"} & declared.options.keys():
        return "compare"
    return None


def fault_of(error: dict[str, Any]) -> Fault:
    return error["type"], error["extra_info"].get("input_name")


def faults_of(answer: dict[str, Any], node_id: str) -> Counter[Fault]:
    return Counter(map(fault_of, errors_of(answer, node_id)))


def errors_of(answer: dict[str, Any], node_id: str) -> list[dict[str, Any]]:
    return answer["node_errors"].get(node_id, {"errors": []})["errors"]


def kind_of(answer: dict[str, Any]) -> str | None:
    return answer["error"] and answer["error"]["type"]


@pytest.mark.comfyui
@needs_comfyui
def test_decisions_and_faults_of_200_mutants_are_comfyuis_or_a_named_difference(tmp_path, run_config):
    prompts = mutants(200)
    cases = [{"prompt": prompt, "targets": None, "only_validate": True} for prompt in prompts]
    answers = ask_comfyui(tmp_path, cases, headless.PACKAGE, run_config.input_folder)
    compared = [
        Comparison(prompt, answer, as_answer(validate(prompt, NODES)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert [(each.unexpected, each.prompt) for each in compared if each.unexpected] == []
    assert set().union(*(each.names for each in compared)) <= set(DIFFERENCES)
    decisions = Counter((each.theirs["ok"], each.mine["ok"]) for each in compared)
    assert decisions[True, True] > 30 and decisions[False, False] > 30  # both are frequent, so equality is no accident


def test_opening_validating_explaining_and_running_a_mutant_raises_only_our_errors():
    ends: Counter[str] = Counter()
    for prompt in mutants(400):
        before = json.dumps(prompt)
        checked = validate(prompt, NODES)
        assert json.dumps(prompt) == before
        if isinstance(prompt, dict):
            with contextlib.suppress(GraphError):
                headless.open_graph(prompt)
        assert checked.ok == bool(checked.outputs) == (checked.error is None)
        ends["refused"] += not checked.ok
        if checked.error is not None or checked.node_errors:
            assert explain(checked.error, checked.node_errors, checked.prompt).isprintable()
        if checked.ok and all(node["class_type"] in TOYS for node in checked.prompt.values()):
            try:
                Engine(NODES).run(checked.prompt, checked.outputs)
                ends["ran"] += 1
            except NodeError as error:
                assert str(error).isprintable()
                ends["failed"] += 1
    assert ends["refused"] > 30 and ends["ran"] > 30 and ends["failed"] > 0
