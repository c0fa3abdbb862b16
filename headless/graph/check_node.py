"""Check one node of a graph against the declaration of its class, with the rules and error objects of ComfyUI."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.utils.redaction import is_secret_name
from .async_utils import resolve_all
from .call import call_mapped, constant_lists
from .node_schema import CONVERTED, Declaration, Declarations, DeclaredInput, return_types, types_match
from .prompt import is_wrapped, looks_like_link, unwrap_value, wrap_list
from .read import MAX_NESTING
from .suggestions import Hints
from .v3 import class_function

Problem = dict[str, Any]
"""An error object of ComfyUI: type, message, details, extra_info."""

MAX_SHOWN = 200
"""Characters of a received value that an error repeats."""
MAX_LISTED = 20
"""Options of a combo that an error lists, as in ComfyUI."""


@dataclass(frozen=True)
class ValidationContext:
    """The graph around a node. `precomputed` has the outputs of nodes that do not run."""

    prompt: Mapping[str, Any]
    declarations: Declarations
    precomputed: Mapping[str, Collection[Any]]
    hints: Hints


@dataclass
class NodeCheck:
    """The result of checking one node.

    Attributes:
        inputs: A copy of the inputs with converted values and declared defaults.
        problems: Error objects.
        notes: Sentences about what was ignored, filled in or converted.
        received: Types that links bring, by input.
    """

    inputs: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    received: dict[str, Any] = field(default_factory=dict)

    def add(self, fault: Problem | None) -> None:
        """Add an error object, if it is one."""
        if fault is not None:
            self.problems.append(fault)


def problem(kind: str, message: str, details: str, **extra_info: Any) -> Problem:
    """Create an error object as ComfyUI does."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def exception_info(error: BaseException) -> dict[str, Any]:
    """Describe an exception as ComfyUI's error objects and events do."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
    return {
        "exception_message": str(error),
        "exception_type": module + kind.__qualname__,
        "traceback": traceback.format_tb(error.__traceback__),
    }


def check_node(node_id: str, context: ValidationContext) -> NodeCheck:
    """Check every input of a node in declared order, then call its VALIDATE_INPUTS. Changes no argument.

    An exception of the node's class becomes a problem, as in ComfyUI.
    """
    node = context.prompt[node_id]
    check = NodeCheck(dict(node["inputs"]))
    try:
        declaration = context.declarations[node["class_type"]]
        arguments, takes_all = _validator_arguments(declaration)
        for declared in declaration.inputs.values():
            exempt = takes_all or declared.name in arguments
            check.add(_check_input(declared, check, context, exempt=exempt, typed="input_types" in arguments))
        for name in [name for name in check.inputs if name not in declaration.inputs]:
            check.add(_check_undeclared(name, declaration, check, context))
        if arguments or takes_all:
            check.problems.extend(_call_validator(node_id, declaration, check, arguments, takes_all))
    except Exception as error:
        message = "Exception when validating node"
        check.problems.append(problem("exception_during_validation", message, str(error), **exception_info(error)))
    check.problems = [_without_secrets(fault, check) for fault in check.problems]
    return check


def _without_secrets(fault: Problem, check: NodeCheck) -> Problem:
    """Remove the value from a problem if its input has the name of a secret. Errors and logs would repeat it."""
    info = fault["extra_info"]
    name = info.get("input_name")
    value = check.inputs.get(name)
    if not isinstance(name, str) or not is_secret_name(name) or looks_like_link(value):
        return fault
    hidden = {key: "" for key in ("received_value", "exception_message", "nearest") if key in info}
    return {**fault, "message": "The value does not fit", "details": name, "extra_info": {**info, **hidden}}


def _check_input(
    declared: DeclaredInput, check: NodeCheck, context: ValidationContext, *, exempt: bool, typed: bool
) -> Problem | None:
    """Check one declared input. VALIDATE_INPUTS checks its value if `exempt`, and the types of links if `typed`."""
    name = declared.name
    if name not in check.inputs:
        return _fill_default(declared, check)
    value = check.inputs[name]
    if isinstance(value, list):
        return _check_link(name, value, context, declared.config) or _check_type(declared, check, context, typed)
    fault = _convert(declared, check)
    is_null_choice = declared.choices is not None and check.inputs[name] is None
    if fault is None and (not exempt or is_null_choice):  # VALIDATE_INPUTS gets None for links too
        return check_value(declared, unwrap_value(check.inputs[name]), context.hints)
    return fault


def _check_type(declared: DeclaredInput, check: NodeCheck, context: ValidationContext, typed: bool) -> Problem | None:
    """Record the type that a valid link brings, and return the problem with it."""
    name, link = declared.name, check.inputs[declared.name]
    received = check.received[name] = _output_types(link[0], context)[link[1]]
    if received is None or typed or types_match(received, declared.kind):
        return None
    return problem(
        "return_type_mismatch",
        "Return type mismatch between linked nodes",
        f"{name}, received_type({received}) mismatch input_type({declared.kind})",
        input_name=name,
        input_config=declared.config,
        received_type=received,
        linked_node=link,
    )


def _fill_default(declared: DeclaredInput, check: NodeCheck) -> Problem | None:
    """Fill in the declared default of a missing widget, so that graphs saved before a node got an input still run."""
    name = declared.name
    if not declared.required:
        return None
    if "default" not in declared.options or not declared.is_widget:
        return problem("required_input_missing", "Required input is missing", name, input_name=name)
    value = declared.options["default"]
    check.inputs[name] = wrap_list(value)
    check.notes.append(f'input "{name}" is missing; its default {_shown(value)} is used')
    return None


def _check_undeclared(
    name: str, declaration: Declaration, check: NodeCheck, context: ValidationContext
) -> Problem | None:
    """Check an input that the class does not declare. Its function gets a link, but not a constant."""
    value = check.inputs[name]
    if looks_like_link(value):
        return _check_link(name, value, context, None)
    if name not in declaration.hidden:
        check.notes.append(f'input "{name}" is not declared by {declaration.class_type}; its value is ignored')
    try:
        check_finite(value)
    except ValueError as error:
        return _not_converted(DeclaredInput(name, False, "*", {}), value, error)
    return None


def _check_link(name: str, link: list[Any], context: ValidationContext, config: Any) -> Problem | None:
    """Check the form, the source and the slot of `[source id, slot]`."""
    details, nearest = name, None
    if len(link) == 2:
        source, slot = link
        if not isinstance(source, str):
            example = f"[{_shown(str(source))}, {_shown(slot)}]"
            details = f"{name}, node ids must be strings, as in {example}, got {_shown(source)}"
        elif source not in context.prompt and source not in context.precomputed:
            details = f'{name}, linked node "{_clip(source)}" is not in the graph'
            nearest = context.hints.near(source, context.prompt)
        elif not isinstance(slot, int) or isinstance(slot, bool):
            details = f"{name}, slot {_shown(slot)} is not an integer"
        else:
            types = _output_types(source, context)
            if 0 <= slot < len(types):
                return None
            slots = f"slots 0 to {len(types) - 1}" if types else "no outputs"
            details = f'{name}, slot {slot} is out of range: linked node "{source}" has {slots}'
    message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
    return _value_problem("bad_linked_input", message, details, name, config, link, nearest)


def _value_problem(
    kind: str, message: str, details: str, name: str, config: Any, value: Any, nearest: str | None = None
) -> Problem:
    """Create an error object about an input's value. `nearest`: similar names, which ComfyUI's errors do not have."""
    fault = problem(kind, message, details, input_name=name, input_config=config, received_value=_short(value))
    if nearest:
        fault["extra_info"]["nearest"] = nearest
    return fault


def _output_types(source: str, context: ValidationContext) -> list[Any]:
    """Return the types of a linked node's outputs. None for an output of a precomputed node of an unknown class."""
    node = context.prompt.get(source)
    types = return_types(context.declarations.nodes.get(node["class_type"])) if isinstance(node, Mapping) else []
    count = len(context.precomputed.get(source, types))
    return [*types, *[None] * (count - len(types))][:count]


def _convert(declared: DeclaredInput, check: NodeCheck) -> Problem | None:
    """Write the converted constant into `check.inputs`. Return a problem if it does not convert or is not finite.

    A list that is a value stays wrapped, so that it is not taken for a link later.
    """
    name = declared.name
    raw = unwrap_value(check.inputs[name])
    value = raw
    try:
        _check_kind(declared, raw)
        if isinstance(declared.kind, str) and declared.kind in CONVERTED:
            value = CONVERTED[declared.kind](raw)
        check_finite(value)
        check_finite(check.inputs[name])  # a wrapper may hold other values too
    except (ValueError, TypeError, OverflowError) as error:
        return _not_converted(declared, raw, error)
    if value is not raw and value != raw:
        check.notes.append(f'input "{name}": {_shown(raw)} is read as {_shown(value)}')
    if not (is_wrapped(check.inputs[name]) and isinstance(value, list)):
        check.inputs[name] = value
    return None


def _check_kind(declared: DeclaredInput, value: Any) -> None:
    """Raise ValueError for values that ComfyUI converts to another meaning: "false" to true, a seed of 1.9 to 1."""
    if declared.kind == "BOOLEAN" and not (isinstance(value, bool) or value in (0, 1)):
        reason = "not null" if value is None else "without quotes; ComfyUI would read any text as true"
        raise ValueError(f"write true or false, {reason}")
    fractional = isinstance(value, float) and math.isfinite(value) and not value.is_integer()
    if declared.is_seed and (isinstance(value, bool) or fractional):
        raise ValueError("a seed must be an integer; it is not rounded")


def _not_converted(declared: DeclaredInput, value: Any, error: Exception) -> Problem:
    kind = declared.kind if isinstance(declared.kind, str) else "COMBO"
    message = f"Failed to convert an input value to a {kind} value"
    details = f"{declared.name}, {_clip(str(value))}, {_clip(str(error))}"
    fault = _value_problem("invalid_input_type", message, details, declared.name, declared.config, value)
    fault["extra_info"]["exception_message"] = _clip(str(error))
    return fault


def check_finite(value: Any) -> None:
    """Check a constant and everything inside it.

    Raises:
        ValueError: It holds NaN or an infinity, or it is nested deeper than a graph may be.
    """
    pending = [(value, 0)]
    while pending:
        part, depth = pending.pop()
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError("not a finite number")
        if isinstance(part, (list, tuple, dict)):
            if depth == MAX_NESTING:
                raise ValueError(f"nested deeper than {MAX_NESTING}")
            pending.extend((item, depth + 1) for item in (part.values() if isinstance(part, dict) else part))


def check_constant(declared: DeclaredInput, value: Any) -> tuple[Any, Problem | None]:
    """Return a value converted to an input's type, and the problem with it, if any."""
    check = NodeCheck({declared.name: value})
    fault = _convert(declared, check)
    converted = check.inputs[declared.name]
    return converted, fault or check_value(declared, converted, Hints())


def check_value(declared: DeclaredInput, value: Any, hints: Hints) -> Problem | None:
    """Check the limits of a value, or that it is one of a combo's options."""
    options = declared.options
    try:
        if "min" in options and value < options["min"]:
            kind, limit = "value_smaller_than_min", f"smaller than min of {options['min']}"
        elif "max" in options and value > options["max"]:
            kind, limit = "value_bigger_than_max", f"bigger than max of {options['max']}"
        else:
            return _check_choice(declared, value, hints)
    except TypeError as error:
        return _not_converted(declared, value, error)
    message = f"Value {_clip(str(value))} {limit}"
    return _value_problem(kind, message, declared.name, declared.name, declared.config, value)


def _check_choice(declared: DeclaredInput, value: Any, hints: Hints) -> Problem | None:
    choices = declared.choices
    if choices is None:
        return None
    chosen = value if declared.options.get("multiselect") and isinstance(value, list) else [value]
    unknown = [choice for choice in chosen if choice not in choices]
    if not unknown:
        return None
    few = len(choices) <= MAX_LISTED
    listed = str(choices) if few else f"(list of length {len(choices)})"
    details = f"{declared.name}: '{_clip(str(unknown[0]))}' not in {listed}"
    config = declared.config if few else None
    nearest = hints.near(str(unknown[0]), map(str, choices))
    return _value_problem("value_not_in_list", "Value not in list", details, declared.name, config, value, nearest)


def _validator_arguments(declaration: Declaration) -> tuple[list[str], bool]:
    """Return the arguments of VALIDATE_INPUTS, and True if it takes any (`**kwargs`)."""
    function = class_function(declaration.node_class, "VALIDATE_INPUTS", "validate_inputs")
    if function is None:
        return [], False
    spec = inspect.getfullargspec(function)
    return [*spec.args, *spec.kwonlyargs], spec.varkw is not None


def _call_validator(
    node_id: str, declaration: Declaration, check: NodeCheck, arguments: list[str], takes_all: bool
) -> list[Problem]:
    """Call VALIDATE_INPUTS. Return one problem for each input passed to it and each call that did not return True."""
    node_class: Any = declaration.node_class
    lists = constant_lists({"inputs": check.inputs}, declaration, node_id)
    lists = {name: values for name, values in lists.items() if takes_all or name in arguments}
    if "input_types" in arguments:
        lists["input_types"] = [check.received]
    function: Any = class_function(node_class, "VALIDATE_INPUTS", "validate_inputs")
    results = resolve_all(call_mapped(function, lists, getattr(node_class, "INPUT_IS_LIST", False)))
    message = "Custom validation failed for node"
    return [
        problem("custom_validation_failed", message, name if result is False else f"{name} - {result}", input_name=name)
        for name in lists
        for result in results
        if result is not True
    ]


def _shown(value: Any) -> str:
    return _clip(value if isinstance(value, str) and len(value) > MAX_SHOWN else repr(value))


def _short(value: Any) -> Any:
    """Return the value itself, or the start of its text if it is long."""
    is_short = isinstance(value, (bool, int, float, type(None))) or len(repr(value)) <= MAX_SHOWN
    return value if is_short else _shown(value)


def _clip(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
