"""One node's call, as ComfyUI makes it: inputs become lists, the function is mapped over them, the results merged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import GraphError, SVDStagesError
from .declared import Declaration
from .prompt import is_link, unwrap_value

HiddenValues = Mapping[str, Any]
"""Values of hidden inputs by their kind, as in {"UNIQUE_ID": "3"}."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a node gave: per output slot a list of values, and what its page shows (`ui`, lists by key)."""

    slots: list[list[Any]]
    ui: dict[str, list[Any]]


def input_lists(
    node: Mapping[str, Any],
    declaration: Declaration,
    hidden: HiddenValues,
    linked: Callable[[str, int], list[Any]],
) -> dict[str, list[Any]]:
    """The lists that the function is mapped over, by input name.

    A link gives the list that `linked(source id, slot)` returns, whether the input is declared or not. A constant
    gives a list of one, and is dropped when the class does not declare its name.
    """
    lists = {}
    for name, value in node["inputs"].items():
        if is_link(value):
            lists[name] = linked(value[0], value[1])
        elif name in declaration.inputs or name in declaration.hidden:
            lists[name] = [unwrap_value(value)]
    for name, kind in declaration.hidden.items():
        if kind in hidden:
            lists[name] = [hidden[kind]]
    return lists


def constant_lists(node: Mapping[str, Any], declaration: Declaration, node_id: str) -> dict[str, list[Any]]:
    """What VALIDATE_INPUTS and IS_CHANGED are called with: constants, and None for every link."""
    hidden = {
        "UNIQUE_ID": node_id,
        "PROMPT": {},
        "DYNPROMPT": None,
        "EXTRA_PNGINFO": None,
        "AUTH_TOKEN_COMFY_ORG": None,
        "API_KEY_COMFY_ORG": None,
    }
    return input_lists(node, declaration, hidden, lambda source, slot: [None])


def call_mapped(function: Callable[..., Any], lists: Mapping[str, list[Any]], whole_lists: bool) -> list[Any]:
    """Call `function` once with the lists themselves (`whole_lists`), else once for each place in the longest list.

    A shorter list gives its last value again. No inputs at all make one call. Raises SVDStagesError
    (`graph.empty_list`) for a list with nothing in it, which has no last value.
    """
    if whole_lists:
        return [function(**{name: list(values) for name, values in lists.items()})]
    for name, values in lists.items():
        if not values:
            raise SVDStagesError(
                f'input "{name}" received an empty list, so there is nothing to call the node with; '
                "the node before it must give at least one value.",
                code="graph.empty_list",
            )
    calls = max((len(values) for values in lists.values()), default=1)
    return [
        function(**{name: values[min(place, len(values) - 1)] for name, values in lists.items()})
        for place in range(calls)
    ]


def merge_results(results: list[Any], node_class: Any, node: str = "the node") -> Outcome:
    """Join the results of the calls: a list of values per slot, and the ui lists one after the other.

    A result is a tuple, or a dict with any of `ui` and `result`. A slot that is a list by OUTPUT_IS_LIST is extended,
    any other gets one value per call. Raises SVDStagesError (`node.result`) for anything else, and UnsupportedFeature,
    which calls the node `node`, for what only ComfyUI understands.
    """
    tuples, uis = [], []
    for result in results:
        _refuse_unsupported(result, node)
        if isinstance(result, dict):
            if "expand" in result:
                raise UnsupportedFeature(node, 'node expansion ("expand")')
            if "ui" in result:
                uis.append(result["ui"])
            if "result" not in result:
                continue
            result = result["result"]
            _refuse_unsupported(result, node)
        if not isinstance(result, (tuple, list)):
            raise SVDStagesError(
                f"the node's function returned {_a(type(result).__name__)}; ComfyUI's nodes return a tuple with one "
                'value for each output, or a dict with "ui" and "result".',
                code="node.result",
            )
        tuples.append(result)
    ui = {key: [value for each in uis for value in each.get(key, ())] for key in uis[0]} if uis else {}
    return Outcome(_merge_slots(tuples, node_class, node), ui)


def _merge_slots(tuples: list[Any], node_class: Any, node: str) -> list[list[Any]]:
    if not tuples:
        return []
    extends = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(tuples[0])
    slots = []
    for slot, is_list in zip(range(len(tuples[0])), extends, strict=False):
        values = [value for each in tuples for value in each[slot]] if is_list else [each[slot] for each in tuples]
        for value in values:
            _refuse_unsupported(value, node)
        slots.append(values)
    return slots


class UnsupportedFeature(GraphError):
    """A graph needs what only ComfyUI's own executor has."""

    code = "graph.unsupported"

    def __init__(self, node: str, feature: str):
        super().__init__(
            f"{node} uses {feature}, which runs only inside ComfyUI. Run this graph there, or take the node out."
        )


def _refuse_unsupported(value: Any, node: str) -> None:
    """Raise for what only ComfyUI understands. Recognised by name: ComfyUI is not imported here."""
    names = {each.__name__ for each in type(value).__mro__}
    if "ExecutionBlocker" in names:
        raise UnsupportedFeature(node, "blocked execution (ExecutionBlocker)")
    if names & {"NodeOutput", "_NodeOutputInternal"}:
        raise UnsupportedFeature(node, "the V3 node API (NodeOutput)")
    if inspect.iscoroutine(value):
        value.close()
        raise UnsupportedFeature(node, "async functions")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
