"""Graphs with random faults: ours decides as ComfyUI does, names every fault, and never breaks."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from svd_stages import headless
from svd_stages.headless.graph import Engine, explain, validate
from svd_stages.headless.graph.check_node import check_finite
from svd_stages.headless.graph.node_schema import CONVERTED, Declarations, DeclaredInput
from svd_stages.headless.graph.prompt import is_wrapped, looks_like_link, unwrap_value, with_ancestors
from svd_stages.svd_core.errors import GraphError, NodeError
from svd_stages.svd_core.runtime.runtime import use_runtime

from .ask_comfyui import ask_comfyui, needs_comfyui
from .cases import FAILING, VALID
from .mutations import mutant
from .toys import TOYS

ROCKET = headless.PACKAGE / "example_workflows" / "rocket.png"
NODES = {**headless.NODES, **TOYS}
DIFFERENCES = {
    "cycle": "ComfyUI goes round a cycle until Python stops it, and fails the outputs without naming it",
    "link": "a dangling link, or a slot that is out of range or no whole number, is an exception to ComfyUI, which "
    "hides the other faults of its node",
    "slot": "ComfyUI counts negative slots from the end, and takes true for 1",
    "finite": "NaN and infinities are taken by ComfyUI where no limit stops them",
    "flag": "text and null are flags to ComfyUI, and a seed is cut to a whole number",
    "compare": "a value that cannot be compared with its limits is an exception to ComfyUI",
    "default": "a required widget that is missing gets its declared default here",
    "undeclared": "links that no class declares are not looked at by ComfyUI",
    "behind": "what lies behind an undeclared link, a link of a wrong type or an exception is not looked at by ComfyUI",
    "list": "the options of combos of the new kind are not looked at by ComfyUI before 0.10",
    "class": "an exception of the node's class is said to be of inner validation, and hides its node's other faults",
    "name": "core's LoadImage breaks on a name that comes by a link, and on null, which looks the same to it",
    "null": "null where a choice belongs looks like a link to a class that validates its values, and passes",
    "wrapped": "ComfyUI unwraps a list that looks like a link, and then takes it for one",
    "shape": "what is no graph or no node is an exception to ComfyUI, at the latest when anything of the graph is run",
}
"""Where ours departs on purpose, by name."""
EXCEPTIONS = {"exception_during_validation", "exception_during_inner_validation"}
Fault = tuple[str, str | None]
"""The type of an error and the input that it is about."""


@pytest.fixture(scope="module")
def around(tmp_path_factory) -> Iterator[Path]:
    """A folder with pictures in input/, and the host that looks there."""
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "input").mkdir()
    shutil.copy(ROCKET, folder / "input")
    with use_runtime(run_config(folder).runtime()):
        yield folder


def run_config(folder: Path) -> headless.RunConfig:
    return headless.RunConfig(models=[folder / "models"], input_folder=folder / "input")


def base_graphs() -> list[Any]:
    """Valid graphs: of toys, and the templates that need no other nodes than ours, four times as they are few."""
    toys = [case.prompt for case in VALID + FAILING if not case.differs and case.targets is None]
    templates = []
    for path in sorted(ROCKET.parent.glob("*.json")):
        try:
            templates.append(headless.open_graph(path, ["SVDCheckpointLoader.checkpoint=svd-nano"]).prompt)
        except GraphError:
            continue
    assert len(templates) > 4
    return [*toys, *templates * 4]


def mutants(count: int, first: int = 0) -> list[Any]:
    """Mutants as they are read from a file."""
    bases = base_graphs()
    return [json.loads(json.dumps(mutant(first + seed, bases, NODES))) for seed in range(count)]


def ours(prompt: Any) -> dict[str, Any]:
    """Our answer in ComfyUI's form."""
    checked = validate(prompt, NODES)
    found = {
        "ok": checked.ok,
        "error": checked.error,
        "outputs": checked.outputs,
        "node_errors": checked.node_errors,
    }
    return json.loads(json.dumps(found, default=str))


class Comparison:
    """Our answer beside ComfyUI's: `names` of the differences that are wanted, `strange` ones that are not."""

    def __init__(self, prompt: Any, theirs: dict[str, Any], mine: dict[str, Any]):
        self.prompt, self.theirs, self.mine = prompt, theirs, mine
        self.names: set[str] = set()
        self.strange: list[str] = []
        self.declarations = Declarations(NODES)
        if mine["error"] and mine["error"]["type"] in ("invalid_prompt", "missing_node_type"):
            self.compare_refusals()
        else:
            self.compare_nodes()

    def compare_refusals(self) -> None:
        """A graph with a node that is none is refused as a whole."""
        theirs = (self.theirs["error"] or {}).get("type")
        if theirs == "invalid_prompt":
            return
        if self.mine["error"]["type"] == "missing_node_type":
            self.strange.append("refused for a class that ComfyUI knows")
        self.names.add("shape")

    def compare_nodes(self) -> None:
        looked_at = self.looked_at()
        different = {
            node_id
            for node_id in {*self.theirs["node_errors"], *self.mine["node_errors"]}
            if self.compare_node(node_id, node_id in looked_at)
        }
        sources = {
            node_id: [value[0] for value in node["inputs"].values() if looks_like_link(value)]
            for node_id, node in self.prompt.items()
        }
        for output in set(self.theirs["outputs"]) ^ set(self.mine["outputs"]):
            if not different & with_ancestors([output], sources):
                self.strange.append(f"another decision on {output}, with no other fault")
        if self.theirs.get("raised"):
            self.strange.append(f"ComfyUI raised {self.theirs['raised']}")
        if self.theirs["ok"] == self.mine["ok"] and kind_of(self.theirs) != kind_of(self.mine):
            self.strange.append("another kind of error")

    def looked_at(self) -> set[str]:
        """The nodes that ComfyUI has surely looked at, by the links that it follows."""
        found, waiting = set(), [each for each in self.prompt if self.is_output(each)]
        while waiting:
            node_id = waiting.pop()
            if node_id in found:
                continue
            found.add(node_id)
            faults = faults_of(self.theirs, node_id)
            if any(kind in EXCEPTIONS for kind, _ in faults):
                continue
            for name, value in self.prompt[node_id]["inputs"].items():
                is_link = isinstance(value, list) and len(value) == 2 and value[0] in self.prompt
                if is_link and self.declared(node_id, name) and ("return_type_mismatch", name) not in faults:
                    waiting.append(value[0])
        return found

    def compare_node(self, node_id: str, looked_at: bool) -> bool:
        """Whether the node's faults differ; what in them is not wanted is noted."""
        theirs = faults_of(self.theirs, node_id)
        kept, may, raising, names = self.translated(node_id)
        defaults = Counter({each: 1 for each in theirs if self.is_default(node_id, each)})
        exceptions = [kind for kind, _ in theirs if kind in EXCEPTIONS]
        if exceptions:
            names = raising or self.other_exception(node_id, defaults)
            if not names or len(theirs) != 1:
                self.strange.append(f"{node_id}: ComfyUI's exception, ours {faults_of(self.mine, node_id)}")
        elif not theirs and not looked_at:
            names = {"behind"}
        else:
            names |= {"default"} if defaults else set()
            left = theirs - kept - defaults - may
            if raising or left or kept - theirs:
                self.strange.append(f"{node_id}: ComfyUI's {theirs}, ours {faults_of(self.mine, node_id)}")
        self.names |= names
        return bool(names)

    def translated(self, node_id: str) -> tuple[Counter[Fault], Counter[Fault], set[str], set[str]]:
        """Of our faults: those ComfyUI has too, those it may have in their place, and by name those that raise there
        and those that it has not."""
        kept: Counter[Fault] = Counter()
        may: Counter[Fault] = Counter()
        raising, names = set(), set()
        for error in self.mine["node_errors"].get(node_id, {"errors": []})["errors"]:
            name, raises = self.wanted(node_id, error)
            if name is None:
                kept[fault_of(error)] += 1
            elif raises:
                raising.add(name)
            else:
                names.add(name)
                kinds = ("return_type_mismatch", "value_smaller_than_min", "value_bigger_than_max", "value_not_in_list")
                may += Counter({(kind, fault_of(error)[1]): 1 for kind in kinds if name in ("slot", "finite", "flag")})
        return kept, may, raising, names

    def wanted(self, node_id: str, error: dict[str, Any]) -> tuple[str | None, bool]:
        """The name of the difference that an error of ours is, or None; whether ComfyUI raises there."""
        kind, name = fault_of(error)
        declared = self.declared(node_id, name)
        if kind == "dependency_cycle":
            return "cycle", False
        if kind == "exception_during_validation":
            values = self.prompt[node_id]["inputs"].values()
            wrapped = any(is_wrapped(value) and looks_like_link(unwrap_value(value)) for value in values)
            return ("wrapped", False) if wrapped else ("class", True)
        if kind == "bad_linked_input" and error["details"] != name:
            source, slot = self.prompt[node_id]["inputs"][name]
            if declared is None:
                return "undeclared", False
            known = isinstance(source, str) and source in self.prompt
            count = len(NODES[self.prompt[source]["class_type"]].RETURN_TYPES) if known else 0
            if isinstance(slot, int) and -count <= slot < count:
                return "slot", False
            return "link", True
        if kind == "invalid_input_type":
            return unfit(declared, unwrap_value(self.prompt[node_id]["inputs"][name]), error["extra_info"])
        is_new = declared is not None and (declared.kind == "COMBO" or self.is_of_new_kind(node_id))
        is_asked = hasattr(NODES[self.prompt[node_id]["class_type"]], "VALIDATE_INPUTS")
        if kind == "value_not_in_list" and error["extra_info"]["received_value"] is None and is_asked:
            return "null", False
        if kind == "value_not_in_list" and is_new:
            return "list", False
        return None, False

    def other_exception(self, node_id: str, defaults: Counter[Fault]) -> set[str]:
        """Why ComfyUI may raise where ours does not: it goes round a cycle, or asks a class without what is missing."""
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
        """Whether ComfyUI misses an input that has a default here."""
        declared = self.declared(node_id, fault[1])
        return bool(fault[0] == "required_input_missing" and declared and "default" in declared.options)

    def is_output(self, node_id: str) -> bool:
        return getattr(NODES[self.prompt[node_id]["class_type"]], "OUTPUT_NODE", False)

    def is_of_new_kind(self, node_id: str) -> bool:
        """Whether core's node, for which ours stands in, is of the form that has no list in its declaration."""
        return self.prompt[node_id]["class_type"] in ("CreateVideo", "SaveVideo")

    def declared(self, node_id: str, name: str | None) -> DeclaredInput | None:
        return self.all_declared(node_id).get(name or "")

    def all_declared(self, node_id: str) -> dict[str, DeclaredInput]:
        return dict(self.declarations[self.prompt[node_id]["class_type"]].inputs)


def unfit(declared: DeclaredInput | None, value: Any, info: dict[str, Any]) -> tuple[str | None, bool]:
    """What `wanted` gives for a value that is not of its input's type."""
    with pytest.raises(ValueError) as not_finite:
        check_finite(math.nan)
    if info["exception_message"] == str(not_finite.value):
        return "finite", False
    fraction = isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))
    if declared and (declared.kind == "BOOLEAN" or (declared.is_seed and fraction)):
        return "flag", False
    if declared and declared.kind not in CONVERTED and {"min", "max"} & declared.options.keys():
        return "compare", True
    return None, False


def fault_of(error: dict[str, Any]) -> Fault:
    return error["type"], error["extra_info"].get("input_name")


def faults_of(answer: dict[str, Any], node_id: str) -> Counter[Fault]:
    return Counter(fault_of(error) for error in answer["node_errors"].get(node_id, {"errors": []})["errors"])


def kind_of(answer: dict[str, Any]) -> str | None:
    return answer["error"] and answer["error"]["type"]


@pytest.mark.comfyui
@needs_comfyui
def test_decisions_and_faults_of_200_mutants_are_comfyuis_or_named_as_different(around):
    prompts = mutants(200)
    asked = [{"prompt": prompt, "targets": None, "only_validate": True} for prompt in prompts]
    answers = ask_comfyui(around, asked, headless.PACKAGE, around / "input")
    compared = [Comparison(*each, ours(each[0])) for each in zip(prompts, answers, strict=True)]
    assert [(each.strange, each.prompt) for each in compared if each.strange] == []
    assert set().union(*(each.names for each in compared)) <= set(DIFFERENCES)
    decisions = Counter((each.theirs["ok"], each.mine["ok"]) for each in compared)
    assert decisions[True, True] > 30 and decisions[False, False] > 30  # both ways, so that equality says something


def test_every_mutant_ends_in_a_decision_and_nothing_else(around):
    """Validation, its words and, where all is of toys, the run."""
    ends: Counter[str] = Counter()
    for prompt in mutants(400):
        before = json.dumps(prompt)
        checked = validate(prompt, NODES)
        assert json.dumps(prompt) == before
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


def test_every_mutant_ends_in_a_decision_at_the_door_too(around):
    """As a dict and as a file, which is refused for what JSON does not have."""
    ends: Counter[str] = Counter()
    file = around / "graph.json"
    for prompt in mutants(300):
        file.write_text(json.dumps(prompt))
        sources = [file, prompt] if isinstance(prompt, dict) else [file]
        for source, settings in [*((each, []) for each in sources), (file, ["a.value=1"])]:
            try:
                headless.EmbeddedEngine(run_config(around)).check(headless.open_graph(source, settings))
                ends["valid"] += 1
            except GraphError as error:
                assert error.code != "graph" and str(error).isprintable() and error.exit_status in (2, 3)
                ends[error.code] += 1
    assert ends["valid"] > 30 and len(ends) > 10
