"""What a watcher is told of a run, from ComfyUI's messages."""

from __future__ import annotations

from typing import Any

from svd_stages.headless import EMBEDDED_NODES, EventTranslator

GRAPH: dict[str, Any] = {
    "4": {"class_type": "SVDImageToVideo", "inputs": {}},
    "6": {"class_type": "SaveVideo", "inputs": {}},
}


class Heard:
    """A watcher that writes down what it hears."""

    def __init__(self):
        self.told: list[tuple] = []

    def event(self, name: str, /, **values: Any) -> None:
        self.told.append((name, values.get("node")))

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        self.told.append((stage, done, total, node))


def test_what_an_expanded_node_brings_is_told_as_that_node_once():
    heard = Heard()
    tell = EventTranslator(GRAPH, EMBEDDED_NODES, heard)
    tell("executing", {"node": "4", "display_node": "4"})
    tell("executing", {"node": "4.load", "display_node": "4"})
    tell("executing", {"node": "4.sample", "display_node": "4"})
    for done in (1, 2):
        state = {"value": done, "max": 2, "state": "running", "display_node_id": "4"}
        tell("progress_state", {"nodes": {"4.sample": state}})
        tell("progress", {"node": "4.sample", "value": done, "max": 2})
    tell("executing", {"node": "6", "display_node": "6"})
    stage = "SVD Image To Video"
    steps = [(stage, done, 2, "4") for done in range(3)]
    assert heard.told == [("executing", "4"), *steps, ("executing", "6")]


def test_a_second_bar_of_one_node_begins_at_nothing():
    heard = Heard()
    tell = EventTranslator(GRAPH, EMBEDDED_NODES, heard)
    for done, total in ((1, 2), (2, 2), (1, 2), (1, 3)):
        tell("progress", {"node": "6", "value": done, "max": total})
    assert [told[1:3] for told in heard.told] == [(0, 2), (1, 2), (2, 2), (0, 2), (1, 2), (0, 3), (1, 3)]
