"""Set values in a graph by NODE.INPUT=VALUE, as on the command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import GraphError, nearest
from .check_node import check_finite
from .node_schema import DeclaredInput, read_declaration
from .prompt import Prompt, looks_like_link, name_node, one_line, title_of, wrap_list
from .validate import raise_if_misshapen

logger = logging.getLogger(__name__)


def apply_settings(prompt: Prompt, settings: Iterable[str], nodes: Mapping[str, type]) -> Prompt:
    """Return a copy of a graph with each `NODE.INPUT=VALUE` set, in order. See `set_value`.

    Raises:
        GraphError: As `set_value`, and `graph.invalid_prompt` or `graph.too_large` if `prompt` is not a graph.
    """
    raise_if_misshapen(prompt)
    for setting in settings:
        prompt = set_value(prompt, setting, nodes)
    return prompt


def set_value(prompt: Prompt, setting: str, nodes: Mapping[str, type]) -> Prompt:
    """Return a copy of a graph with one value set. A link in its place is replaced. A value without effect is logged.

    Limits and combo options are not checked. `validate` checks them, because some nodes are exempt.

    Args:
        prompt: The graph.
        setting: `NODE.INPUT=VALUE`. NODE is a node id, or a class type or title that only one node has. A node whose
            title contains "=" must be named by its id. The input's declared type decides how VALUE is read: as text
            for STRING, true or false for BOOLEAN, an option for a combo, a number for INT and FLOAT.
        nodes: Node classes by class type.

    Raises:
        GraphError: The setting does not fit the graph (`graph.setting`). The message has the nearest names.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise _wrong_setting(f"a setting must be NODE.INPUT=VALUE, as in KSampler.seed=7; got {setting!r}.")
    target = find_target(prompt, name, nodes)
    input_name = target.declared.name
    if looks_like_link(prompt[target.node_id].get("inputs", {}).get(input_name)):
        logger.warning('%s: the link into "%s" is replaced by the value %s', target.where, input_name, text)
    _warn_if_replaced(prompt, target, nodes)
    return with_value(prompt, target.node_id, input_name, read_value(target, text))


def _warn_if_replaced(prompt: Prompt, target: Target, nodes: Mapping[str, type]) -> None:
    """Warn if the input has no effect, because another one is linked that replaces it."""
    node, input_name = prompt[target.node_id], target.declared.name
    replacing = getattr(nodes[node["class_type"]], "REPLACED_INPUTS", {}).get(input_name)
    link = node.get("inputs", {}).get(replacing)
    if looks_like_link(link):
        source = prompt.get(link[0], {}).get("class_type")
        logger.warning(
            '%s: "%s" has no effect while "%s" is linked. Set the inputs of %s.',
            target.where,
            input_name,
            replacing,
            source,
        )


@dataclass(frozen=True)
class Target:
    """An input of a node that a setting names. `where` names the node in messages."""

    node_id: str
    declared: DeclaredInput
    where: str

    @property
    def name(self) -> str:
        """ "NODE.INPUT" with the node's id."""
        return f"{self.node_id}.{self.declared.name}"


def find_target(prompt: Prompt, name: str, nodes: Mapping[str, type]) -> Target:
    """Find the input that `NODE.INPUT` names. See `set_value`.

    Raises:
        GraphError: There is no such input (`graph.setting`). The message has the nearest names.
    """
    node_name, dot, input_name = name.strip().rpartition(".")
    if not (dot and node_name and input_name):
        raise _wrong_setting(f"an input must be NODE.INPUT, and is set by NODE.INPUT=VALUE; got {name!r}.")
    node_id = _find_node(prompt, node_name)
    where = name_node(prompt, node_id)
    class_type = str(prompt[node_id].get("class_type"))
    if class_type not in nodes:
        raise _wrong_setting(f"{where} has an unknown type; nearest are {nearest(class_type, nodes)}.")
    inputs = read_declaration(class_type, nodes[class_type]).inputs
    if input_name not in inputs:
        known = nearest(input_name, inputs) or "none"
        raise _wrong_setting(f'{where} has no input "{input_name}"; nearest are {known}.')
    return Target(node_id, inputs[input_name], where)


def with_value(prompt: Prompt, node_id: str, input_name: str, value: Any) -> Prompt:
    """Return a copy of a graph with one value replaced."""
    node = prompt[node_id]
    return {**prompt, node_id: {**node, "inputs": {**node.get("inputs", {}), input_name: value}}}


def _find_node(prompt: Prompt, name: str) -> str:
    if name in prompt:
        return name
    for label in (lambda node: node.get("class_type"), title_of):
        matches = [node_id for node_id, node in prompt.items() if label(node) == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(matches)
            raise _wrong_setting(f'{len(matches)} nodes have the name "{name}". Use one of the ids: {ids}.')
    labels = {text for node in prompt.values() for text in (node.get("class_type"), title_of(node)) if text}
    known = nearest(name, [*prompt, *sorted(labels)]) or "none, because the graph is empty"
    raise _wrong_setting(f'no node has the id, type or title "{name}"; nearest are {known}.')


def read_value(target: Target, text: str) -> Any:
    """Convert the text of a setting to a value of an input's type. See `set_value`.

    Raises:
        GraphError: The text is not of that type (`graph.setting`).
    """
    declared, where = target.declared, target.where
    kind, choices = declared.kind, declared.choices
    if choices is not None:
        return next((choice for choice in choices if str(choice) == text), text)
    try:
        if kind in ("STRING", "COMBO"):
            return text
        if kind in ("INT", "FLOAT") and ("_" in text or not text.isascii()):  # Python reads 1_0 and other digits
            raise ValueError(text)
        if kind == "INT":
            return int(text)
        if kind == "FLOAT":
            value = float(text)
            check_finite(value)
            return value
        if kind == "BOOLEAN":
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if declared.is_widget or _takes_constants(kind):
            value = json.loads(text)
            check_finite(value)
            return wrap_list(value)
    except (ValueError, KeyError, RecursionError) as error:
        wanted = {"INT": "an integer", "FLOAT": "a finite number", "BOOLEAN": "true or false"}.get(kind, "JSON")
        raise _wrong_setting(f'input "{declared.name}" of {where} takes {wanted}, got {text!r}.') from error
    raise _wrong_setting(f'input "{declared.name}" of {where} takes {kind} through a link; it has no value to set.')


def _takes_constants(kind: Any) -> bool:
    """Return True for "*" and for a union such as "INT,FLOAT"."""
    return kind == "*" or bool({part.strip() for part in str(kind).split(",")} & {"INT", "FLOAT", "STRING", "BOOLEAN"})


def _wrong_setting(message: str) -> GraphError:
    return GraphError(one_line(message), code="graph.setting")
