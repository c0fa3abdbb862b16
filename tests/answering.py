"""A server on a loopback port that answers like ComfyUI, for tests of the remote engine.

It runs nothing. A test sets what happens to a queued prompt: the events, the final status, and the result files.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from svd_stages.headless import DISPLAY_NAMES, NODES
from svd_stages.headless.graph import object_info
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key


@dataclass
class Peer:
    """The state of a server, and the behaviour that a test sets."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=lambda: {"status_str": "success", "completed": True, "messages": []})
    outputs: dict[str, Any] = field(default_factory=dict)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Route -> status and body that replace the usual answer."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Route -> headers of that answer."""
    failures: dict[str, list[int]] = field(default_factory=dict)
    """First step of a route -> HTTP statuses of its next answers. The usual answers follow."""
    slow: dict[str, float] = field(default_factory=dict)
    """First step of a route -> seconds until it answers."""
    begins: bool = True
    """True: a queued prompt runs. False: it waits in the queue."""
    ends: bool = True
    forgets: bool = False
    """True: the queue and the history are lost, as after a restart."""
    hangs_up_after: int | None = None
    """The websocket is closed once, after this number of events."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    prompt: dict[str, Any] | None = None
    uploads: dict[str, bytes] = field(default_factory=dict)
    events_sent: int = 0
    stopped: bool = False

    def bodies(self, route: str) -> list[Any]:
        """Return the JSON bodies of the POST requests to a route."""
        return [json.loads(body) for method, path, _, body in self.requests if method == "POST" and path == route]

    def has_ended(self) -> bool:
        """Return True if the prompt was stopped, or its events were sent or need no websocket."""
        all_sent = self.events_sent >= len(self.events) or "/ws" in self.answers
        return self.prompt is not None and (self.stopped or (self.begins and self.ends and all_sent))


class RecordingListener:
    """An `EventListener` that records (event name, values). Progress is recorded without its unit."""

    def __init__(self):
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, **values: Any) -> None:
        self.events.append((name, values))

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        self.events.append(("progress", {"stage": stage, "done": done, "total": total, "node": node}))


class Handler(BaseHTTPRequestHandler):
    """ComfyUI's routes."""

    protocol_version = "HTTP/1.1"
    peer: Peer

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.record(url.path, b"")
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        peer = self.peer
        if self.fails(url.path):
            return None
        if url.path in peer.answers:
            return self.prepared(url.path)
        if url.path == "/ws":
            return self.websocket()
        if url.path == "/object_info":
            return self.json(object_info(NODES, DISPLAY_NAMES))
        if url.path == "/queue":
            item = [[0, (peer.prompt or {}).get("prompt_id"), {}, {}, []]]
            waits = peer.prompt is not None and not peer.has_ended() and not peer.forgets
            running, pending = (item, []) if peer.begins else ([], item)
            return self.json({"queue_running": running if waits else [], "queue_pending": pending if waits else []})
        if url.path.startswith("/history/"):
            prompt_id = (peer.prompt or {}).get("prompt_id")
            known = url.path == f"/history/{prompt_id}" and peer.has_ended() and not peer.forgets
            return self.json({prompt_id: {"status": peer.status, "outputs": peer.outputs}} if known else {})
        if url.path == "/view":
            content = peer.files.get((query["type"], query["subfolder"], query["filename"]))
            return self.bytes(404 if content is None else 200, content or b"")
        return self.bytes(404, b"404: Not Found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.record(self.path, body)
        peer = self.peer
        if self.fails(self.path):
            return None
        if self.path in peer.answers:
            return self.prepared(self.path)
        if self.path == "/prompt":
            peer.prompt = json.loads(body)
            return self.json({"prompt_id": peer.prompt["prompt_id"], "number": 1, "node_errors": {}})
        if self.path == "/upload/image":
            return self.json(self.upload(body))
        if self.path in ("/interrupt", "/queue"):
            content = json.loads(body)
            prompt_ids = [content.get("prompt_id")] if self.path == "/interrupt" else content.get("delete", [])
            if peer.prompt is not None and peer.prompt["prompt_id"] in prompt_ids:
                peer.stopped = peer.stopped or peer.begins == (self.path == "/interrupt")
            return self.bytes(200, b"")
        return self.bytes(404, b"404: Not Found")

    def fails(self, path: str) -> bool:
        """Answer with the next status in `failures`. Return False if there is none."""
        route = f"/{path.split('/')[1]}"
        time.sleep(self.peer.slow.get(route, 0.0))
        statuses = self.peer.failures.get(route)
        if statuses:
            self.bytes(statuses.pop(0), b"<html>Bad Gateway</html>")
            return True
        return False

    def upload(self, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            str(part.get_param("name", header="content-disposition")): part
            for part in BytesParser().parsebytes(head + body).get_payload()
        }
        name, subfolder = parts["image"].get_filename(), parts["subfolder"].get_payload()
        self.peer.uploads[f"{subfolder}/{name}"] = parts["image"].get_payload(decode=True)
        return {"name": name, "subfolder": subfolder, "type": "input"}

    def websocket(self) -> None:
        """Send the events of the prompt when there is one, then keep the connection open."""
        peer = self.peer
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept_key(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.send({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "x"}})
            while not peer.stopped:
                if peer.events_sent == peer.hangs_up_after:
                    peer.hangs_up_after = None
                    break
                if peer.prompt is not None and peer.begins and peer.events_sent < len(peer.events):
                    event, data = peer.events[peer.events_sent]
                    self.send({"type": event, "data": {"prompt_id": peer.prompt["prompt_id"], **data}})
                    peer.events_sent += 1
                time.sleep(0.002)

    def send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(Frame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=False))

    def record(self, path: str, body: bytes) -> None:
        self.peer.requests.append((self.command, path, dict(self.headers), body))

    def json(self, value: Any) -> None:
        self.bytes(200, json.dumps(value).encode())

    def prepared(self, route: str) -> None:
        self.bytes(*self.peer.answers[route], self.peer.headers.get(route, {}))

    def bytes(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        if headers:
            self.close_connection = True


@contextlib.contextmanager
def serving(peer: Peer) -> Iterator[Peer]:
    """Serve the peer at its `url` inside the `with`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"peer": peer}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    peer.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield peer
    finally:
        peer.stopped = True
        server.shutdown()
        server.server_close()
        thread.join()
