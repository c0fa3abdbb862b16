"""Call one node as ComfyUI does: inputs become lists, the function is mapped over them, the results are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import SVDStagesError
from .node_schema import Declaration
from .prompt import looks_like_link, unwrap_value
from .v3 import as_v1, is_v3

HiddenValues = Mapping[str, Any]
"""Values of hidden inputs by kind, as in {"UNIQUE_ID": "3"}."""

Part = tuple[Any, Any]
"""The result of one call in an expansion: the nodes it adds to the graph (or None), and its values or links."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The merged results of a node's calls.

    Attributes:
        slots: A list of values per output slot.
        ui: What the page shows, lists by key.
        parts: The results of an expansion. None without one. With it, `slots` is known after the added nodes have run.
    """

    slots: list[list[Any]]
    ui: dict[str, list[Any]]
    parts: list[Part] | None = None


def hidden_values(node_id: str, prompt: Any, dynamic_prompt: Any, extra_data: Mapping[str, Any]) -> HiddenValues:
    """Return the values of all hidden inputs of a node by kind. `extra_data` comes with a ComfyUI request."""
    return {
        "UNIQUE_ID": node_id,
        "PROMPT": prompt,
        "DYNPROMPT": dynamic_prompt,
        "EXTRA_PNGINFO": extra_data.get("extra_pnginfo"),
        "AUTH_TOKEN_COMFY_ORG": extra_data.get("auth_token_comfy_org"),
        "API_KEY_COMFY_ORG": extra_data.get("api_key_comfy_org"),
    }


def input_lists(
    node: Mapping[str, Any],
    declaration: Declaration,
    hidden: HiddenValues,
    linked: Callable[[str, int], list[Any] | None],
) -> dict[str, Any]:
    """Return the lists to map the function over, by input name.

    A link becomes the list that `linked(source id, slot)` returns, even if the input is not declared. An input declared
    with `rawLink` gets the link itself. A constant becomes a list of one. It is dropped if its name is not declared.

    Args:
        node: The node.
        declaration: Declaration of its class.
        hidden: Values of hidden inputs.
        linked: Returns the values of an output slot, or None while they are not computed.
    """
    lists = {}
    for name, value in node["inputs"].items():
        if looks_like_link(value):
            raw = name in declaration.inputs and declaration.inputs[name].options.get("rawLink")
            lists[name] = [value] if raw else linked(value[0], int(value[1]))
        elif name in declaration.inputs or name in declaration.hidden:
            lists[name] = [unwrap_value(value)]
    if not is_v3(declaration.node_class):  # a V3 class has its hidden inputs as attributes, see v3.bound_function
        kinds = {name: kind for name, kind in declaration.hidden.items() if isinstance(kind, str)}
        lists.update({name: [hidden[kind]] for name, kind in kinds.items() if kind in hidden})
    return lists


def constant_lists(node: Mapping[str, Any], declaration: Declaration, node_id: str) -> dict[str, list[Any]]:
    """Return the arguments of VALIDATE_INPUTS and IS_CHANGED: constants, and None for every link."""
    return input_lists(node, declaration, hidden_values(node_id, {}, None, {}), lambda source, slot: [None])


def call_mapped(
    function: Callable[..., Any],
    lists: Mapping[str, list[Any]],
    whole_lists: bool,
    blocked: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """Call `function` once for each index of the longest list, and return the results.

    A shorter list repeats its last value. Without inputs there is one call. A coroutine function gives coroutines.

    Args:
        function: The function.
        lists: The lists by input name.
        whole_lists: If true, `function` is called once, with the lists themselves.
        blocked: Returns the result of a call that would receive this blocker. None: such calls are skipped.

    Raises:
        SVDStagesError: A list is empty, so that it has no last value (`graph.empty_list`).
    """
    results = []
    for arguments in _arguments_of_calls(lists, whole_lists):
        blocker = _find_blocker(arguments, whole_lists)
        if blocker is None:
            results.append(function(**arguments))
        elif blocked is not None:
            results.append(blocked(blocker))
    return results


def _find_blocker(arguments: Mapping[str, Any], whole_lists: bool) -> Any:
    """Return the first blocker among the arguments of a call, or None."""
    values = (value for argument in arguments.values() for value in (argument if whole_lists else (argument,)))
    return next(filter(is_blocker, values), None)


def _arguments_of_calls(lists: Mapping[str, list[Any]], whole_lists: bool) -> Iterator[dict[str, Any]]:
    if whole_lists:
        yield {name: list(values) for name, values in lists.items()}
        return
    for name, values in lists.items():
        if not values:
            raise SVDStagesError(
                f'input "{name}" must receive at least one value, got an empty list. Check the node before it.',
                code="graph.empty_list",
            )
    for index in range(max(map(len, lists.values()), default=1)):
        yield {name: values[min(index, len(values) - 1)] for name, values in lists.items()}


def merge_results(results: list[Any], node_class: Any) -> Outcome:
    """Merge the results of a node's calls: a list of values per slot, and concatenated ui lists.

    A result is a tuple, a blocker, or a dict with any of `ui`, `result` and `expand`. A slot marked by OUTPUT_IS_LIST
    is extended. Any other slot gets one value per call.

    Raises:
        SVDStagesError: A result is something else (`node.result`).
    """
    parts: list[Part] = []
    uis = []
    for result in results:
        graph = None
        result = as_v1(result, ExecutionBlocker)
        if isinstance(result, dict):
            if "ui" in result:
                uis.append(result["ui"])
            graph = result.get("expand")
            if "result" not in result and graph is None:
                continue
            result = result.get("result", ())
        if is_blocker(result):
            result = (result,) * len(getattr(node_class, "RETURN_TYPES", ()))
        if not isinstance(result, (tuple, list)):
            raise SVDStagesError(
                "a node's function must return a tuple with one value per output, or a dict with "
                f'"ui" and "result", got {type(result).__name__}.',
                code="node.result",
            )
        parts.append((graph, result))
    ui = {key: [value for result_ui in uis for value in result_ui.get(key, ())] for key in uis[0]} if uis else {}
    if any(graph is not None for graph, _ in parts):
        return Outcome([], ui, parts)
    return Outcome(_merge_slots([result for _, result in parts], node_class), ui)


def _merge_slots(results: list[Any], node_class: Any) -> list[list[Any]]:
    if not results:
        return []
    list_flags = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(results[0])
    slots: list[list[Any]] = []
    for slot, is_list in zip(range(len(results[0])), list_flags, strict=False):
        slots.append([])
        for value in (result[slot] for result in results):
            slots[slot].extend(value if is_list and not is_blocker(value) else [value])
    return slots


class ExecutionBlocker:
    """A value that keeps the nodes that receive it from running. `message` is reported, unless it is None."""

    def __init__(self, message: str | None):
        self.message = message


def is_blocker(value: Any) -> bool:
    """Return True for an ExecutionBlocker, ours or ComfyUI's. ComfyUI's class is recognized without importing it."""
    return any(ancestor.__name__ == "ExecutionBlocker" for ancestor in type(value).__mro__)
