"""Validate and run graphs on ComfyUI's executor in this process, one graph at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import comfy.utils
import execution
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ...graph import OnEvent, Prompt
from ...graph.async_utils import run_sync
from ..graphs import ignore_events
from .bootstrap import root_log_filter

CLIENT = "svd-stages"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """The end of a run: the name and data of ComfyUI's last event, and the `ui` results by node id."""

    event: str
    data: dict[str, Any]
    ui: dict[str, dict[str, Any]]


class ComfyRunner:
    """ComfyUI's executor. It caches the results of the last graph, or the last `cache` results."""

    def __init__(self, cache: int = 0):
        kind = execution.CacheType.LRU if cache else execution.CacheType.CLASSIC
        newer = "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters
        options: dict[str, Any] = {"cache_args": {"lru": cache, "ram": 0.0}} if newer else {"cache_size": cache}
        self._executor = execution.PromptExecutor(_EventServer(ignore_events), cache_type=kind, **options)
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @staticmethod
    def interrupt() -> None:
        """Stop the run at the next step of the running node, as ComfyUI's Cancel does."""
        management.interrupt_current_processing()

    def validate(
        self, prompt: Prompt, prompt_id: str, targets: Sequence[str] | None = None
    ) -> tuple[bool, dict[str, Any] | None, list[str], dict[str, Any]]:
        """Return (ok, ComfyUI's error, outputs that can run, errors by node id). Converts values in `prompt`."""
        with _without_executor_log():
            return run_sync(execution.validate_prompt(prompt_id, prompt, targets))

    def execute(
        self, prompt: Prompt, prompt_id: str, outputs: Sequence[str], extra_data: dict[str, Any], on_event: OnEvent
    ) -> RunOutcome:
        """Run a validated graph. A failed node and an interrupt are part of the outcome.

        Args:
            on_event: Called with ComfyUI's events. An exception from it stops the run and is raised here.
        """
        server = _EventServer(on_event, last_prompt_id=prompt_id)
        executor = self._executor
        executor.server = server
        comfy.utils.set_progress_bar_global_hook(server.progress)
        comfy.utils.set_progress_bar_enabled(False)
        try:
            with _without_executor_log():
                data = {**extra_data, "client_id": CLIENT}
                run_sync(self._execute(prompt, prompt_id, data, list(outputs)))
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
            comfy.utils.set_progress_bar_enabled(True)
            management.interrupt_current_processing(False)
        if server.error is not None:
            raise server.error
        ends = [(event, data) for event, data in executor.status_messages if event in ENDS]
        event, data = ends[-1] if ends else ("execution_success", {})
        return RunOutcome(event, data, executor.history_result["outputs"])

    async def _execute(self, *arguments: Any) -> None:
        if self._gpu is not None:  # CUDA's current device is one of the thread, which may be a new one
            torch.cuda.set_device(self._gpu)
        await self._executor.execute_async(*arguments)


@dataclass(eq=False)
class _EventServer:
    """Takes the place of ComfyUI's server in its executor: one client, which receives all events."""

    on_event: OnEvent
    client_id: str | None = CLIENT
    last_node_id: str | None = None
    last_prompt_id: str | None = None
    sockets_metadata: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        """Forward an event. Events with a number as name are preview images for a page and are ignored."""
        if self.error is not None or not isinstance(event, str):
            return
        try:
            self.on_event(event, data)
        except BaseException as error:
            self.error = error
            management.interrupt_current_processing()

    def progress(self, value: Any, total: Any, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
        """Forward the progress of a node. ComfyUI's hook for progress bars, in which an interrupt stops the run."""
        management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        node_id = node_id or (context.node_id if context is not None else self.last_node_id)
        if node_id is None:
            return
        get_progress_state().update_progress(node_id, value, total, None)
        data = {"value": value, "max": total, "prompt_id": prompt_id or self.last_prompt_id, "node": node_id}
        self.send_sync("progress", data)


def _without_executor_log() -> AbstractContextManager[None]:
    """Keep the errors that ComfyUI's executor logs off the terminal: they are part of its results."""
    return root_log_filter(lambda record: record.module != "execution")
