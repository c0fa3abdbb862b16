"""Setting values in a graph from the command line: NODE.INPUT=VALUE."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import GraphError, nearest
from .check_node import check_finite
from .explain import explain
from .node_schema import DeclaredInput, read_declaration
from .prompt import WRAPPED, Prompt, looks_like_link, name_node, one_line, title_of
from .validate import shape_fault

logger = logging.getLogger(__name__)


def apply_settings(prompt: Prompt, settings: Iterable[str], nodes: Mapping[str, type]) -> Prompt:
    """A copy of `prompt` with each `NODE.INPUT=VALUE` of `settings` set, in order. See `set_value`.

    Raises GraphError also for what is no graph (`graph.invalid_prompt`, `graph.too_large`).
    """
    if fault := shape_fault(prompt):
        raise GraphError(explain(fault[0], {}, {}), code=f"graph.{fault[0]['type']}")
    for setting in settings:
        prompt = set_value(prompt, setting, nodes)
    return prompt


def set_value(prompt: Prompt, setting: str, nodes: Mapping[str, type]) -> Prompt:
    """A copy of `prompt` with one value set.

    setting  `NODE.INPUT=VALUE`. NODE is a node's id, or its class type or title when one node alone has that. VALUE
             is read by the input's declared type: text as it stands for STRING, true or false for BOOLEAN, one of the
             options for a combo, a number for INT and FLOAT. A link that was there is replaced. A title with "=" in it
             cannot be said here; use the id

    Raises GraphError (`graph.setting`) that names the nearest nodes or inputs. Ranges and options are left to
    `validate`, which knows the exceptions.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise _wrong(f"a setting is NODE.INPUT=VALUE, as in KSampler.seed=7; got {setting!r}.")
    target = find_target(prompt, name, nodes)
    if looks_like_link(prompt[target.node_id].get("inputs", {}).get(target.declared.name)):
        logger.warning(
            '%s: "%s" was linked, and now is %s; its source is no longer heard',
            target.where,
            target.declared.name,
            text,
        )
    return with_value(prompt, target.node_id, target.declared.name, read_value(target, text))


@dataclass(frozen=True)
class Target:
    """An input of a node of a graph that takes a value. `where` names the node in messages."""

    node_id: str
    declared: DeclaredInput
    where: str

    @property
    def name(self) -> str:
        """ "NODE.INPUT" with the node's id."""
        return f"{self.node_id}.{self.declared.name}"


def find_target(prompt: Prompt, name: str, nodes: Mapping[str, type]) -> Target:
    """The input that `NODE.INPUT` means, see `set_value`. Raises GraphError (`graph.setting`) with what is near."""
    node_name, dot, input_name = name.strip().rpartition(".")
    if not (dot and node_name and input_name):
        raise _wrong(f"an input is NODE.INPUT, as in KSampler.seed, set by NODE.INPUT=VALUE; got {name!r}.")
    node_id = _find_node(prompt, node_name)
    class_type = str(prompt[node_id].get("class_type"))
    if class_type not in nodes:
        known = nearest(class_type, nodes)
        raise _wrong(f"{name_node(prompt, node_id)} is of a type that is not known here; nearest are {known}.")
    inputs = read_declaration(class_type, nodes[class_type]).inputs
    where = name_node(prompt, node_id)
    if input_name not in inputs:
        raise _wrong(f'{where} has no input "{input_name}"; nearest are {nearest(input_name, inputs) or "none"}.')
    return Target(node_id, inputs[input_name], where)


def with_value(prompt: Prompt, node_id: str, input_name: str, value: Any) -> Prompt:
    """A copy of `prompt` with one value in it."""
    node = prompt[node_id]
    return {**prompt, node_id: {**node, "inputs": {**node.get("inputs", {}), input_name: value}}}


def _find_node(prompt: Prompt, name: str) -> str:
    if name in prompt:
        return name
    for label in (lambda node: node.get("class_type"), title_of):
        found = [node_id for node_id, node in prompt.items() if label(node) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise _wrong(f'{len(found)} nodes are called "{name}"; say which by its id: {", ".join(found)}.')
    labels = {text for node in prompt.values() for text in (node.get("class_type"), title_of(node)) if text}
    known = nearest(name, [*prompt, *sorted(labels)]) or "none, for the graph is empty"
    raise _wrong(f'no node has the id, type or title "{name}"; nearest are {known}.')


def read_value(target: Target, text: str) -> Any:
    """What a text means to an input; see `set_value`. Raises GraphError (`graph.setting`)."""
    declared, where = target.declared, target.where
    kind, choices = declared.kind, declared.choices
    if choices is not None:
        return next((each for each in choices if str(each) == text), text)
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
        if declared.is_widget or _takes_numbers(kind):
            value = json.loads(text)
            check_finite(value)
            return {WRAPPED: value} if isinstance(value, list) else value
    except (ValueError, KeyError, RecursionError) as error:
        wanted = {"INT": "a whole number", "FLOAT": "a finite number", "BOOLEAN": "true or false"}.get(kind, "JSON")
        raise _wrong(f'input "{declared.name}" of {where} takes {wanted}, got {text!r}.') from error
    raise _wrong(f'input "{declared.name}" of {where} takes {kind} through a link; it has no value to set.')


def _takes_numbers(kind: Any) -> bool:
    """A union such as "INT,FLOAT", or anything at all."""
    return kind == "*" or bool({part.strip() for part in str(kind).split(",")} & {"INT", "FLOAT", "STRING", "BOOLEAN"})


def _wrong(message: str) -> GraphError:
    return GraphError(one_line(message), code="graph.setting")
