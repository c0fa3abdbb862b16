"""The remote engine: graphs on a running ComfyUI. Input files go there, results come here, and its word is the truth.

The websocket says how far a run is; whether it has ended, and how, is asked of /history, so that a socket which drops
loses nothing.
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

from ....svd_core.errors import GraphError, ImageError, Interrupted, ServerError, SettingError
from ...graph import NodeTable, OnEvent, Prompt, Validation, described_nodes, explain
from ...graph.node_schema import read_declaration
from ...graph.prompt import one_line
from ...graph.validate import shape_fault
from ..graphs import Graph, Report, ignore_events
from ..results import Results, file_inside
from ..run_config import RunConfig
from ..schema_validation import check_described
from .client import Server, ServerRejected
from .errors import node_failure, normalize_node_errors, refusal, takes_uploads

if TYPE_CHECKING:
    from .websocket import WebSocket

SUBFOLDER = "svd-stages"
"""Where in the server's input folder our files are, each below the hash of its content."""
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_SOON = 0.05
"""Seconds between two looks for what must come at once."""


@dataclass(frozen=True)
class PollPolicy:
    """Seconds: how often a silent server is asked, how long one may give no answer, and how long a stop may take.

    No answer is also one with an HTTP status of 5xx or 429: what stands before a server says so while it is away.
    """

    ask: float = 5.0
    unreachable: float = 60.0
    stop: float = 5.0


class RemoteEngine:
    """A `GraphEngine` on the ComfyUI at a URL. It has its own models, device and settings; ours must not be given.

    Raises ServerError when it cannot be reached, refuses us, or answers what no ComfyUI answers.
    """

    name = "server"

    def __init__(self, run_config: RunConfig, url: str, patience: PollPolicy = PollPolicy(), timeout: float = 60.0):
        _refuse_local_settings(run_config)
        self._run_config = run_config
        self._server = Server.at(url, timeout)
        self._patience = patience
        self._table: NodeTable | None = None

    @property
    def table(self) -> NodeTable:
        """The nodes that the server describes at /object_info; asked once."""
        if self._table is None:
            with _no_route("/object_info"):
                described = self._server.get("/object_info")
            if not isinstance(described, Mapping):
                raise _strange("/object_info")
            self._table = described_nodes(described)
        return self._table

    @property
    def models_folder(self) -> str:
        """In words: where it is, only the server knows."""
        return "the server's models folder"

    @property
    def input_folder(self) -> str:
        """In words: what is here is sent there."""
        return "the input folder here or on the server"

    def versions(self) -> dict[str, str]:
        """Those that the server tells: its own, and of its Python and torch."""
        with _no_route("/system_stats"):
            told = self._server.get("/system_stats")
        system = told.get("system") if isinstance(told, Mapping) else None
        keys = {"comfyui": "comfyui_version", "python": "python_version", "torch": "pytorch_version"}
        said = {name: system.get(key) for name, key in keys.items()} if isinstance(system, Mapping) else {}
        return {name: one_line(value, 100) for name, value in said.items() if isinstance(value, str)}

    def model_file(self, folder: str, name: str) -> Path | None:
        """None: they are the server's."""
        return None

    def check(self, graph: Graph) -> Validation:
        """Our validation by the server's own descriptions of its nodes. See `GraphEngine.check`.

        What its nodes check by themselves (VALIDATE_INPUTS), it decides when the graph is run; a note says so.
        """
        _raise_shape_fault(graph.prompt)
        table = self._with_files_here(graph.prompt)
        return check_described(graph.prompt, table, f"the server at {self._server.address}")

    def run(self, graph: Graph, on_event: OnEvent | None = None) -> Report:
        """Upload, queue, follow, fetch. See `GraphEngine.run`; SettingError, OutputError for results not written.

        A run that ends here before it does on the server, by whatever is raised, is stopped there.
        """
        from ....svd_core.utils.output_files import scratch_folder_beside

        _raise_shape_fault(graph.prompt)
        with scratch_folder_beside(self._run_config.runtime().output_folder / "result"):
            pass  # raises now rather than after the video has been computed
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        prompt = self._with_uploads(graph.prompt)
        told = on_event or ignore_events
        following = _Following(self._server, self._patience, client_id)
        try:
            with following, self._stopped_unless_ended(following, prompt_id):
                node_errors = self._queue(graph, prompt, client_id, prompt_id)
                told("queued", {"prompt_id": prompt_id})
                return self._follow(following, prompt, prompt_id, node_errors, told)
        except ServerRejected as error:
            raise _strange("its routes", error) from None

    def _follow(
        self, following: _Following, prompt: Prompt, prompt_id: str, node_errors: dict[str, Any], on_event: OnEvent
    ) -> Report:
        """Hand on what the server tells until the run has ended, then fetch what it made."""
        runtime = self._run_config.runtime()
        results = Results({"output": runtime.output_folder, "temp": runtime.folder("temp")}, self._fetch)
        for event, data in following.events(prompt_id):
            if event == "executed":
                data = {**data, "files": results.keep(data.get("output")), "output": results.named(data.get("output"))}
            on_event(event, data)
        entry = following.ended or {}
        outputs = entry.get("outputs")
        _raise_how_it_ended(entry, prompt)
        ui = {}
        for node, answer in outputs.items() if isinstance(outputs, Mapping) else ():
            results.keep(answer)
            ui[str(node)] = results.named(answer)
        faults = str(refusal(None, node_errors, prompt, self.table)) if node_errors else ""
        return Report(results.files, ui, faults, node_errors)

    def _queue(self, graph: Graph, prompt: Prompt, client_id: str, prompt_id: str) -> dict[str, Any]:
        """Queue `prompt`, which is the graph with its files uploaded; the errors of those outputs that cannot run.

        Raises GraphError when none can.
        """
        extra = {"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else {}
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
        try:
            answer = self._server.post("/prompt", body)
        except ServerRejected as refused:
            if refused.status == 400 and isinstance(refused.answer, Mapping) and refused.answer.get("error"):
                said = refused.answer
                table = self._with_files_here(graph.prompt)
                raise refusal(said["error"], said.get("node_errors"), graph.prompt, table) from None
            raise _strange("/prompt", refused) from None
        if not isinstance(answer, Mapping) or answer.get("prompt_id") != prompt_id:
            raise _strange("/prompt")
        return normalize_node_errors(answer.get("node_errors"))

    @contextlib.contextmanager
    def _stopped_unless_ended(self, following: _Following, prompt_id: str) -> Iterator[None]:
        """Take the run off the server's queue, or stop it, when anything here ends before it does."""
        try:
            yield
        except BaseException:
            if following.ended is None:
                self._stop(prompt_id)
            raise

    def _stop(self, prompt_id: str) -> None:
        """Until it has ended there: between two looks it may begin. Raises nothing of a server that does not answer."""
        until = time.monotonic() + self._patience.stop
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(ServerError, ServerRejected):
                if not self._is_there(prompt_id, self._server.within(left)):
                    return
            time.sleep(0.1)

    def _is_there(self, prompt_id: str, server: Server) -> bool:
        """Whether it waits or runs on the server, where it is told to stop."""
        server.post("/queue", {"delete": [prompt_id]})
        running, pending = queued_ids(server.get("/queue"))
        if prompt_id in running:
            server.post("/interrupt", {"prompt_id": prompt_id})
        return prompt_id in running or prompt_id in pending

    def _fetch(self, kind: str, subfolder: str, name: str, target: Path) -> None:
        until = time.monotonic() + self._patience.unreachable
        while True:
            try:
                return self._server.download("/view", target, filename=name, subfolder=subfolder, type=kind)
            except (ServerError, ServerRejected) as error:
                if not _may_pass(error) or time.monotonic() > until:
                    raise _no_result(name, error) from None
            time.sleep(min(self._patience.ask, 1.0))

    def _with_uploads(self, prompt: Prompt) -> Prompt:
        """The graph with the names that its input files have on the server, where they are afterwards."""
        uploaded: dict[str, str] = {}
        changed = {node_id: dict(node) for node_id, node in prompt.items()}
        for node_id, name, value, file in self._files_here(prompt):
            if value not in uploaded:
                uploaded[value] = self._upload(file)
            changed[node_id]["inputs"] = {**changed[node_id]["inputs"], name: uploaded[value]}
        return changed

    def _upload(self, file: Path) -> str:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ImageError(f"{file} cannot be read: {error.strerror}") from error
        subfolder = f"{SUBFOLDER}/{hashlib.sha256(content).hexdigest()[:16]}"
        try:
            answer = self._server.upload(file.name, content, subfolder)
        except ServerRejected as refused:
            raise ServerError(
                f"the server does not take {file.name}, {len(content)} bytes ({refused.status}); "
                "its --max-upload-size says how large a file may be.",
                code="server.upload",
            ) from None
        name = answer.get("name") if isinstance(answer, Mapping) else None
        if not isinstance(name, str):
            raise _strange("/upload/image")
        return f"{subfolder}/{name}"

    def _files_here(self, prompt: Prompt) -> Iterator[tuple[str, str, str, Path]]:
        """(node id, input, its value, file) of the inputs that take uploads and name a file of our input folder."""
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

    def _with_files_here(self, prompt: Prompt) -> NodeTable:
        """The server's nodes, whose lists of files hold those that would be uploaded, too."""
        classes: dict[str, Any] = dict(self.table.classes)
        for node_id, name, value, _ in self._files_here(prompt):
            class_type = prompt[node_id]["class_type"]
            classes[class_type] = _with_choice(classes[class_type], name, value)
        return NodeTable(classes, self.table.display_names)


class _Following:
    """One run as the server tells it. `ended` is its entry in /history when `events` has come to its end."""

    def __init__(self, server: Server, patience: PollPolicy, client_id: str):
        self._server = server
        self._patience = patience
        self._client_id = client_id
        self._socket: WebSocket | None = None
        self._answered = time.monotonic()
        self._lost = 0
        self.ended: Mapping[str, Any] | None = None

    def __enter__(self) -> _Following:
        self._connect()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._socket is not None:
            self._socket.close()

    def events(self, prompt_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """ComfyUI's events of this run, until it has ended. Raises ServerError when the server is gone for long, or
        knows the run no more."""
        ending, asked = False, time.monotonic()
        while True:
            said = self._heard(_SOON if ending else self._patience.ask)
            event, data = _event_of(said, prompt_id)
            if event is not None:
                yield event, data
            ending = ending or _is_end(event, data)
            if said is None or ending or time.monotonic() - asked > self._patience.ask:
                entry, asked = self._entry(prompt_id), time.monotonic()
                if entry is not None:
                    self.ended = entry
                    return

    def _heard(self, wait: float) -> str | bytes | None:
        """The next message; None when there is none for a while."""
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

    def _entry(self, prompt_id: str) -> Mapping[str, Any] | None:
        """What /history has of the run; None while it goes on, or the server does not answer."""
        try:
            history = self._server.get(f"/history/{prompt_id}")
            entry = history.get(prompt_id) if isinstance(history, Mapping) else None
            if isinstance(entry, Mapping):
                return entry
            running, pending = queued_ids(self._server.get("/queue"))
        except (ServerError, ServerRejected) as error:
            if not _may_pass(error) or time.monotonic() - self._answered > self._patience.unreachable:
                raise
            return None
        self._answered = time.monotonic()
        self._lost = 0 if prompt_id in (*running, *pending) else self._lost + 1
        if self._lost >= 3:  # between two answers it may have gone from the one list and not come to the other
            raise ServerError(
                "the server knows the run no more: it was started again, or its history was cleared. Run it again.",
                code="server.lost",
            )
        return None


def _may_pass(error: ServerError | ServerRejected) -> bool:
    """Whether a server that says this may answer a little later."""
    if isinstance(error, ServerError):
        return error.code in ("server.unreachable", "server.answer")
    return error.status >= 500 or error.status == 429


def _no_result(name: str, error: ServerError | ServerRejected) -> ServerError:
    if isinstance(error, ServerError):
        return error
    return ServerError(
        f'the server does not give its result "{one_line(name, 100)}" ({error.status})', code="server.result"
    )


def _raise_shape_fault(prompt: Prompt) -> None:
    """Raise GraphError for what is no graph at all."""
    if fault := shape_fault(prompt):
        raise GraphError(explain(fault[0], {}, {}), code=f"graph.{fault[0]['type']}")


def queued_ids(queue: Any) -> tuple[list[str], list[str]]:
    """The prompt ids that run, and those that wait, of what /queue answers."""
    lists = []
    for key in ("queue_running", "queue_pending"):
        items = queue.get(key) if isinstance(queue, Mapping) else None
        items = items if isinstance(items, list) else []
        lists.append([str(item[1]) for item in items if isinstance(item, list) and len(item) > 1])
    return lists[0], lists[1]


def _event_of(said: str | bytes | None, prompt_id: str) -> tuple[str | None, dict[str, Any]]:
    """The name and data of a message when it is about this run. Binary ones are pictures for a page.

    "queued" is an event of ours, and none of a server's.
    """
    if not isinstance(said, str):
        return None, {}
    try:
        message = json.loads(said)
    except (ValueError, RecursionError):
        return None, {}
    data = message.get("data") if isinstance(message, Mapping) else None
    if not isinstance(data, Mapping) or data.get("prompt_id") != prompt_id:
        return None, {}
    event = message.get("type")
    return (event, dict(data)) if isinstance(event, str) and event != "queued" else (None, {})


def _is_end(event: str | None, data: Mapping[str, Any]) -> bool:
    """Whether the run has ended with this event. A blocked node is told as an error, and the run goes on."""
    if event == "executing":
        return data.get("node") is None
    return event in _ENDS and data.get("exception_type") != "ExecutionBlocked"


def _raise_how_it_ended(entry: Mapping[str, Any], prompt: Prompt) -> None:
    """Raise NodeError or Interrupted by a run's entry in /history."""
    status = entry.get("status")
    status = status if isinstance(status, Mapping) else {}
    messages = status.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, list) or len(message) != 2 or not isinstance(message[1], Mapping):
            continue
        event, data = message
        if event == "execution_error":
            raise node_failure(data, prompt)
        if event == "execution_interrupted":
            raise Interrupted("the run was stopped on the server")
    if status.get("status_str") == "error":
        raise node_failure({"exception_message": "the server says no more than that the run failed"}, prompt)


def _refuse_local_settings(run_config: RunConfig) -> None:
    """Raise SettingError for what only whoever starts the server can choose."""
    given = {
        "models": bool(run_config.models),
        "device": run_config.device != "auto",
        "precision": run_config.precision != "auto",
        "vram": run_config.vram is not None,
    }
    names = [f"--{name}" for name, is_given in given.items() if is_given]
    if names:
        raise SettingError(f"{' and '.join(names)} cannot be chosen for a server; it was started with its own.")


def _with_choice(described: Any, name: str, value: str) -> Any:
    """A described class that has one more option in the combo of an input."""
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


@contextlib.contextmanager
def _no_route(route: str) -> Iterator[None]:
    try:
        yield
    except ServerRejected as refused:
        raise _strange(route, refused) from None


def _strange(route: str, refused: ServerRejected | None = None) -> ServerError:
    reason = "" if refused is None else f" ({refused.status}: {one_line(str(refused.answer), 300)})"
    return ServerError(
        f"the server does not answer at {route} as a ComfyUI does{reason}; give the address of a ComfyUI's page.",
        code="server.answer",
    )
