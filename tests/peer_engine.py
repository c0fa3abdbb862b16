"""Our engines under ComfyUI's own execution tests: see tests/comfyui/test_execution_suite.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core.errors import SVDStagesError


class EmbeddedEngine:
    """What the plugin that swaps engines asks for. Nodes are those that ComfyUI has loaded; nothing else is its."""

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
        self._engine = Engine(self._nodes, "classic" if cache_lru is None else cache_lru)
        self._checked: dict[str, Any] = {}

    def validate(self, prompt: dict[str, Any], targets: list[str] | None):
        """(ok, error, outputs that can run, errors by node)."""
        checked = validate(prompt, self._nodes, targets)
        self._checked = checked.prompt
        return checked.ok, checked.error, checked.outputs, checked.node_errors

    def execute(
        self,
        prompt: dict[str, Any],
        prompt_id: str,
        outputs: list[str],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """What the outputs show. A failure has been told to `on_event`."""
        told = []

        def note(event: str, data: dict[str, Any]) -> None:
            told.append(event)
            on_event(event, data)

        try:
            return self._engine.run(self._checked, outputs, on_event=note, prompt_id=prompt_id).ui
        except SVDStagesError as error:
            if "execution_error" not in told:
                on_event("execution_error", {"exception_message": str(error), "prompt_id": prompt_id})
            return {}


class ComfyUIEngine:
    """ComfyUI's executor as our ComfyUI engine drives it. The tests bring the ComfyUI that has been started."""

    def __init__(self, cache_lru: int | None = None):
        from svd_stages.headless.engines.comfyui.executor import ComfyRunner

        self._runner = ComfyRunner(cache_lru)

    def validate(self, prompt: dict[str, Any], targets: list[str] | None):
        """(ok, error, outputs that can run, errors by node)."""
        return self._runner.validate(prompt, "peer", targets)

    def execute(
        self,
        prompt: dict[str, Any],
        prompt_id: str,
        outputs: list[str],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """What the outputs show. A failure has been told to `on_event`."""
        return self._runner.execute(prompt, prompt_id, outputs, {}, on_event).ui
