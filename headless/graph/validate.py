"""Check that a graph can run: ComfyUI's checks with its error objects, and some that it lacks. Nothing is run.

Intended differences from ComfyUI 0.3.64:
    - Cycles, dangling links and slots out of range are reported on their node. ComfyUI raises an exception.
    - NaN and infinities are refused. So are strings for a boolean (ComfyUI reads "false" as true) and a seed with a
      fraction.
    - A missing required widget gets its declared default, with a note.
    - Nodes behind undeclared links, and behind links of a wrong type, are checked too.
    - `dependent_outputs` of a faulty node lists exactly the outputs that need it.
    - Results are in the order of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .check_node import NodeCheck, Problem, ValidationContext, check_node, problem
from .explain import explain
from .node_schema import Declarations, is_output
from .prompt import MAX_NODES, Prompt, name_node, run_order, sources_of, title_of, with_ancestors
from .suggestions import Hints

NodeErrors = dict[str, dict[str, Any]]
"""Node id -> {"errors", "dependent_outputs", "class_type"}."""


@dataclass(frozen=True)
class Validation:
    """The result of validating a graph.

    Attributes:
        ok: True if at least one output can run.
        error: ComfyUI's error object if not `ok`, else None.
        outputs: The outputs that can run, in the order of the file.
        node_errors: ComfyUI's errors by node id. Also set if only some outputs fail.
        prompt: A copy of the graph to execute, with converted values and declared defaults.
        notes: Sentences about what was ignored, filled in or converted.
    """

    ok: bool
    error: Problem | None
    outputs: list[str]
    node_errors: NodeErrors
    prompt: Prompt
    notes: list[str] = field(default_factory=list)


def validate(
    prompt: Mapping[str, Any],
    nodes: Mapping[str, type],
    targets: Collection[str] | None = None,
    *,
    precomputed: Mapping[str, Collection[Any]] | None = None,
    keep: Collection[str] = (),
) -> Validation:
    """Check a graph against node classes. Never raises for its content, and does not change it.

    Args:
        prompt: The graph in API format.
        nodes: Node classes by class type.
        targets: Ids of the output nodes to run. None: all.
        precomputed: Outputs of nodes that do not run, as in `Engine.run`. They are not checked and need not exist.
        keep: Ids of other nodes that count as outputs, because the caller needs their values.
    """
    precomputed = precomputed or {}
    hints = Hints()
    fault = shape_fault(prompt)
    if fault is not None:
        return _refused(prompt, fault)
    unknown = _class_faults(prompt, nodes, precomputed, hints)
    if unknown:
        return _refused(prompt, next(iter(unknown.values()))["errors"][0], unknown)
    outputs = []
    for node_id, node in prompt.items():
        is_target = (targets is None or node_id in targets) and is_output(nodes.get(node.get("class_type")))
        if node_id not in precomputed and (node_id in keep or is_target):
            outputs.append(node_id)
    if not outputs:
        return _refused(prompt, problem("prompt_no_outputs", "Prompt has no outputs", ""))
    context = ValidationContext(prompt, Declarations(nodes), precomputed, hints)
    sources = {node_id: [] if node_id in precomputed else sources_of(node) for node_id, node in prompt.items()}
    needed = with_ancestors(outputs, sources)
    ids = [node_id for node_id in prompt if node_id in needed and node_id not in precomputed]
    checks = {node_id: check_node(node_id, context) for node_id in ids}
    for cycle in run_order(ids, sources)[1]:
        for node_id in cycle[:-1]:
            checks[node_id].problems.insert(0, _cycle_problem(node_id, cycle))
    return _conclude(prompt, outputs, sources, checks)


def raise_if_invalid(validation: Validation) -> None:
    """Raise an error if no output of a graph can run.

    Faulty outputs among others leave a graph valid, as in ComfyUI. See `Validation.node_errors` and `explain`.

    Raises:
        GraphError: Describes every fault. Its code is `graph.` and the type of the first fault.
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


def raise_if_misshapen(prompt: Any) -> None:
    """Raise GraphError if `prompt` does not have the shape of a graph (`graph.invalid_prompt`, `graph.too_large`)."""
    fault = shape_fault(prompt)
    if fault is not None:
        raise GraphError(explain(fault, {}, {}), code=f"graph.{fault['type']}")


def shape_fault(prompt: Any) -> Problem | None:
    """Return ComfyUI's error object for a value that is not a graph in API format, or None."""

    def fault(message: str, details: str) -> Problem:
        return problem("invalid_prompt", message, details)

    if not isinstance(prompt, Mapping):
        return fault("The graph is not a JSON object", f"got {type(prompt).__name__}")
    if len(prompt) > MAX_NODES:
        return problem("too_large", f"A graph may have {MAX_NODES} nodes", f"it has {len(prompt)}")
    if isinstance(prompt.get("nodes"), list):
        return fault("The graph is in UI format; convert it to API format first", "it has a list of nodes")
    for node_id, node in prompt.items():
        if not isinstance(node_id, str):
            return fault("Node ids are strings", f"Node ID {node_id!r}")
        name = f"Node ID '#{node_id}'"
        if not isinstance(node, Mapping):
            return fault("A node is an object with class_type and inputs", f"{name} is {type(node).__name__}")
        if not isinstance(node.get("class_type", ""), str):
            return fault("The class_type of a node is a string", f"{name} has {type(node['class_type']).__name__}")
        inputs = node.get("inputs", None if "class_type" in node else {})
        if not isinstance(inputs, Mapping):
            return fault("The inputs of a node are an object", f"{name} has {type(inputs).__name__}")
        if any(not isinstance(input_name, str) for input_name in inputs):
            return fault("Input names are strings", name)
    return None


def _class_faults(
    prompt: Mapping[str, Any], nodes: Mapping[str, type], precomputed: Collection[str], hints: Hints
) -> NodeErrors:
    """Return the errors of the nodes with a missing or unknown class."""
    node_errors: NodeErrors = {}
    near: dict[str, str | None] = {}
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if node_id in precomputed or class_type in nodes:
            continue
        if class_type is not None and class_type not in near:
            near[class_type] = hints.near(class_type, nodes)
        fault = _missing_class(node_id, node, near.get(str(class_type)))
        node_errors[node_id] = {"errors": [fault], "dependent_outputs": [], "class_type": class_type}
    return node_errors


def _missing_class(node_id: str, node: Mapping[str, Any], nearest: str | None) -> Problem:
    """Create ComfyUI's error object since early 2026 (its pull request 12194)."""
    class_type, title = node.get("class_type"), title_of(node)
    if class_type is None:
        label = title or f"ID #{node_id}"
        message = f"Node '{label}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title or class_type}' not found. The custom node may not be installed."
    extra = {"nearest": nearest} if nearest else {}
    return problem(
        "missing_node_type",
        message,
        f"Node ID '#{node_id}'",
        node_id=node_id,
        class_type=class_type,
        node_title=title,
        **extra,
    )


def _cycle_problem(node_id: str, cycle: list[str]) -> Problem:
    path = " -> ".join(cycle if len(cycle) <= 20 else [*cycle[:10], "...", *cycle[-9:]])
    details = f"each needs the next: {path}"
    return problem("dependency_cycle", "Dependency cycle detected", details, node_id=node_id, cycle_nodes=cycle[:-1])


def _conclude(
    prompt: Mapping[str, Any], outputs: list[str], sources: Mapping[str, list[str]], checks: Mapping[str, NodeCheck]
) -> Validation:
    """Decide which outputs can run."""
    copy = {node_id: dict(node) for node_id, node in prompt.items()}
    notes = []
    for node_id, check in checks.items():
        copy[node_id]["inputs"] = check.inputs
        notes.extend(f"{name_node(prompt, node_id)}: {note}" for note in check.notes)
    node_errors: NodeErrors = {
        node_id: {"errors": check.problems, "dependent_outputs": [], "class_type": prompt[node_id]["class_type"]}
        for node_id, check in checks.items()
        if check.problems
    }
    good = []
    for output in outputs:
        faulty = with_ancestors([output], sources) & node_errors.keys() if node_errors else ()
        for node_id in faulty:
            node_errors[node_id]["dependent_outputs"].append(output)
        if not faulty:
            good.append(output)
    if good:
        return Validation(True, None, good, node_errors, copy, notes)
    lines = [f"{fault['message']}: {fault['details']}" for output in outputs for fault in checks[output].problems]
    error = problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(lines))
    return Validation(False, error, [], node_errors, copy, notes)


def _refused(prompt: Any, error: Problem, node_errors: NodeErrors | None = None) -> Validation:
    entries = prompt.items() if isinstance(prompt, Mapping) else ()
    copy = {node_id: dict(node) for node_id, node in entries if isinstance(node, Mapping)}
    return Validation(False, error, [], node_errors or {}, copy)
