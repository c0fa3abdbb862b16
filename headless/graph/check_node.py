"""One node of a graph against what its class declares, by the rules and with the error objects of ComfyUI."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.utils.redaction import is_secret_name
from .async_utils import settle_all
from .call import call_mapped, constant_lists
from .node_schema import CONVERTED, Declaration, Declarations, DeclaredInput, return_types, types_match
from .prompt import WRAPPED, is_wrapped, looks_like_link, unwrap_value
from .read import MAX_NESTING
from .suggestions import Hints
from .v3 import asked as asked_of

Problem = dict[str, Any]
"""An error object of ComfyUI: type, message, details, extra_info."""

MAX_SHOWN = 200
"""Characters of a received value that an error repeats."""
MAX_LISTED = 20
"""Options of a combo that an error lists; ComfyUI's number."""


@dataclass(frozen=True)
class ValidationContext:
    """The graph that a node stands in. `given` holds the ids whose outputs the caller brings, with their count."""

    prompt: Mapping[str, Any]
    declarations: Declarations
    given: Mapping[str, int | None]
    hints: Hints


@dataclass
class NodeCheck:
    """What came out of checking one node. `inputs` is a copy with converted values and declared defaults."""

    inputs: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    received: dict[str, Any] = field(default_factory=dict)


def problem(kind: str, message: str, details: str, **extra_info: Any) -> Problem:
    """An error object as ComfyUI makes them."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def check_node(node_id: str, around: ValidationContext) -> NodeCheck:
    """Check every input of a node, then ask its VALIDATE_INPUTS. Changes nothing that it is given.

    What the class itself raises on the way becomes a problem, as in ComfyUI. Inputs are looked at in declared order.
    """
    node = around.prompt[node_id]
    check = NodeCheck(dict(node["inputs"]))
    try:
        declaration = around.declarations[node["class_type"]]
        asked, asks_all = _asked_of_class(declaration)
        for declared in declaration.inputs.values():
            _check_input(
                declared, check, around, exempt=asks_all or declared.name in asked, typed="input_types" in asked
            )
        _check_undeclared(declaration, check, around)
        if asked or asks_all:
            check.problems.extend(_ask_class(node_id, declaration, check, asked, asks_all))
    except Exception as error:
        check.problems.append(_class_raised(error))
    check.problems = [_without_secrets(found, check) for found in check.problems]
    return check


def _without_secrets(found: Problem, check: NodeCheck) -> Problem:
    """The same problem; of an input with a secret's name without the value, which errors and logs would repeat."""
    info = found["extra_info"]
    name = info.get("input_name")
    value = check.inputs.get(name)
    if not isinstance(name, str) or not is_secret_name(name) or looks_like_link(value):
        return found
    hidden = {key: "" for key in ("received_value", "exception_message", "nearest") if key in info}
    return {**found, "message": "The value does not fit", "details": name, "extra_info": {**info, **hidden}}


def _check_input(
    declared: DeclaredInput, check: NodeCheck, around: ValidationContext, *, exempt: bool, typed: bool
) -> None:
    """Check one declared input. `exempt`: VALIDATE_INPUTS looks at its value; `typed`: also at the types of links."""
    name = declared.name
    if name not in check.inputs:
        _fill_or_miss(declared, check)
        return
    value = check.inputs[name]
    if isinstance(value, list):
        found = _check_link(name, value, around, declared.config)
        if found is not None:
            check.problems.append(found)
            return
        received = _received_type(value, around)
        check.received[name] = received
        if received is not None and not typed and not types_match(received, declared.kind):
            check.problems.append(
                problem(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                    f"{name}, received_type({received}) mismatch input_type({declared.kind})",
                    input_name=name,
                    input_config=declared.config,
                    received_type=received,
                    linked_node=value,
                )
            )
        return
    found = _convert(declared, check) or (
        None
        if exempt and not _is_null_choice(declared, check)
        else check_value(declared, unwrap_value(check.inputs[name]), around.hints)
    )
    if found is not None:
        check.problems.append(found)


def _is_null_choice(declared: DeclaredInput, check: NodeCheck) -> bool:
    """Whether null stands where a choice belongs: a class that looks at its values is told null for links, too."""
    return declared.choices is not None and check.inputs[declared.name] is None


def _fill_or_miss(declared: DeclaredInput, check: NodeCheck) -> None:
    """A missing widget with a declared default gets it: graphs saved before a node grew an input keep running."""
    if not declared.required:
        return
    if "default" in declared.options and declared.is_widget:
        value = declared.options["default"]
        check.inputs[declared.name] = {WRAPPED: value} if isinstance(value, list) else value
        check.notes.append(f'input "{declared.name}" is missing; its default {_shown(value)} is used')
        return
    check.problems.append(
        problem("required_input_missing", "Required input is missing", declared.name, input_name=declared.name)
    )


def _check_undeclared(declaration: Declaration, check: NodeCheck, around: ValidationContext) -> None:
    """Links that the class does not declare still reach its function; constants do not."""
    for name, value in check.inputs.items():
        if name in declaration.inputs:
            continue
        if looks_like_link(value):
            found = _check_link(name, value, around, None)
            check.problems.extend([found] if found else [])
            continue
        if name not in declaration.hidden:
            check.notes.append(f'input "{name}" is not declared by {declaration.class_type}; its value is ignored')
        try:
            check_finite(value)
        except ValueError as error:
            check.problems.append(_not_converted(DeclaredInput(name, False, "*", {}), value, error))


def _check_link(name: str, link: list[Any], around: ValidationContext, config: Any) -> Problem | None:
    """The problem with `[source id, slot]`, if there is one: form, source, slot."""
    details, hint = name, None
    if len(link) == 2:
        source, slot = link
        if not isinstance(source, str):
            details = (
                f"{name}, node ids are strings, as in [{_shown(str(source))}, {_shown(slot)}], got {_shown(source)}"
            )
        elif source not in around.prompt and source not in around.given:
            details = f'{name}, linked node "{_clip(source)}" is not in the graph'
            hint = around.hints.near(source, around.prompt)
        elif not isinstance(slot, int) or isinstance(slot, bool):
            details = f"{name}, slot {_shown(slot)} is not an integer"
        else:
            count = _output_count(source, around)
            if count is None or 0 <= slot < count:
                return None
            slots = f"slots 0 to {count - 1}" if count else "no outputs"
            details = f'{name}, slot {slot} is out of range: linked node "{source}" has {slots}'
    found = problem(
        "bad_linked_input",
        "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        details,
        input_name=name,
        input_config=config,
        received_value=_short(link),
    )
    return _with_hint(found, hint)


def _output_count(source: str, around: ValidationContext) -> int | None:
    """How many outputs a linked node has; None when nothing here knows."""
    if source in around.given:
        return around.given[source]
    return len(return_types(around.declarations.nodes[around.prompt[source]["class_type"]]))


def _received_type(link: list[Any], around: ValidationContext) -> Any:
    """The type that a link brings; None for a given node whose class is not known."""
    node = around.prompt.get(link[0])
    node_class = around.declarations.nodes.get(node["class_type"]) if isinstance(node, Mapping) else None
    types = return_types(node_class)
    return types[link[1]] if link[1] < len(types) else None


def _convert(declared: DeclaredInput, check: NodeCheck) -> Problem | None:
    """Write the converted constant into `check.inputs`; the problem when it does not convert or is not finite.

    A list that is a value stays wrapped, so that nothing takes it for a link later.
    """
    name = declared.name
    raw = unwrap_value(check.inputs[name])
    value = raw
    try:
        _refuse_other_kind(declared, raw)
        if isinstance(declared.kind, str) and declared.kind in CONVERTED:
            value = CONVERTED[declared.kind](raw)
        check_finite(value)
        check_finite(check.inputs[name])  # what a wrapper holds beside its value, too
    except (ValueError, TypeError, OverflowError) as error:
        return _not_converted(declared, raw, error)
    if value is not raw and value != raw:
        check.notes.append(f'input "{name}": {_shown(raw)} is read as {_shown(value)}')
    if not (is_wrapped(check.inputs[name]) and isinstance(value, list)):
        check.inputs[name] = value
    return None


def _refuse_other_kind(declared: DeclaredInput, value: Any) -> None:
    """Raise ValueError for what ComfyUI would quietly read as something else: "false" as true, a seed of 1.9 as 1."""
    if declared.kind == "BOOLEAN" and not (isinstance(value, bool) or value in (0, 1)):
        why = "null is neither" if value is None else "without quotes; any text is true to ComfyUI"
        raise ValueError(f"write true or false, {why}")
    fractional = isinstance(value, float) and math.isfinite(value) and not value.is_integer()
    if declared.is_seed and (isinstance(value, bool) or fractional):
        raise ValueError("a seed is a whole number, and is not rounded")


def _not_converted(declared: DeclaredInput, value: Any, error: Exception) -> Problem:
    kind = declared.kind if isinstance(declared.kind, str) else "COMBO"
    return problem(
        "invalid_input_type",
        f"Failed to convert an input value to a {kind} value",
        f"{declared.name}, {_clip(str(value))}, {_clip(str(error))}",
        input_name=declared.name,
        input_config=declared.config,
        received_value=_short(value),
        exception_message=_clip(str(error)),
    )


def check_finite(value: Any) -> None:
    """Raise ValueError for NaN, an infinity, or nesting deeper than a graph may have, anywhere inside a constant."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError("not a finite number")
        if isinstance(part, (list, tuple, dict)):
            if depth == MAX_NESTING:
                raise ValueError(f"nested deeper than {MAX_NESTING}")
            waiting.extend((each, depth + 1) for each in (part.values() if isinstance(part, dict) else part))


def check_value(declared: DeclaredInput, value: Any, hints: Hints) -> Problem | None:
    """The problem with a value's size, or that it is none of a combo's options."""
    options = declared.options
    try:
        if "min" in options and value < options["min"]:
            kind, message = "value_smaller_than_min", f"Value {_clip(str(value))} smaller than min of {options['min']}"
        elif "max" in options and value > options["max"]:
            kind, message = "value_bigger_than_max", f"Value {_clip(str(value))} bigger than max of {options['max']}"
        else:
            return _check_choice(declared, value, hints)
    except TypeError as error:
        return _not_converted(declared, value, error)
    return problem(
        kind,
        message,
        declared.name,
        input_name=declared.name,
        input_config=declared.config,
        received_value=_short(value),
    )


def _check_choice(declared: DeclaredInput, value: Any, hints: Hints) -> Problem | None:
    choices = declared.choices
    if choices is None:
        return None
    chosen = value if declared.options.get("multiselect") and isinstance(value, list) else [value]
    strange = [each for each in chosen if each not in choices]
    if not strange:
        return None
    few = len(choices) <= MAX_LISTED
    listed = str(choices) if few else f"(list of length {len(choices)})"
    found = problem(
        "value_not_in_list",
        "Value not in list",
        f"{declared.name}: '{_clip(str(strange[0]))}' not in {listed}",
        input_name=declared.name,
        input_config=declared.config if few else None,
        received_value=_short(value),
    )
    return _with_hint(found, hints.near(str(strange[0]), map(str, choices)))


def _asked_of_class(declaration: Declaration) -> tuple[list[str], bool]:
    """The arguments of VALIDATE_INPUTS, and whether it takes any (`**kwargs`)."""
    function = asked_of(declaration.node_class, "VALIDATE_INPUTS", "validate_inputs")
    if function is None:
        return [], False
    spec = inspect.getfullargspec(function)
    return [*spec.args, *spec.kwonlyargs], spec.varkw is not None


def _ask_class(
    node_id: str, declaration: Declaration, check: NodeCheck, asked: list[str], asks_all: bool
) -> list[Problem]:
    """Call VALIDATE_INPUTS; one problem for each input that it received and each call that did not return True."""
    node_class: Any = declaration.node_class
    lists = constant_lists({"inputs": check.inputs}, declaration, node_id)
    lists = {name: values for name, values in lists.items() if asks_all or name in asked}
    if "input_types" in asked:
        lists["input_types"] = [check.received]
    function: Any = asked_of(node_class, "VALIDATE_INPUTS", "validate_inputs")
    answers = settle_all(call_mapped(function, lists, getattr(node_class, "INPUT_IS_LIST", False)))
    return [
        problem(
            "custom_validation_failed",
            "Custom validation failed for node",
            name if answer is False else f"{name} - {answer}",
            input_name=name,
        )
        for name in lists
        for answer in answers
        if answer is not True
    ]


def _class_raised(error: Exception) -> Problem:
    """The node's class raised while it was asked; ComfyUI's shape of that."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
    return problem(
        "exception_during_validation",
        "Exception when validating node",
        str(error),
        exception_message=str(error),
        exception_type=module + kind.__qualname__,
        traceback=traceback.format_tb(error.__traceback__),
    )


def _with_hint(found: Problem, names: str | None) -> Problem:
    """Add the nearest names that exist, which ComfyUI's errors do not have."""
    if names:
        found["extra_info"]["nearest"] = names
    return found


def _shown(value: Any) -> str:
    return _clip(value if isinstance(value, str) and len(value) > MAX_SHOWN else repr(value))


def _short(value: Any) -> Any:
    """The value itself, or the start of its text when it is long."""
    return (
        value if isinstance(value, (bool, int, float, type(None))) or len(repr(value)) <= MAX_SHOWN else _shown(value)
    )


def _clip(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
