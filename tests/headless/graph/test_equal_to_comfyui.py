"""Compare our validation and execution of toy graphs with ComfyUI's own.

Without a ComfyUI, its answers are those of version 0.3.64 in tests/data. With one, SVD_STAGES_RECORD=FILE writes them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core.errors import NodeError

from .ask_comfyui import HAS_COMFYUI, as_answer, ask_comfyui
from .cases import FAILING, INVALID, VALID, Case
from .toys import TOYS

CASES = VALID + FAILING + INVALID
RECORDED = Path(__file__).parents[2] / "data" / "toy_answers.json"
pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """ComfyUI's answers by case name."""
    if not HAS_COMFYUI:
        return json.loads(RECORDED.read_text("utf-8"))
    folder = tmp_path_factory.mktemp("peer")
    answers = ask_comfyui(folder, [{"prompt": case.prompt, "targets": case.targets} for case in CASES])
    by_name = {case.name: answer for case, answer in zip(CASES, answers, strict=True)}
    if file := os.environ.get("SVD_STAGES_RECORD"):
        lines = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in by_name.items()]
        Path(file).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    return by_name


def ours(case: Case) -> dict[str, Any]:
    """Validate and run a case here. Return the result in the form of ComfyUI's answers."""
    checked = validate(case.prompt, TOYS, case.targets)
    if not checked.ok:
        return as_answer(checked)
    events: list[Any] = []
    ui: dict[str, Any] = {}
    options = {
        "extra_data": {"extra_pnginfo": {"workflow": {"id": 7}}},
        "on_event": lambda *event: events.append(event),
    }
    with contextlib.suppress(NodeError):
        ui = Engine(TOYS).run(checked.prompt, checked.outputs, **options).ui
    return as_answer(checked, ui=ui, events=events)


def errors(answer: dict[str, Any]) -> Any:
    """Return type, message, details and extra_info of all errors. Their order in a node is random in ComfyUI."""
    kind = answer["error"] and answer["error"]["type"]
    if kind in ("invalid_prompt", "missing_node_type"):  # the same fault, renamed in early 2026
        return answer["error"]["details"]
    nodes = {
        node_id: (entry["class_type"], sorted(json.dumps(_without_nearest(error)) for error in entry["errors"]))
        for node_id, entry in answer["node_errors"].items()
    }
    return kind, answer["error"] and sorted(answer["error"]["details"].split("\n")), nodes


def _without_nearest(error: dict[str, Any]) -> dict[str, Any]:
    return {**error, "extra_info": {key: value for key, value in error["extra_info"].items() if key != "nearest"}}


def dependents(answer: dict[str, Any]) -> Any:
    return {node_id: sorted(entry["dependent_outputs"]) for node_id, entry in answer["node_errors"].items()}


def runs(case: Case, answer: dict[str, Any]) -> Any:
    """Count the runs of each class. Which of two equal nodes runs is random in ComfyUI."""
    events = answer.get("events", [])
    return Counter(case.prompt[data["node"]]["class_type"] for event, data in events if event == "executing")


def failure(answer: dict[str, Any]) -> Any:
    events = answer.get("events", [])
    return [(data["node_id"], data["node_type"]) for event, data in events if event == "execution_error"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decisions_errors_and_results_are_comfyuis_or_a_named_difference(comfyui, case: Case):
    theirs, mine = comfyui[case.name], ours(case)
    equal = {
        "decision": theirs["ok"] == mine["ok"] and sorted(theirs["outputs"]) == sorted(mine["outputs"]),
        "errors": "missing_node_type" in str(mine["error"]) or errors(theirs) == errors(mine),
        "dependents": "missing_node_type" in str(mine["error"]) or dependents(theirs) == dependents(mine),
        "ui": theirs.get("ui") == mine.get("ui"),
        "runs": runs(case, theirs) == runs(case, mine),
        "failure": failure(theirs) == failure(mine),
    }
    different = {aspect for aspect, is_equal in equal.items() if not is_equal}
    if "decision" in case.differs:  # then one of the two did not run
        different &= set(case.differs)
    assert different - {"dependents"} == set(case.differs) - {"dependents"}, (theirs, mine)


def test_exceptions_reach_the_event_with_their_type_and_text(comfyui):
    case = FAILING[0]
    theirs, mine = (
        next(data for event, data in answer["events"] if event == "execution_error")
        for answer in (comfyui[case.name], ours(case))
    )
    assert theirs["exception_type"] == mine["exception_type"] == "ValueError"
    assert theirs["exception_message"].strip() == mine["exception_message"].strip()
    assert sorted(theirs["executed"]) == sorted(mine["executed"])
    assert set(mine) <= set(theirs)
