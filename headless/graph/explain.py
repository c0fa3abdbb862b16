"""Validation errors as one readable paragraph: node, input, what was given, the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .prompt import name_node, one_line

MAX_NAMED = 20
"""Faults that the paragraph names before it counts the rest."""


def explain(error: Mapping[str, Any] | None, node_errors: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    """The whole of what is wrong, for a person.

    error, node_errors as `Validation` has them. When `error` is None some outputs could still run, and it says so.
    """
    faults = []
    cycles = set()
    for node_id, entry in node_errors.items():
        for each in entry["errors"]:
            if each["type"] == "dependency_cycle":
                members = each["extra_info"].get("cycle_nodes") or [node_id]
                if members[0] in cycles:
                    continue
                cycles.add(members[0])
            faults.append(f"{name_node(prompt, node_id)}, {fault_sentence(each)}")
    if not faults and error is not None:
        details = f" ({error['details']})" if error["details"] else ""
        faults.append(f"{error['message']}{details}{_WAYS_OUT.get(error['type'], '')}")
    if len(faults) > MAX_NAMED:
        faults[MAX_NAMED:] = [f"and {len(faults) - MAX_NAMED} more"]
    start = "The graph cannot run" if error is not None else "Some outputs of the graph cannot run"
    return one_line(f"{start}: {'; '.join(faults)}.")


_WAYS_OUT = {
    "prompt_no_outputs": ": add a node that saves or previews something, such as SaveVideo",
}


def fault_sentence(fault: Mapping[str, Any]) -> str:
    """One error object in words, without its node."""
    info = fault["extra_info"]
    write = _SENTENCES.get(fault["type"], _as_it_says)
    try:
        sentence = write(fault, info)
    except (KeyError, TypeError, IndexError, ValueError):  # ComfyUI's own objects hold less than ours
        sentence = _as_it_says(fault, info)
    names = info.get("nearest")
    return f"{sentence}; nearest are {names}" if names else sentence


def _as_it_says(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    details = f" ({fault['details']})" if fault["details"] else ""
    return f"{_lower(fault['message'])}{details}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _bounds(info: Mapping[str, Any]) -> str:
    options = info["input_config"][1]
    bounds = [f"{word} {options[key]}" for key, word in (("min", "at least"), ("max", "at most")) if key in options]
    rounded = ", which is what JavaScript makes of 2**64 - 1" if info["received_value"] == 2**64 else ""
    return f'input "{info["input_name"]}" must be {" and ".join(bounds)}, got {info["received_value"]}{rounded}'


def _choice(info: Mapping[str, Any]) -> str:
    return f'input "{info["input_name"]}" got {info["received_value"]!r}, which is not in its list'


def _mismatch(info: Mapping[str, Any]) -> str:
    wanted = info["input_config"][0]
    wanted = wanted if isinstance(wanted, str) else "a value from its list"
    source, slot = info["linked_node"]
    received = info["received_type"] if isinstance(info["received_type"], str) else "COMBO"
    return f'input "{info["input_name"]}" takes {wanted}, but output {slot} of node {source} gives {received}'


def _bad_link(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    name, _, reason = fault["details"].partition(", ")
    if reason:
        return f'input "{name}": {reason}'
    return (
        f'input "{name}" got the list {info["received_value"]}; a link is [node id, slot], and a list that is a value '
        'is written {"__value__": [...]}'
    )


def _not_converted(info: Mapping[str, Any]) -> str:
    kind = info["input_config"][0]
    kind = kind if isinstance(kind, str) else "COMBO"
    reason = info["exception_message"]
    return f'input "{info["input_name"]}" takes {kind}, got {info["received_value"]!r} ({reason})'


def _missing_class(info: Mapping[str, Any]) -> str:
    if info["class_type"] is None:
        return "has no class_type; the file is damaged"
    return f'the node type "{info["class_type"]}" is not known here'


_SENTENCES = {
    "required_input_missing": lambda fault, info: (
        f'the required input "{info["input_name"]}" is missing; connect it or give it a value'
    ),
    "value_smaller_than_min": lambda fault, info: _bounds(info),
    "value_bigger_than_max": lambda fault, info: _bounds(info),
    "value_not_in_list": lambda fault, info: _choice(info),
    "return_type_mismatch": lambda fault, info: _mismatch(info),
    "bad_linked_input": _bad_link,
    "invalid_input_type": lambda fault, info: _not_converted(info),
    "missing_node_type": lambda fault, info: _missing_class(info),
    "custom_validation_failed": lambda fault, info: f"the node refuses its input: {fault['details']}",
    "exception_during_validation": lambda fault, info: (
        f"the node raised {info['exception_type']} while it was checked: {info['exception_message']}"
    ),
    "dependency_cycle": lambda fault, info: f"the links go round in a circle, {fault['details']}; cut one of them",
}
