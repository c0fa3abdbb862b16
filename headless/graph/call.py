"""One node's call, as ComfyUI makes it: inputs become lists, the function is mapped over them, the results merged."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import SVDStagesError
from .async_utils import inside
from .node_schema import Declaration
from .prompt import looks_like_link, unwrap_value
from .v3 import as_v1, is_v3

HiddenValues = Mapping[str, Any]
"""Values of hidden inputs by their kind, as in {"UNIQUE_ID": "3"}."""


Part = tuple[Any, Any]
"""Of an expansion: the nodes that one call puts into the graph, or None, and what it returns, values or links."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a node gave: per output slot a list of values, and what its page shows (`ui`, lists by key).

    parts  of an expansion, when there is one: the slots are known only when its nodes have run
    """

    slots: list[list[Any]]
    ui: dict[str, list[Any]]
    parts: list[Part] | None = None


@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of one node: what each gave, or the task that works on it."""

    answers: list[Any]

    @property
    def tasks(self) -> list[asyncio.Task]:
        """Those that were not done at once."""
        return [answer for answer in self.answers if isinstance(answer, asyncio.Task)]

    @property
    def ready(self) -> bool:
        """Whether all are done."""
        return all(task.done() for task in self.tasks)

    def results(self) -> list[Any]:
        """What each gave. Raises what a task raised, and SVDStagesError for one that gave itself up."""
        if any(task.cancelled() for task in self.tasks):
            raise SVDStagesError("the node's coroutine was cancelled, and not by the run", code="node.cancelled")
        return [answer.result() if isinstance(answer, asyncio.Task) else answer for answer in self.answers]


def input_lists(
    node: Mapping[str, Any],
    declaration: Declaration,
    hidden: HiddenValues,
    linked: Callable[[str, int], list[Any] | None],
) -> dict[str, Any]:
    """The lists that the function is mapped over, by input name.

    A link gives the list that `linked(source id, slot)` returns (None while it is not known), whether the input is
    declared or not; an input that is declared as a raw link gets the link itself. A constant gives a list of one, and
    is dropped when the class does not declare its name.
    """
    lists = {}
    for name, value in node["inputs"].items():
        if looks_like_link(value):
            raw = name in declaration.inputs and declaration.inputs[name].options.get("rawLink")
            lists[name] = [value] if raw else linked(value[0], int(value[1]))
        elif name in declaration.inputs or name in declaration.hidden:
            lists[name] = [unwrap_value(value)]
    if not is_v3(declaration.node_class):  # those are told in another way
        kinds = {name: kind for name, kind in declaration.hidden.items() if isinstance(kind, str)}
        lists.update({name: [hidden[kind]] for name, kind in kinds.items() if kind in hidden})
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

    A shorter list gives its last value again. No inputs at all make one call. A call that would get a blocker is left
    out. A coroutine function gives coroutines. Raises SVDStagesError (`graph.empty_list`) for a list with nothing in
    it, which has no last value.
    """
    calls = _inputs_of_calls(lists, whole_lists)
    return [function(**inputs) for inputs in calls if _blocker_in(inputs, whole_lists) is None]


def call_node(
    function: Callable[..., Any],
    lists: Mapping[str, list[Any]],
    whole_lists: bool,
    context: Callable[[], AbstractContextManager[Any]],
    blocked: Callable[[Any], Any],
) -> Calls:
    """`call_mapped` for a node: a call that would get a blocker gives what `blocked` makes of it, and coroutines begin.

    context  made around each call, and around each step of a coroutine
    """
    answers = []
    for inputs in _inputs_of_calls(lists, whole_lists):
        blocker = _blocker_in(inputs, whole_lists)
        if blocker is not None:
            answers.append(blocked(blocker))
            continue
        with context():
            answer = function(**inputs)
        if inspect.iscoroutine(answer):
            answer = asyncio.ensure_future(_as_coroutine(inside(answer, context)))
        answers.append(answer)
    return Calls(answers)


def _blocker_in(inputs: Mapping[str, Any], whole_lists: bool) -> Any:
    """The first blocker among the inputs of a call; None when there is none."""
    given = (value for each in inputs.values() for value in (each if whole_lists else (each,)))
    return next((value for value in given if is_blocker(value)), None)


async def _as_coroutine(steps: Any) -> Any:
    return await steps


def _inputs_of_calls(lists: Mapping[str, list[Any]], whole_lists: bool) -> Iterator[dict[str, Any]]:
    if whole_lists:
        yield {name: list(values) for name, values in lists.items()}
        return
    for name, values in lists.items():
        if not values:
            raise SVDStagesError(
                f'input "{name}" received an empty list, so there is nothing to call the node with; '
                "the node before it must give at least one value.",
                code="graph.empty_list",
            )
    for place in range(max((len(values) for values in lists.values()), default=1)):
        yield {name: values[min(place, len(values) - 1)] for name, values in lists.items()}


def merge_results(results: list[Any], node_class: Any) -> Outcome:
    """Join the results of the calls: a list of values per slot, and the ui lists one after the other.

    A result is a tuple, a blocker, or a dict with any of `ui`, `result` and `expand`. A slot that is a list by
    OUTPUT_IS_LIST is extended, any other gets one value per call. Raises SVDStagesError (`node.result`) for anything
    else.
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
                f"the node's function returned {_a(type(result).__name__)}; ComfyUI's nodes return a tuple with one "
                'value for each output, or a dict with "ui" and "result".',
                code="node.result",
            )
        parts.append((graph, result))
    ui = {key: [value for each in uis for value in each.get(key, ())] for key in uis[0]} if uis else {}
    if any(graph is not None for graph, _ in parts):
        return Outcome([], ui, parts)
    return Outcome(_merge_slots([result for _, result in parts], node_class), ui)


def _merge_slots(tuples: list[Any], node_class: Any) -> list[list[Any]]:
    if not tuples:
        return []
    extends = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(tuples[0])
    slots = []
    for slot, is_list in zip(range(len(tuples[0])), extends, strict=False):
        values: list[Any] = []
        for each in tuples:
            if is_list and not is_blocker(each[slot]):
                values.extend(each[slot])
            else:
                values.append(each[slot])
        slots.append(values)
    return slots


class ExecutionBlocker:
    """What stands in place of a value to keep the nodes behind it from running; `message` is told, unless None."""

    def __init__(self, message: str | None):
        self.message = message


def is_blocker(value: Any) -> bool:
    """Whether a value is an ExecutionBlocker, ours or ComfyUI's, which is not imported here."""
    return any(each.__name__ == "ExecutionBlocker" for each in type(value).__mro__)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
