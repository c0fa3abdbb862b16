"""Whether a graph can run: ComfyUI's checks with its error objects, and a few that it lacks. Nothing is run.

Where this differs from ComfyUI 0.3.64, on purpose: cycles, dangling links and slots out of range are named on their
node (there, a RecursionError or a KeyError); NaN and infinities are refused, as are text for a flag ("false" is true
there) and a seed with a fraction; a missing required widget that declares a default gets it, with a note; nodes behind
undeclared links and behind links of a wrong type are checked too; a node is said to fail exactly the outputs that need
it; and everything comes in the order of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .check_node import NodeCheck, Problem, ValidationContext, check_node, problem
from .explain import explain
from .node_schema import Declarations, is_output
from .prompt import MAX_NODES, Prompt, dependents_of, name_node, run_order, sources_of, title_of, with_ancestors
from .suggestions import Hints


@dataclass(frozen=True)
class Validation:
    """What is known of a graph before it runs.

    ok           whether at least one output can run
    error        ComfyUI's error object when not, else None
    outputs      the outputs that can run, in the order of the file
    node_errors  node id -> {"errors", "dependent_outputs", "class_type"}; also present when only some outputs fail
    prompt       a copy of the graph with converted values and declared defaults: what to execute
    notes        sentences about what was ignored, filled in or converted
    """

    ok: bool
    error: Problem | None
    outputs: list[str]
    node_errors: dict[str, dict[str, Any]]
    prompt: Prompt
    notes: list[str] = field(default_factory=list)


def validate(
    prompt: Mapping[str, Any],
    nodes: Mapping[str, type],
    targets: Collection[str] | None = None,
    *,
    given: Mapping[str, Collection[Any] | None] | None = None,
    keep: Collection[str] = (),
) -> Validation:
    """Check `prompt` against the classes in `nodes`; never raises for what is in it, and does not change it.

    Outputs are the nodes whose class says OUTPUT_NODE (only those in `targets`, when that is not None), and the ids
    in `keep`, whose values the caller wants. `given` are nodes that will not run because the caller brings their
    outputs, as in `Engine.run`; they are not checked and need not exist.
    """
    given = given or {}
    hints = Hints()
    fault = shape_fault(prompt) or _class_fault(prompt, nodes, given, hints)
    if fault is not None:
        return _refused(prompt, *fault)
    outputs = _find_outputs(prompt, nodes, targets, given, keep)
    if not outputs:
        return _refused(prompt, problem("prompt_no_outputs", "Prompt has no outputs", ""))
    counts = {node_id: None if values is None else len(values) for node_id, values in given.items()}
    around = ValidationContext(prompt, Declarations(nodes), counts, hints)
    sources = {node_id: [] if node_id in given else sources_of(node) for node_id, node in prompt.items()}
    needed = with_ancestors(outputs, sources)
    ids = [node_id for node_id in prompt if node_id in needed and node_id not in given]
    checks = {node_id: check_node(node_id, around) for node_id in ids}
    for cycle in run_order(ids, sources)[1]:
        members = cycle[:-1]
        for node_id in members:
            checks[node_id].problems.insert(0, _cycle_problem(node_id, cycle, members))
    return _conclude(prompt, outputs, sources, checks)


def raise_if_invalid(validation: Validation) -> None:
    """Raise GraphError when nothing of the graph can run. (Some faulty outputs leave it valid, as in ComfyUI: see
    `node_errors`, and `explain` for the words.)

    The message is one paragraph that names, for every fault, the node, the input, what was given and the way out. Its
    code is `graph.` and the type of the first fault; `node_errors` is ComfyUI's.
    """
    if validation.error is None:
        return
    faults = [fault for entry in validation.node_errors.values() for fault in entry["errors"]]
    first = faults[0] if faults else validation.error
    raise GraphError(
        explain(validation.error, validation.node_errors, validation.prompt),
        code=f"graph.{first['type']}",
        node_errors=validation.node_errors,
    )


def shape_fault(prompt: Any) -> tuple[Problem] | None:
    """The first thing that makes `prompt` no graph at all, as ComfyUI's error object; None when it is one."""

    def fault(message: str, details: str) -> tuple[Problem]:
        return (problem("invalid_prompt", message, details),)

    if not isinstance(prompt, Mapping):
        return fault("The graph is not a JSON object", f"got {type(prompt).__name__}")
    if len(prompt) > MAX_NODES:
        return (problem("too_large", f"A graph may have {MAX_NODES} nodes", f"it has {len(prompt)}"),)
    if isinstance(prompt.get("nodes"), list):
        return fault("The graph is in UI format; convert it to API format first", "it has a list of nodes")
    for node_id, node in prompt.items():
        if not isinstance(node_id, str):
            return fault("Node ids are strings", f"Node ID {node_id!r}")
        where = f"Node ID '#{node_id}'"
        if not isinstance(node, Mapping):
            return fault("A node is an object with class_type and inputs", f"{where} is {type(node).__name__}")
        if not isinstance(node.get("class_type", ""), str):
            return fault("The class_type of a node is a string", f"{where} has {type(node['class_type']).__name__}")
        inputs = node.get("inputs", None if "class_type" in node else {})
        if not isinstance(inputs, Mapping):
            return fault("The inputs of a node are an object", f"{where} has {type(inputs).__name__}")
        if any(not isinstance(name, str) for name in inputs):
            return fault("Input names are strings", where)
    return None


def _class_fault(
    prompt: Mapping[str, Any], nodes: Mapping[str, type], given: Collection[str], hints: Hints
) -> tuple[Problem, dict[str, dict[str, Any]]] | None:
    """The nodes whose class is missing or not known; the first is ComfyUI's error, all are node errors."""
    found = {}
    near: dict[str, str | None] = {}
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if node_id in given or class_type in nodes:
            continue
        if class_type is not None and class_type not in near:
            near[class_type] = hints.near(class_type, nodes)
        fault = _missing_class(node_id, node, near.get(str(class_type)))
        found[node_id] = {"errors": [fault], "dependent_outputs": [], "class_type": class_type}
    if not found:
        return None
    return next(iter(found.values()))["errors"][0], found


def _missing_class(node_id: str, node: Mapping[str, Any], hint: str | None) -> Problem:
    """ComfyUI's error since early 2026 (its pull request 12194)."""
    class_type, title = node.get("class_type"), title_of(node)
    if class_type is None:
        label = title or f"ID #{node_id}"
        message = f"Node '{label}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title or class_type}' not found. The custom node may not be installed."
    extra = {"nearest": hint} if hint else {}
    return problem(
        "missing_node_type",
        message,
        f"Node ID '#{node_id}'",
        node_id=node_id,
        class_type=class_type,
        node_title=title,
        **extra,
    )


def _find_outputs(
    prompt: Mapping[str, Any],
    nodes: Mapping[str, type],
    targets: Collection[str] | None,
    given: Collection[str],
    keep: Collection[str],
) -> list[str]:
    def wanted(node_id: str) -> bool:
        asked = targets is None or node_id in targets
        return node_id in keep or (asked and is_output(nodes[prompt[node_id]["class_type"]]))

    return [node_id for node_id in prompt if node_id not in given and wanted(node_id)]


def _cycle_problem(node_id: str, cycle: list[str], members: list[str]) -> Problem:
    path = " -> ".join(cycle) if len(cycle) <= 20 else " -> ".join([*cycle[:10], "...", *cycle[-9:]])
    return problem(
        "dependency_cycle",
        "Dependency cycle detected",
        f"each needs the next: {path}",
        node_id=node_id,
        cycle_nodes=members,
    )


def _conclude(
    prompt: Mapping[str, Any], outputs: list[str], sources: Mapping[str, list[str]], checks: Mapping[str, NodeCheck]
) -> Validation:
    """Which outputs stand, with the copy of the graph that may run."""
    copy = {node_id: dict(node) for node_id, node in prompt.items()}
    notes = []
    for node_id, check in checks.items():
        copy[node_id]["inputs"] = check.inputs
        notes.extend(f"{name_node(prompt, node_id)}: {note}" for note in check.notes)
    dependents = dependents_of({node_id: sources[node_id] for node_id in checks})
    faulty = [node_id for node_id, check in checks.items() if check.problems]
    failing = with_ancestors(faulty, dependents)
    good = [node_id for node_id in outputs if node_id not in failing]
    node_errors = {
        node_id: {
            "errors": checks[node_id].problems,
            "dependent_outputs": [],
            "class_type": prompt[node_id]["class_type"],
        }
        for node_id in faulty
    }
    for output in outputs:
        if output in failing:
            for node_id in with_ancestors([output], sources) & node_errors.keys():
                node_errors[node_id]["dependent_outputs"].append(output)
    if good:
        return Validation(True, None, good, node_errors, copy, notes)
    lines = [f"{each['message']}: {each['details']}" for output in outputs for each in checks[output].problems]
    error = problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(lines))
    return Validation(False, error, [], node_errors, copy, notes)


def _refused(prompt: Any, error: Problem, node_errors: dict[str, dict[str, Any]] | None = None) -> Validation:
    entries = prompt.items() if isinstance(prompt, Mapping) else ()
    copy = {key: dict(node) for key, node in entries if isinstance(node, Mapping)}
    return Validation(False, error, [], node_errors or {}, copy)
