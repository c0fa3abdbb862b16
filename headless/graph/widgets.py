"""Assign the widget values of a UI-format node to its inputs.

The page saves the values of a node's widgets by position, in declared order. A widget whose input has a socket is
included. After a seed, the page saves one more value: what to do with the seed after a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .node_schema import DeclaredInput

AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


def widget_values(inputs: Iterable[DeclaredInput], saved: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Return the saved values by input name, without the values that only the page uses.

    An input without a saved value gets its declared default, a combo its first option, as the page does.

    Args:
        inputs: The declared inputs.
        saved: A list by position, or a dict by name as some node packs save it. Values after the last widget belong to
            the page (upload buttons, previews) and are ignored.
    """
    widgets = [declared for declared in inputs if declared.is_widget]
    by_name = dict(saved) if isinstance(saved, dict) else _by_position(widgets, saved)
    values = {}
    for declared in widgets:
        if declared.name in by_name:
            values[declared.name] = by_name[declared.name]
        elif "default" in declared.options:
            values[declared.name] = declared.options["default"]
        elif declared.choices:
            values[declared.name] = declared.choices[0]
    return values


def _by_position(widgets: list[DeclaredInput], saved: list[Any]) -> dict[str, Any]:
    values = {}
    index = 0
    for declared, following in zip(widgets, [*widgets, None][1:], strict=True):
        if index >= len(saved):
            break
        values[declared.name] = saved[index]
        index += 1
        if index < len(saved) and _is_after_generate(declared, saved[index], following):
            index += 1
    return values


def _is_after_generate(declared: DeclaredInput, value: Any, following: DeclaredInput | None) -> bool:
    """Return True if `value`, saved after the value of `declared`, is what to do with a seed after a run.

    The class declares that the page saves it, or the input is a seed by name. Graphs of 2023 have true (randomize) or
    false (fixed) there.
    """
    declared_control = declared.options.get("control_after_generate")
    explicit = bool(declared_control)
    if not explicit and not (declared_control is None and declared.is_seed):
        return False
    if isinstance(value, bool):
        return following is None or following.kind != "BOOLEAN"
    choices = following.choices if following is not None else None
    return value in AFTER_GENERATE and (explicit or not (choices and value in choices))
