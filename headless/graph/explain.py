"""Describe validation errors in one paragraph: node, input, expected and received value, and a fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...svd_core.errors import NodeError, SVDStagesError
from .prompt import name_node, one_line

MAX_NAMED = 20
"""Faults that the paragraph describes. It only counts the others."""


def node_error(prompt: Mapping[str, Any], node_id: str, cause: Exception, class_type: str | None = None) -> NodeError:
    """Make the error for a node that raised.

    Args:
        prompt: The original graph.
        node_id: The node of the original graph.
        cause: Its exception.
        class_type: The class that raised, if `node_id` added it to the graph. None: that of `node_id`.
    """
    added = "" if class_type is None else f' (in "{class_type}", which it added to the graph)'
    message = f"{name_node(prompt, node_id)} failed{added}: {describe_error(cause)}"
    raised_in: str = class_type or prompt[node_id]["class_type"]
    return NodeError(message, node_id=node_id, class_type=raised_in, cause=cause)


def describe_error(error: BaseException) -> str:
    """Return the message of an error in one line. One that is not of this package gets the name of its class."""
    text = one_line(str(error))
    if isinstance(error, SVDStagesError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def explain(error: Mapping[str, Any] | None, node_errors: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    """Describe all errors of a graph in one paragraph.

    Args:
        error: `Validation.error`. None: some outputs can run, and the paragraph says so.
        node_errors: `Validation.node_errors`.
        prompt: The graph.
    """
    faults = []
    cycles = set()
    for node_id, entry in node_errors.items():
        for fault in entry["errors"]:
            if fault["type"] == "dependency_cycle":
                members = fault["extra_info"].get("cycle_nodes") or [node_id]
                if members[0] in cycles:
                    continue
                cycles.add(members[0])
            faults.append(f"{name_node(prompt, node_id)}, {_describe_fault(fault)}")
    if not faults and error is not None:
        fix = ": add a node that saves or previews, such as SaveVideo" if error["type"] == "prompt_no_outputs" else ""
        faults.append(f"{error['message']}{_details(error)}{fix}")
    if len(faults) > MAX_NAMED:
        faults[MAX_NAMED:] = [f"and {len(faults) - MAX_NAMED} more"]
    start = "The graph cannot run" if error is not None else "Some outputs of the graph cannot run"
    return one_line(f"{start}: {'; '.join(faults)}.")


def _describe_fault(fault: Mapping[str, Any]) -> str:
    """Describe one error object, without its node."""
    info = fault["extra_info"]
    try:
        sentence = _SENTENCES.get(fault["type"], _comfyuis_words)
        if isinstance(sentence, str):
            sentence = sentence.format_map({**info, "details": fault["details"]})
        else:
            sentence = sentence(fault, info)
    except (KeyError, TypeError, IndexError, ValueError):  # ComfyUI's own objects hold less than ours
        sentence = _comfyuis_words(fault, info)
    names = info.get("nearest")
    return f"{sentence}; nearest are {names}" if names else sentence


def _details(fault: Mapping[str, Any]) -> str:
    return f" ({fault['details']})" if fault["details"] else ""


def _comfyuis_words(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    message = fault["message"]
    return f"{message[:1].lower()}{message[1:]}{_details(fault)}"


def _bounds(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    options = info["input_config"][1]
    if "min" in options and "max" in options:
        bounds = f"{options['min']} to {options['max']}"
    else:
        bounds = f"at least {options['min']}" if "min" in options else f"at most {options['max']}"
    rounded = " (JavaScript rounds 2**64 - 1 to it)" if info["received_value"] == 2**64 else ""
    return f'input "{info["input_name"]}" must be {bounds}, got {info["received_value"]}{rounded}'


def _mismatch(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
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
        f'input "{name}" must be a link [node id, slot] or a value, got the list {info["received_value"]}. '
        'Write a list that is a value as {"__value__": [...]}'
    )


def _not_converted(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    kind = info["input_config"][0]
    kind = kind if isinstance(kind, str) else "COMBO"
    reason = info["exception_message"]
    return f'input "{info["input_name"]}" takes {kind}, got {info["received_value"]!r} ({reason})'


def _refused_by_node(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Describe a message of VALIDATE_INPUTS. LoadImage's begins with words that ComfyUI's page looks for."""
    reason = fault["details"].removeprefix(f"{info['input_name']} - ").removeprefix("Invalid image file: ")
    return f'input "{info["input_name"]}": {reason}'


def _missing_class(fault: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    if info["class_type"] is None:
        return "has no class_type; the file is damaged"
    return f'the node type "{info["class_type"]}" is unknown'


_SENTENCES: dict[str, str | Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "required_input_missing": 'the required input "{input_name}" is missing; connect it or give it a value',
    "value_smaller_than_min": _bounds,
    "value_bigger_than_max": _bounds,
    "value_not_in_list": 'input "{input_name}" must be one of its options, got {received_value!r}',
    "return_type_mismatch": _mismatch,
    "bad_linked_input": _bad_link,
    "invalid_input_type": _not_converted,
    "missing_node_type": _missing_class,
    "custom_validation_failed": _refused_by_node,
    "exception_during_validation": "checking the node raised {exception_type}: {exception_message}",
    "dependency_cycle": "the links form a cycle, {details}; remove one of them",
}
"""The description of an error object by its type: a template of its `extra_info` and `details`, or a function."""
