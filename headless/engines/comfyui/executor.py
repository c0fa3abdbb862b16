"""Graphs on ComfyUI's own executor, in this process: its validation, its run, its events, one graph at a time."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import comfy.utils
import execution
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ...graph import OnEvent, Prompt
from ...graph.async_utils import run_sync

CLIENT = "svd-stages"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True, eq=False)
class Ran:
    """How a run ended: the name and data of ComfyUI's last event, and what its outputs show (`ui` by node)."""

    event: str
    data: dict[str, Any]
    ui: dict[str, dict[str, Any]]


class ComfyRunner:
    """ComfyUI's executor. It keeps what it has computed: all that the last graph used, or the last `cache` results."""

    def __init__(self, cache: int | None = None):
        kind = execution.CacheType.CLASSIC if cache is None else execution.CacheType.LRU
        size = cache or 0
        newer = "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters
        kept: dict[str, Any] = {"cache_args": {"lru": size, "ram": 0.0}} if newer else {"cache_size": size}
        self._executor = execution.PromptExecutor(_Listener(lambda event, data: None), cache_type=kind, **kept)

    @staticmethod
    def interrupt() -> None:
        """Stop what runs as ComfyUI's Cancel does: at the next step of the node that runs."""
        management.interrupt_current_processing()

    def validate(
        self, prompt: Prompt, prompt_id: str, targets: Sequence[str] | None = None
    ) -> tuple[bool, dict[str, Any] | None, list[str], dict[str, Any]]:
        """(ok, ComfyUI's error, the outputs that can run, errors by node). Converts values in `prompt`."""
        with _told_elsewhere():
            return run_sync(execution.validate_prompt(prompt_id, prompt, targets))

    def execute(
        self, prompt: Prompt, prompt_id: str, outputs: Sequence[str], extra_data: dict[str, Any], on_event: OnEvent
    ) -> Ran:
        """Run a validated graph. A failing node and an interrupt are in what is returned.

        emit  told ComfyUI's events. What it raises stops the run and is raised here
        """
        listener = _Listener(on_event)
        executor = self._executor
        executor.server = listener
        listener.last_prompt_id = prompt_id
        comfy.utils.set_progress_bar_global_hook(listener.progress)
        comfy.utils.set_progress_bar_enabled(False)
        try:
            with _told_elsewhere():
                given = {**extra_data, "client_id": CLIENT}
                run_sync(executor.execute_async(prompt, prompt_id, given, list(outputs)))
        finally:
            comfy.utils.set_progress_bar_global_hook(None)
            comfy.utils.set_progress_bar_enabled(True)
            management.interrupt_current_processing(False)
        if listener.error is not None:
            raise listener.error
        ended = [(event, data) for event, data in executor.status_messages if event in ENDS]
        event, data = ended[-1] if ended else ("execution_success", {})
        return Ran(event, data, executor.history_result["outputs"])


@dataclass(eq=False)
class _Listener:
    """What ComfyUI's executor takes for its server: one client, who is told everything."""

    on_event: OnEvent
    client_id: str | None = CLIENT
    last_node_id: str | None = None
    last_prompt_id: str | None = None
    sockets_metadata: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        """An event; those with a number for a name are pictures for a page."""
        if self.error is not None or not isinstance(event, str):
            return
        try:
            self.on_event(event, data)
        except BaseException as error:
            self.error = error
            management.interrupt_current_processing()

    def progress(self, value: Any, total: Any, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
        """ComfyUI's hook for every progress bar; where the run stops after an interrupt."""
        management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        node_id = node_id or (context.node_id if context is not None else self.last_node_id)
        if node_id is None:
            return
        get_progress_state().update_progress(node_id, value, total, None)
        told = {"value": value, "max": total, "prompt_id": prompt_id or self.last_prompt_id, "node": node_id}
        self.send_sync("progress", told)


@contextmanager
def _told_elsewhere() -> Iterator[None]:
    """Keep what ComfyUI's executor logs as errors off the terminal: it is in what it answers."""

    def is_news(record: logging.LogRecord) -> bool:
        return record.module != "execution"

    root = logging.getLogger()
    root.addFilter(is_news)
    try:
        yield
    finally:
        root.removeFilter(is_news)
