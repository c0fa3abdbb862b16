"""A server that answers as ComfyUI does, on a loopback port: what the remote engine's tests talk to.

It runs nothing. A test says what happens to a prompt that it queues: the events that are told, how it ends, and the
files that it then has.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
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


@dataclass
class Peer:
    """A server's state, and what a test has it do."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=lambda: {"status_str": "success", "completed": True, "messages": []})
    outputs: dict[str, Any] = field(default_factory=dict)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Route -> status and body, in place of what it would answer."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Route -> headers of that answer."""
    failures: dict[str, list[int]] = field(default_factory=dict)
    """First step of a route -> HTTP statuses of its next answers, before it answers as ever."""
    slow: dict[str, float] = field(default_factory=dict)
    """First step of a route -> seconds until it answers."""
    begins: bool = True
    """Whether a queued prompt runs; else it waits in the queue."""
    ends: bool = True
    forgets: bool = False
    """Whether it loses what it had queued, as a server that is started again."""
    hangs_up_after: int | None = None
    """After so many events, once, the websocket is dropped."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    prompt: dict[str, Any] | None = None
    uploads: dict[str, bytes] = field(default_factory=dict)
    told: int = 0
    stopped: bool = False

    def bodies(self, route: str) -> list[Any]:
        """What was posted to a route, as JSON."""
        return [json.loads(body) for method, path, _, body in self.requests if method == "POST" and path == route]

    def over(self) -> bool:
        """Whether the prompt has ended."""
        return self.prompt is not None and (self.stopped or (self.begins and self.ends and self.all_told()))

    def all_told(self) -> bool:
        """Whether all events were sent, or there is no websocket."""
        return self.told >= len(self.events) or "/ws" in self.answers


class Handler(BaseHTTPRequestHandler):
    """ComfyUI's routes."""

    protocol_version = "HTTP/1.1"
    peer: Peer

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.note(url.path, b"")
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
            waits = peer.prompt is not None and not peer.over() and not peer.forgets
            running, pending = (item, []) if peer.begins else ([], item)
            return self.json({"queue_running": running if waits else [], "queue_pending": pending if waits else []})
        if url.path.startswith("/history/"):
            prompt_id = (peer.prompt or {}).get("prompt_id")
            known = url.path == f"/history/{prompt_id}" and peer.over() and not peer.forgets
            return self.json({prompt_id: {"status": peer.status, "outputs": peer.outputs}} if known else {})
        if url.path == "/view":
            content = peer.files.get((query["type"], query["subfolder"], query["filename"]))
            return self.bytes(404 if content is None else 200, content or b"")
        return self.bytes(404, b"404: Not Found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.note(self.path, body)
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
            wanted = json.loads(body)
            named = wanted.get("prompt_id") if self.path == "/interrupt" else next(iter(wanted.get("delete", [])), None)
            waiting = peer.begins == (self.path == "/interrupt")
            if peer.prompt is not None and named == peer.prompt["prompt_id"] and waiting:
                peer.stopped = True
            return self.bytes(200, b"")
        return self.bytes(404, b"404: Not Found")

    def fails(self, path: str) -> bool:
        """Whether this request is one that fails; it has been answered then."""
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
        """Tell the events of the prompt when there is one, then keep the line."""
        peer = self.peer
        accepted = hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode())
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accepted.digest()).decode())
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.tell({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "x"}})
            while not peer.stopped:
                if peer.told == peer.hangs_up_after:
                    peer.hangs_up_after = None
                    break
                if peer.prompt is not None and peer.begins and peer.told < len(peer.events):
                    event, data = peer.events[peer.told]
                    self.tell({"type": event, "data": {"prompt_id": peer.prompt["prompt_id"], **data}})
                    peer.told += 1
                time.sleep(0.002)

    def tell(self, message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        size = bytes([len(text)]) if len(text) < 126 else b"\x7e" + len(text).to_bytes(2, "big")
        self.connection.sendall(b"\x81" + size + text)

    def note(self, path: str, body: bytes) -> None:
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
    """The peer, reachable at its `url` inside the `with`."""
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
