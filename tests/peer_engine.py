"""Run this package's engines under ComfyUI's execution tests: see tests/comfyui/test_execution_suite.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core.errors import SVDStagesError


class EmbeddedEngine:
    """The embedded executor with the nodes that ComfyUI has loaded. ComfyUI's own executor raises if it is called.

    It has no cache of a fixed size, so it ignores `cache_lru`.
    """

    def __init__(self, cache_lru: int | None = None):
        import execution

        import nodes

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("ComfyUI's own executor was called")

        for owner, name in (
            (execution, "validate_prompt"),
            (execution, "validate_inputs"),
            (execution.PromptExecutor, "execute"),
            (execution.PromptExecutor, "execute_async"),
        ):
            setattr(owner, name, refuse)
        self._nodes = nodes.NODE_CLASS_MAPPINGS
        self._engine = Engine(self._nodes, "classic")
        self._prompt: dict[str, Any] = {}

    def validate(self, prompt: dict[str, Any], targets: list[str] | None):
        """Return (ok, error, outputs that can run, errors by node id)."""
        validation = validate(prompt, self._nodes, targets)
        self._prompt = validation.prompt
        return validation.ok, validation.error, validation.outputs, validation.node_errors

    def execute(
        self,
        prompt: dict[str, Any],
        prompt_id: str,
        outputs: list[str],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Return the `ui` results by node id. A failure is an event."""
        events = []

        def record(event: str, data: dict[str, Any]) -> None:
            events.append(event)
            on_event(event, data)

        try:
            return self._engine.run(self._prompt, outputs, on_event=record, prompt_id=prompt_id).ui
        except SVDStagesError as error:
            if "execution_error" not in events:
                on_event("execution_error", {"exception_message": str(error), "prompt_id": prompt_id})
            return {}


class ComfyUIEngine:
    """ComfyUI's executor as `headless.engines.comfyui` calls it, in the ComfyUI that the tests have started."""

    def __init__(self, cache_lru: int | None = None):
        from svd_stages.headless.engines.comfyui.executor import ComfyRunner

        self._runner = ComfyRunner(cache_lru or 0)

    def validate(self, prompt: dict[str, Any], targets: list[str] | None):
        """Return (ok, error, outputs that can run, errors by node id)."""
        return self._runner.validate(prompt, "peer", targets)

    def execute(
        self,
        prompt: dict[str, Any],
        prompt_id: str,
        outputs: list[str],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Return the `ui` results by node id. A failure is an event."""
        return self._runner.execute(prompt, prompt_id, outputs, {}, on_event).ui
