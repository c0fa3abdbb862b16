"""Find the settings of a run that changed since it was planned before: they render its videos again."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from ...svd_core.errors import printable
from ...svd_core.runtime.runtime import RunWarning
from ..engines.video_graph import SETTING_INPUTS, takes_settings
from ..graph.prompt import looks_like_link
from ..graph.validate import shape_fault
from .report import Status, counted
from .tasks import has_types

SHOWN = 6
"""Changes that a message names."""
NAMES = {
    **{place: f"`{name}`" for name, place in SETTING_INPUTS.items()},
    ("ManualSigmas", "sigmas"): "`sigmas`",
    ("SVDSigmas", "schedule"): "`schedule`",
    ("SVDSamplerSelect", "sampler_name"): "`sampler`",
    ("SVDGuidanceRefine", "sigma_low"): "`guidance_from`",
    ("SVDGuidanceRefine", "sigma_high"): "`guidance_to`",
    ("SVDStepCache", "interval"): "`step_cache`",
    ("SVDModelOptions", "compile"): "`compile`",
}
"""Class and input of a node of the shipped graph -> the setting of the video."""


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two run.json: name -> the value before and now, None if it is not set. A damaged one has no changes.

    Inputs of nodes that only one of the graphs has are left out, but for settings of a video.
    """
    if not (_is_valid(before) and _is_valid(now)):
        return {}
    old, new = _values(before), _values(now)
    changes = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    named = {name: pair for name, pair in changes.items() if name in NAMES.values() or None not in pair}
    return named or ({"graph": ("another one", "this one")} if before["graph"] != now["graph"] else {})


def _is_valid(settings: Mapping[str, Any]) -> bool:
    types = {"shared": (dict,), "seeds": (list,), "sizes": (list, NoneType)}
    return has_types(settings, types) and shape_fault(settings.get("graph")) is None


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that all rows of a run share, by names for people."""
    graph, values = settings["graph"], dict(settings["shared"])
    names = NAMES if takes_settings(graph) else {}
    for node_id, node in graph.items():
        for input_name, value in node.get("inputs", {}).items():
            place = f"{node_id}.{input_name}"
            if place in settings["seeds"]:
                value = "that of the row"
            elif place in (settings.get("sizes") or ()):
                value = "that of the image"
            if not looks_like_link(value) and [node_id, input_name] != settings.get("image"):
                values[names.get((node.get("class_type"), input_name), place)] = value
    return {**values, "`precision`": settings.get("precision"), "`background`": settings.get("background")}


def describe_changes(changes: Mapping[str, tuple[Any, Any]], status: Status) -> RunWarning:
    """Return a note for people of what changed, and of how many videos are rendered with it."""
    texts = [f"{name} from {_text(old)} to {_text(new)}" for name, (old, new) in changes.items()]
    if len(texts) > SHOWN:
        texts[SHOWN:] = [f"and {counted(len(texts) - SHOWN, 'more setting')}"]
    text = (
        f"The settings of this run changed: {', '.join(texts)}. {status.left} of {counted(status.tasks, 'video')} will "
        "be rendered with them. The videos of before are kept."
    )
    facts = {"changed": {name.strip("`"): list(pair) for name, pair in changes.items()}, "videos": status.left}
    return RunWarning("batch.settings_changed", text, facts)


def _text(value: Any) -> str:
    return "unset" if value is None else printable(value, 40)
