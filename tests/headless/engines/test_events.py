"""Test the translation of ComfyUI's events for a listener."""

from __future__ import annotations

from typing import Any

from answering import RecordingListener
from svd_stages.headless import EMBEDDED_NODES, EventTranslator

GRAPH: dict[str, Any] = {
    "4": {"class_type": "SVDImageToVideo", "inputs": {}},
    "6": {"class_type": "SaveVideo", "inputs": {}},
}


def test_events_inside_an_expanded_node_are_reported_once_for_that_node():
    listener = RecordingListener()
    translate = EventTranslator(GRAPH, EMBEDDED_NODES, listener)
    translate("executing", {"node": "4", "display_node": "4"})
    translate("executing", {"node": "4.load", "display_node": "4"})
    translate("executing", {"node": "4.sample", "display_node": "4"})
    for done in (1, 2):
        state = {"value": done, "max": 2, "state": "running", "display_node_id": "4"}
        translate("progress_state", {"nodes": {"4.sample": state}})
        translate("progress", {"node": "4.sample", "value": done, "max": 2})
    translate("executing", {"node": "6", "display_node": "6"})
    steps = [{"stage": "SVD Image To Video", "done": done, "total": 2, "node": "4"} for done in range(3)]
    names = [name for name, _ in listener.events]
    assert names == ["executing", "progress", "progress", "progress", "executing"]
    assert [values for name, values in listener.events if name == "progress"] == steps
    assert [values["node"] for _, values in listener.events] == ["4"] * 4 + ["6"]


def test_a_second_progress_bar_of_a_node_starts_at_zero():
    listener = RecordingListener()
    translate = EventTranslator(GRAPH, EMBEDDED_NODES, listener)
    for done, total in ((1, 2), (2, 2), (1, 2), (1, 3)):
        translate("progress", {"node": "6", "value": done, "max": total})
    counts = [(values["done"], values["total"]) for _, values in listener.events]
    assert counts == [(0, 2), (1, 2), (2, 2), (0, 2), (1, 2), (0, 3), (1, 3)]
