"""Run graphs on a ComfyUI server: upload input files, queue the graph, follow its events, download the results.

The websocket reports the progress. The end of a run is read from /history, so a lost websocket loses no result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....svd_core.errors import ImageError, Interrupted, ServerError, SettingError, quoted
from ...graph import NodeTable, OnEvent, Prompt, Validation, described_nodes
from ...graph.node_schema import read_declaration
from ...graph.prompt import one_line
from ...graph.validate import raise_if_misshapen
from ..graph_errors import (
    check_described,
    graph_error,
    list_or_empty,
    mapping_or_empty,
    node_error,
    normalize_node_errors,
    takes_uploads,
)
from ..graphs import Graph, Report, check_place, ignore_events
from ..results import Results, file_inside
from ..run_config import RunConfig
from .client import Server, ServerRejected

if TYPE_CHECKING:
    from .websocket import WebSocket

SUBFOLDER = "svd-stages"
"""Subfolder of the server's input folder for uploads. Each file is below the hash of its content."""
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_ENDING_WAIT = 0.05
"""Seconds to wait for a message after the run's last event."""


@dataclass(frozen=True)
class PollPolicy:
    """Intervals and limits in seconds.

    Attributes:
        ask: Interval of requests while the server sends no event.
        unreachable: Limit for the time without an answer. HTTP status 5xx and 429 count as no answer, because a proxy
            sends them while its server is away.
        stop: Limit for stopping a run.
    """

    ask: float = 5.0
    unreachable: float = 60.0
    stop: float = 5.0


class RemoteEngine:
    """A `GraphEngine` on the ComfyUI at a URL. Models, device, precision and memory limit are the server's own.

    All methods raise ServerError if the server cannot be reached, refuses the login, or does not answer as ComfyUI.
    """

    name = "server"

    def __init__(self, run_config: RunConfig, url: str, policy: PollPolicy = PollPolicy(), timeout: float = 60.0):
        _refuse_server_settings(run_config)
        self._run_config = run_config
        self._server = Server.at(url, timeout)
        self._policy = policy
        self._table: NodeTable | None = None

    @property
    def table(self) -> NodeTable:
        """Return the nodes that the server describes at /object_info, requested once."""
        if self._table is None:
            described = self._get("/object_info")
            if not isinstance(described, Mapping):
                raise _unexpected("/object_info")
            self._table = described_nodes(described)
        return self._table

    @property
    def models_folder(self) -> str:
        """Return words: only the server knows the path."""
        return "the server's models folder"

    def versions(self) -> dict[str, str]:
        """Return the versions that the server reports: its own, and those of its Python and torch."""
        system = mapping_or_empty(mapping_or_empty(self._get("/system_stats")).get("system"))
        keys = {"comfyui": "comfyui_version", "python": "python_version", "torch": "pytorch_version"}
        versions = {name: system.get(key) for name, key in keys.items()}
        return {name: one_line(value, 100) for name, value in versions.items() if isinstance(value, str)}

    def _get(self, route: str) -> Any:
        try:
            return self._server.get(route)
        except ServerRejected as error:
            raise _unexpected(route, error) from None

    def model_file(self, folder: str, name: str) -> Path | None:
        """Return None: models are on the server."""
        return None

    def check(self, graph: Graph) -> Validation:
        """Validate a graph by the server's descriptions of its nodes. See `GraphEngine.check`.

        The server runs the nodes' own checks (VALIDATE_INPUTS) only when the graph is run. A note says so.
        """
        raise_if_misshapen(graph.prompt)
        table = self._table_with_local_files(graph.prompt)
        return check_described(graph.prompt, table, f"the server at {self._server.address}")

    def run(self, graph: Graph, on_event: OnEvent = ignore_events) -> Report:
        """Upload, queue, follow, download. See `GraphEngine.run`. If anything is raised here, the run is stopped there.

        Raises:
            SettingError: The output folder is not writable.
            OutputError: A result cannot be written.
        """
        raise_if_misshapen(graph.prompt)
        check_place(self._run_config.runtime().output_folder / "result")
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        prompt = self._with_uploads(graph.prompt)
        events = _RunEvents(self._server, self._policy, client_id, prompt_id)
        try:
            with events:
                node_errors = self._queue(graph, prompt, client_id, prompt_id)
                on_event("queued", {"prompt_id": prompt_id})
                return self._follow(events, prompt, node_errors, on_event)
        except BaseException as error:
            if events.entry is None:
                self._stop(prompt_id)
            if isinstance(error, ServerRejected):
                raise _unexpected("its routes", error) from None
            raise

    def _follow(self, events: _RunEvents, prompt: Prompt, node_errors: dict[str, Any], on_event: OnEvent) -> Report:
        """Forward the server's events until the run has ended, then download its results."""
        results = Results.of_run(self._run_config.runtime(), self._fetch)
        for event, data in events:
            on_event(event, results.with_files(data) if event == "executed" else data)
        entry = events.entry or {}
        _raise_failure(entry, prompt)
        ui = {}
        for node, output in mapping_or_empty(entry.get("outputs")).items():
            results.store(output)
            ui[str(node)] = results.renamed(output)
        faults = str(graph_error(None, node_errors, prompt, self.table)) if node_errors else ""
        return Report(results.files, ui, faults, node_errors)

    def _queue(self, graph: Graph, prompt: Prompt, client_id: str, prompt_id: str) -> dict[str, Any]:
        """Queue `prompt`, which is the graph with its files uploaded. Return the errors of outputs that cannot run.

        Raises:
            GraphError: No output can run.
        """
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id, "extra_data": graph.extra_data}
        try:
            answer = self._server.post("/prompt", body)
        except ServerRejected as error:
            answer = error.answer
            if error.status == 400 and isinstance(answer, Mapping) and answer.get("error"):
                table = self._table_with_local_files(graph.prompt)
                raise graph_error(answer["error"], answer.get("node_errors"), graph.prompt, table) from None
            raise _unexpected("/prompt", error) from None
        if not isinstance(answer, Mapping) or answer.get("prompt_id") != prompt_id:
            raise _unexpected("/prompt")
        return normalize_node_errors(answer.get("node_errors"))

    def _stop(self, prompt_id: str) -> None:
        """Stop the run on the server. Raises nothing if the server does not answer.

        Repeated until the run has ended, because it may start between two requests.
        """
        until = time.monotonic() + self._policy.stop
        while (remaining := until - time.monotonic()) > 0:
            server = self._server.within(remaining)
            with contextlib.suppress(ServerError, ServerRejected):
                server.post("/queue", {"delete": [prompt_id]})
                running, pending = _queued_ids(server.get("/queue"))
                if prompt_id in running:
                    server.post("/interrupt", {"prompt_id": prompt_id})
                elif prompt_id not in pending:
                    return
            time.sleep(0.1)

    def _fetch(self, kind: str, subfolder: str, name: str, target: Path) -> None:
        until = time.monotonic() + self._policy.unreachable
        while True:
            try:
                return self._server.download("/view", target, filename=name, subfolder=subfolder, type=kind)
            except (ServerError, ServerRejected) as error:
                if not _is_temporary(error) or time.monotonic() > until:
                    if isinstance(error, ServerError):
                        raise
                    raise ServerError(
                        f'the server does not send its result "{one_line(name, 100)}" (HTTP {error.status})',
                        code="server.result",
                    ) from None
            time.sleep(min(self._policy.ask, 1.0))

    def _with_uploads(self, prompt: Prompt) -> Prompt:
        """Upload the graph's local input files. Return the graph with their names on the server."""
        names: dict[str, str] = {}
        changed = {node_id: dict(node) for node_id, node in prompt.items()}
        for node_id, name, value, file in self._local_files(prompt):
            if value not in names:
                names[value] = self._upload(file)
            changed[node_id]["inputs"] = {**changed[node_id]["inputs"], name: names[value]}
        return changed

    def _upload(self, file: Path) -> str:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ImageError(f"{quoted(file)} cannot be read: {error.strerror}") from error
        subfolder = f"{SUBFOLDER}/{hashlib.sha256(content).hexdigest()[:16]}"
        try:
            answer = self._server.upload(file.name, content, subfolder)
        except ServerRejected as error:
            raise ServerError(
                f"the server refuses {quoted(file.name)}, {len(content)} bytes (HTTP {error.status}). Its flag "
                "--max-upload-size limits the size of a file.",
                code="server.upload",
            ) from None
        name = mapping_or_empty(answer).get("name")
        if not isinstance(name, str):
            raise _unexpected("/upload/image")
        return f"{subfolder}/{name}"

    def _local_files(self, prompt: Prompt) -> Iterator[tuple[str, str, str, Path]]:
        """Yield (node id, input, value, file) of the inputs that take uploads and name a file in the input folder."""
        folder = self._run_config.runtime().input_folder
        for node_id, node in prompt.items():
            class_type = node.get("class_type", "")
            if class_type not in self.table.classes:
                continue
            inputs = read_declaration(class_type, self.table.classes[class_type]).inputs
            for name, value in node.get("inputs", {}).items():
                if isinstance(value, str) and takes_uploads(inputs.get(name)):
                    file = file_inside(folder, value.removesuffix(" [input]"))
                    if file is not None:
                        yield node_id, name, value, file

    def _table_with_local_files(self, prompt: Prompt) -> NodeTable:
        """Return the server's nodes with the files that would be uploaded among the choices of their inputs."""
        classes: dict[str, Any] = dict(self.table.classes)
        for node_id, name, value, _ in self._local_files(prompt):
            class_type = prompt[node_id]["class_type"]
            classes[class_type] = _with_choice(classes[class_type], name, value)
        return NodeTable(classes, self.table.display_names)


class _RunEvents:
    """Iterates over the events of one run. `entry` is the run's entry in /history after it has ended.

    Iterating raises ServerError if the server does not answer for long, or no longer knows the run.
    """

    def __init__(self, server: Server, policy: PollPolicy, client_id: str, prompt_id: str):
        self._server = server
        self._policy = policy
        self._client_id = client_id
        self._prompt_id = prompt_id
        self._socket: WebSocket | None = None
        self._last_answer = time.monotonic()
        self._times_missing = 0
        self.entry: Mapping[str, Any] | None = None

    def __enter__(self) -> _RunEvents:
        self._connect()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._socket is not None:
            self._socket.close()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        is_ending, last_request = False, time.monotonic()
        while self.entry is None:
            message = self._receive(_ENDING_WAIT if is_ending else self._policy.ask)
            event, data = _parse_event(message, self._prompt_id)
            if event is not None:
                yield event, data
            is_ending = is_ending or _is_end(event, data)
            if message is None or is_ending or time.monotonic() - last_request > self._policy.ask:
                self.entry, last_request = self._history_entry(), time.monotonic()

    def _receive(self, wait: float) -> str | bytes | None:
        """Return the next message, None if there is none within `wait` seconds. Reconnects a lost websocket."""
        if self._socket is None:
            time.sleep(min(wait, 1.0))
            self._connect()
            return None
        try:
            return self._socket.receive(wait)
        except ConnectionError:
            self._socket = None
            return None

    def _connect(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._socket = self._server.listen(self._client_id)

    def _history_entry(self) -> Mapping[str, Any] | None:
        """Return the run's entry in /history, None while it runs or the server does not answer."""
        try:
            entry = mapping_or_empty(self._server.get(f"/history/{self._prompt_id}")).get(self._prompt_id)
            if isinstance(entry, Mapping):
                return entry
            running, pending = _queued_ids(self._server.get("/queue"))
        except (ServerError, ServerRejected) as error:
            if not _is_temporary(error) or time.monotonic() - self._last_answer > self._policy.unreachable:
                raise
            return None
        self._last_answer = time.monotonic()
        self._times_missing = 0 if self._prompt_id in (*running, *pending) else self._times_missing + 1
        if self._times_missing >= 3:  # a run that moves from one list to the other may be in neither answer
            raise ServerError(
                "the server no longer knows the run: it was restarted, or its history was cleared. Run it again.",
                code="server.lost",
            )
        return None


def _is_temporary(error: ServerError | ServerRejected) -> bool:
    """Return True if a request that failed with `error` may succeed later."""
    if isinstance(error, ServerError):
        return error.code in ("server.unreachable", "server.answer")
    return error.status >= 500 or error.status == 429


def _queued_ids(queue: Any) -> tuple[list[str], list[str]]:
    """Return the prompt ids of the running and of the waiting runs in an answer of /queue."""
    lists = []
    for key in ("queue_running", "queue_pending"):
        items = list_or_empty(mapping_or_empty(queue).get(key))
        lists.append([str(item[1]) for item in items if isinstance(item, list) and len(item) > 1])
    return lists[0], lists[1]


def _parse_event(message: str | bytes | None, prompt_id: str) -> tuple[str | None, dict[str, Any]]:
    """Return the name and data of a message about this run, else (None, {}). Binary messages are previews for a page.

    "queued" is an event of this package only, so a server cannot send it.
    """
    content: Mapping[str, Any] = {}
    if isinstance(message, str):
        with contextlib.suppress(ValueError, RecursionError):
            content = mapping_or_empty(json.loads(message))
    data = mapping_or_empty(content.get("data"))
    if data.get("prompt_id") != prompt_id:
        return None, {}
    event = content.get("type")
    return (event, dict(data)) if isinstance(event, str) and event != "queued" else (None, {})


def _is_end(event: str | None, data: Mapping[str, Any]) -> bool:
    """Return True if this is the run's last event. A blocked node sends execution_error and the run continues."""
    if event == "executing":
        return data.get("node") is None
    return event in _ENDS and data.get("exception_type") != "ExecutionBlocked"


def _raise_failure(entry: Mapping[str, Any], prompt: Prompt) -> None:
    """Raise NodeError or Interrupted if the run's entry in /history says so."""
    status = mapping_or_empty(entry.get("status"))
    for message in list_or_empty(status.get("messages")):
        if not isinstance(message, list) or len(message) != 2 or not isinstance(message[1], Mapping):
            continue
        event, data = message
        if event == "execution_error":
            raise node_error(data, prompt)
        if event == "execution_interrupted":
            raise Interrupted("the run was stopped on the server")
    if status.get("status_str") == "error":
        raise node_error({"exception_message": "the server gives no reason"}, prompt)


def _refuse_server_settings(run_config: RunConfig) -> None:
    """Raise SettingError for settings that are fixed when a server is started."""
    names = ("models", "device", "precision", "vram")
    flags = [f"--{name}" for name in names if getattr(run_config, name) not in ((), [], "auto", None)]
    if flags:
        raise SettingError(
            f"a server has its own models, device, precision and memory, got {' and '.join(flags)}. Leave that out."
        )


def _with_choice(described: Any, name: str, value: str) -> Any:
    """Return a described class with one more choice of the combo input `name`."""
    declared = read_declaration("", described).inputs[name]
    if declared.choices is None:
        return described
    options = [*declared.choices, value]
    in_list = isinstance(declared.kind, (list, tuple))
    spec = [options, declared.options] if in_list else [declared.kind, {**declared.options, "options": options}]
    inputs = described.INPUT_TYPES()
    group = "required" if declared.required else "optional"
    changed = {**inputs, group: {**inputs[group], name: spec}}
    return type(described.__name__, (described,), {"INPUT_TYPES": classmethod(lambda cls: changed)})


def _unexpected(route: str, error: ServerRejected | None = None) -> ServerError:
    reason = "" if error is None else f" (HTTP {error.status}: {one_line(str(error.answer), 300)})"
    return ServerError(
        f"the server at this address must answer at {route} as ComfyUI does, got something else{reason}. Give the "
        "address of a ComfyUI's page.",
        code="server.answer",
    )
