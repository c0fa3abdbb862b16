"""Our validation and execution of toy graphs against ComfyUI's own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core.errors import NodeError

from .ask_comfyui import ask_comfyui, needs_comfyui
from .cases import FAILING, INVALID, VALID, Case
from .toys import TOYS

CASES = VALID + FAILING + INVALID
pytestmark = [pytest.mark.comfyui, needs_comfyui]


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """ComfyUI's answers by the name of the case."""
    folder = tmp_path_factory.mktemp("peer")
    asked = [{"prompt": case.prompt, "targets": case.targets} for case in CASES]
    answers = ask_comfyui(folder, asked)
    return {case.name: answer for case, answer in zip(CASES, answers, strict=True)}


def ours(case: Case) -> dict[str, Any]:
    """Our answer, in the form of ComfyUI's."""
    checked = validate(case.prompt, TOYS, case.targets)
    found = {
        "ok": checked.ok,
        "error": checked.error,
        "outputs": checked.outputs,
        "node_errors": checked.node_errors,
    }
    if checked.ok:
        events: list[Any] = []
        ui: dict[str, Any] = {}
        try:
            info = {"extra_pnginfo": {"workflow": {"id": 7}}}
            ui = (
                Engine(TOYS)
                .run(checked.prompt, checked.outputs, extra_data=info, on_event=lambda *event: events.append(event))
                .ui
            )
        except NodeError:
            pass
        found |= {"ui": ui, "events": events}
    return json.loads(json.dumps(found, default=str))


def errors(answer: dict[str, Any]) -> Any:
    """Types, messages, details and extra_info of all errors; the order inside a node is chance in ComfyUI."""
    kind = answer["error"] and answer["error"]["type"]
    if kind in ("invalid_prompt", "missing_node_type"):  # the same fault, renamed in early 2026
        return answer["error"]["details"]
    nodes = {
        node_id: (entry["class_type"], sorted(json.dumps(_without_hint(each)) for each in entry["errors"]))
        for node_id, entry in answer["node_errors"].items()
    }
    return kind, answer["error"] and sorted(answer["error"]["details"].split("\n")), nodes


def _without_hint(error: dict[str, Any]) -> dict[str, Any]:
    return {**error, "extra_info": {key: each for key, each in error["extra_info"].items() if key != "nearest"}}


def dependents(answer: dict[str, Any]) -> Any:
    return {node_id: sorted(entry["dependent_outputs"]) for node_id, entry in answer["node_errors"].items()}


def runs(case: Case, answer: dict[str, Any]) -> Any:
    """How often each class ran: which of two equal nodes runs is chance in ComfyUI."""
    told = answer.get("events", [])
    return Counter(case.prompt[data["node"]]["class_type"] for event, data in told if event == "executing")


def failure(answer: dict[str, Any]) -> Any:
    told = [data for event, data in answer.get("events", []) if event == "execution_error"]
    return [(data["node_id"], data["node_type"]) for data in told]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decisions_errors_and_results_are_comfyuis_or_named_as_different(comfyui, case: Case):
    theirs, mine = comfyui[case.name], ours(case)
    same = {
        "decision": theirs["ok"] == mine["ok"] and sorted(theirs["outputs"]) == sorted(mine["outputs"]),
        "errors": "missing_node_type" in str(mine["error"]) or errors(theirs) == errors(mine),
        "dependents": "missing_node_type" in str(mine["error"]) or dependents(theirs) == dependents(mine),
        "ui": theirs.get("ui") == mine.get("ui"),
        "runs": runs(case, theirs) == runs(case, mine),
        "failure": failure(theirs) == failure(mine),
    }
    different = {what for what, equal in same.items() if not equal}
    if "decision" in case.differs:  # then one of the two did not run
        different &= set(case.differs)
    assert different - {"dependents"} == set(case.differs) - {"dependents"}, (theirs, mine)


def test_what_succeeds_and_what_fails_is_what_the_table_says(comfyui):
    for case in CASES:
        decided = ours(case)["ok"]
        assert decided == (case not in INVALID), case.name
        assert bool(failure(ours(case))) == (case in FAILING), case.name


def test_exceptions_reach_the_event_with_their_type_and_text(comfyui):
    for case in FAILING[:1]:
        theirs, mine = (
            next(data for event, data in answer["events"] if event == "execution_error")
            for answer in (comfyui[case.name], ours(case))
        )
        assert theirs["exception_type"] == mine["exception_type"] == "ValueError"
        assert theirs["exception_message"].strip() == mine["exception_message"].strip()
        assert sorted(theirs["executed"]) == sorted(mine["executed"])
        assert set(mine) <= set(theirs)
