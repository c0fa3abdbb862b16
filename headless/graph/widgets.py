"""Which saved widget value belongs to which input.

The page saves the values of a node's widgets by position, in declared order. A widget whose input has a socket keeps
its place. After a seed stands one value more: what the page does with it after a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .node_schema import DeclaredInput

AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


def widget_values(inputs: Iterable[DeclaredInput], saved: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """The saved values by input name, without those the page keeps for itself.

    saved  a list by position, or a dict by name as some node packs save it. Values past the last widget are the
           page's own (upload buttons, previews)

    An input with no saved value gets its declared default, a combo without one its first option, as the page does.
    """
    widgets = [declared for declared in inputs if declared.is_widget]
    found = dict(saved) if isinstance(saved, dict) else _by_position(widgets, saved)
    values = {}
    for declared in widgets:
        if declared.name in found:
            values[declared.name] = found[declared.name]
        elif "default" in declared.options:
            values[declared.name] = declared.options["default"]
        elif declared.choices:
            values[declared.name] = declared.choices[0]
    return values


def _by_position(widgets: list[DeclaredInput], saved: list[Any]) -> dict[str, Any]:
    values = {}
    place = 0
    for number, declared in enumerate(widgets):
        if place >= len(saved):
            break
        values[declared.name] = saved[place]
        place += 1
        following = widgets[number + 1] if number + 1 < len(widgets) else None
        if place < len(saved) and _is_after_generate(declared, saved[place], following):
            place += 1
    return values


def _is_after_generate(declared: DeclaredInput, value: Any, following: DeclaredInput | None) -> bool:
    """Whether `value` is the page's own, after the value of `declared`: the class says so, or it is a seed by name.

    Graphs of 2023 have true or false there, for randomize or fixed.
    """
    said = declared.options.get("control_after_generate")
    explicit = bool(said)
    if not explicit and not (said is None and declared.is_seed):
        return False
    if isinstance(value, bool):
        return following is None or following.kind != "BOOLEAN"
    offered = following.choices if following is not None else None
    return value in AFTER_GENERATE and (explicit or not (offered and value in offered))
