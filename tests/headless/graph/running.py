"""Run graphs of toy nodes in tests."""

from __future__ import annotations

from typing import Any

from svd_stages.headless.graph import Engine, RunResult, validate

from .toys import TOYS

Events = list[tuple[str, dict[str, Any]]]


def run(prompt: dict[str, Any], nodes: dict[str, type] = TOYS, engine: Engine | None = None, **options) -> RunResult:
    """Run a valid graph. `engine` is a new one by default. `options` are those of `Engine.run`."""
    limits = {name: options[name] for name in ("keep", "precomputed") if name in options}
    checked = validate(prompt, nodes, **limits)
    assert checked.ok, checked.node_errors
    return (engine or Engine(nodes)).run(checked.prompt, checked.outputs, **options)


def run_ids(
    prompt: dict[str, Any], nodes: dict[str, type] = TOYS, engine: Engine | None = None
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Run a graph. Return the nodes that ran in order, the cached nodes, and the ui."""
    events: Events = []
    ui = run(prompt, nodes, engine, on_event=lambda *event: events.append(event)).ui
    (cached,) = [data["nodes"] for name, data in events if name == "execution_cached"]
    return [data["node"] for name, data in events if name == "executing"], cached, ui


def order_of(prompt: dict[str, Any], nodes: dict[str, type] = TOYS) -> list[str]:
    """Run a graph and return the nodes that ran, in order."""
    return run_ids(prompt, nodes)[0]
