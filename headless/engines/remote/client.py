"""Call the routes of a running ComfyUI: HTTP with the standard library, events with `websockets`.

No proxy is used, and redirects to another server are refused. Answers have a size limit. The password in the address is
sent to that server alone and is in no message. A JSON answer must be complete before the timeout; a result file may
take as long as bytes keep coming.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import secrets
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....svd_core.errors import ServerError
from ...graph.prompt import one_line

if TYPE_CHECKING:
    from .websocket import WebSocket

MAX_JSON = 256 * 1024 * 1024
"""Bytes of a JSON answer. /object_info of a large installation has about ten million."""
MAX_FILE = 16 * 1024**3
"""Bytes of a result file."""
CHUNK = 1024 * 1024


class ServerRejected(Exception):
    """The server answered with an HTTP error. `answer` is its body, parsed if it was JSON, else a line of text."""

    def __init__(self, status: int, answer: Any):
        super().__init__(status)
        self.status = status
        self.answer = answer


@dataclass(frozen=True)
class Server:
    """The routes of a ComfyUI at `address`, scheme://host:port/path without a trailing slash.

    Attributes:
        timeout: Seconds for each of these: to connect, to send a request, to receive the complete answer. The download
            of a result has no total limit, only one for a pause.
    """

    address: str
    timeout: float = 60.0
    _headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, url: str, timeout: float = 60.0) -> Server:
        """Parse an address: HOST:PORT, http://... or https://USER:PASSWORD@...

        Raises:
            ServerError: `url` is not such an address (`server.url`).
        """
        text = url if "://" in url else f"http://{url}"
        try:
            parts = urllib.parse.urlsplit(text)
            _ = parts.port  # raises ValueError if it is not a number
        except ValueError:
            parts = urllib.parse.urlsplit("")
        plain = text.isascii() and text.isprintable() and " " not in text
        misplaced = parts.query or parts.fragment or "@" in parts.path  # a "/" in a password ends the host
        if parts.scheme not in ("http", "https") or not _is_host(parts.hostname) or not plain or misplaced:
            without_login = one_line(text.rpartition("@")[2][:100])
            raise ServerError(
                f'the address of a ComfyUI must look like http://localhost:8188, got "{without_login}". Put a login '
                "before the host as USER:PASSWORD@; write / ? # and @ in it as %2F %3F %23 and %40.",
                code="server.url",
            )
        headers = {}
        if parts.username is not None:
            login = ":".join(urllib.parse.unquote(each or "") for each in (parts.username, parts.password))
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        host = parts.netloc.rpartition("@")[2].lower()
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", timeout, headers)

    def within(self, seconds: float) -> Server:
        """Return a copy with another timeout."""
        return replace(self, timeout=seconds)

    def get(self, route: str) -> Any:
        """Return the JSON answer of a route.

        Raises:
            ServerError: The server cannot be reached, or the answer is too long, too late or not JSON.
            ServerRejected: The server answered with an HTTP error.
        """
        with self._open(route) as answer:
            return _as_json(_read(answer))

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Send JSON and return the JSON answer, None if it is empty. Raises as `get`."""
        with self._open(route, json.dumps(body).encode(), {"Content-Type": "application/json"}) as answer:
            content = _read(answer)
        return _as_json(content) if content.strip() else None

    def upload(self, name: str, content: bytes, subfolder: str) -> Any:
        """Store a file in a subfolder of the server's input folder. Return its answer {name, subfolder, type}.

        If a file of that name with other content exists, the server chooses another name. Raises as `get`.
        """
        boundary = secrets.token_hex(16)
        quoted = name.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
        fields = {"type": "input", "subfolder": subfolder}
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        )
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{quoted}"\r\n'.encode()
        body += b"Content-Type: application/octet-stream\r\n\r\n" + content + f"\r\n--{boundary}--\r\n".encode()
        content_type = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with self._open("/upload/image", body, content_type) as answer:
            return _as_json(_read(answer))

    def download(self, route: str, target: Path, **query: str) -> None:
        """Write the answer of a route to a file. Raises as `get`, also if the answer is incomplete, and OSError."""
        deadline = _Deadline(self.timeout)
        url = f"{route}?{urllib.parse.urlencode(query)}"
        with self._open(url, deadline=deadline) as answer, target.open("wb") as file:
            deadline.until = math.inf
            length, size = answer.length, 0
            while chunk := _read_chunk(answer):
                size += len(chunk)
                if size > MAX_FILE:
                    raise ServerError(f"a result must have at most {MAX_FILE} bytes, got more", code="server.size")
                file.write(chunk)
        if length not in (None, size):
            raise self._unreachable(f"a result ended after {size} of {length} bytes")

    def listen(self, client_id: str) -> WebSocket:
        """Open the websocket on which the server sends the events of a client.

        Raises:
            ConnectionError: The websocket cannot be opened.
        """
        from .websocket import open_websocket

        scheme, _, rest = self.address.partition("://")
        url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={client_id}"
        return open_websocket(url, self._headers, min(self.timeout, 30.0))

    def _open(
        self,
        route: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: _Deadline | None = None,
    ) -> Any:
        # the address is http or https, see `at`
        request = urllib.request.Request(self.address + route, body, {**self._headers, **(headers or {})})  # noqa: S310
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), _SameServerRedirects(), deadline or _Deadline(self.timeout)
        )
        try:
            return opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._rejected(error.code, _read_chunk(error)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise self._unreachable(str(getattr(reason, "strerror", None) or reason or type(reason).__name__)) from None
        except ValueError:  # from urllib, for an invalid address in a redirect
            raise ServerError(
                f"the server at {self.address} redirects to an invalid address. Give the address of a ComfyUI's page.",
                code="server.redirect",
            ) from None

    def _rejected(self, status: int, content: bytes) -> Exception:
        """Return the error for an answer with an HTTP error status."""
        if status in (401, 403):
            return ServerError(
                f"the server at {self.address} needs a valid login (HTTP {status}). Give it in the address, as in "
                "https://USER:PASSWORD@HOST, or ask its administrator.",
                code="server.login",
            )
        try:
            return ServerRejected(status, json.loads(content))
        except (ValueError, RecursionError):
            return ServerRejected(status, one_line(content.decode("utf-8", "replace"), 300))

    def _unreachable(self, reason: str) -> ServerError:
        return ServerError(
            f"the server at {self.address} cannot be reached: {one_line(reason, 200)}. Is ComfyUI running there?",
            code="server.unreachable",
        )


class _Deadline(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections whose answer must be complete at `until` (of time.monotonic).

    A socket's own timeout starts again with every byte. The time starts when the first request has been sent, and
    redirects do not extend it.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.until: float | None = None
        self._seconds = seconds

    def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
        """Open a connection as urllib does, with answers that respect the deadline."""

        def connect(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            connection = http_class(*args, **kwargs)
            connection.response_class = self._answer
            return connection

        return super().do_open(connect, req, **http_conn_args)

    def _answer(self, sock: Any, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        self.until = self.until or time.monotonic() + self._seconds
        answer = http.client.HTTPResponse(sock, *args, **kwargs)
        answer.fp = io.BufferedReader(_DeadlineReader(answer.fp.detach(), sock, self))
        return answer


class _DeadlineReader(io.RawIOBase):
    """The bytes from a socket until a deadline, after which reading raises TimeoutError."""

    def __init__(self, raw: Any, sock: socket.socket, deadline: _Deadline):
        self._raw = raw
        self._socket = sock
        self._timeout = sock.gettimeout() or math.inf
        self._deadline = deadline

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read the next bytes, or wait for them until the deadline."""
        remaining = (self._deadline.until or math.inf) - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer takes too long")
        if remaining < self._timeout:
            self._socket.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the connection."""
        self._raw.close()
        super().close()


class _SameServerRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port only: requests carry a login and the user's files."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Raise ServerError for a redirect to another server."""
        source, target = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (target.scheme, target.netloc) != (source.scheme, source.netloc):
            raise ServerError(
                f"the server at {source.scheme}://{source.netloc} redirects to another server, "
                f"{one_line(target.scheme, 20)}://{one_line(target.netloc.rpartition('@')[2], 100)}. Give that address "
                "if it is the right one.",
                code="server.redirect",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_host(name: str | None) -> bool:
    """Return True if a host name can be looked up: no label is empty or too long."""
    try:
        return bool((name or "").encode("idna"))
    except UnicodeError:
        return False


def _read_chunk(answer: Any) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ServerError(f"the server did not complete its answer: {error}", code="server.unreachable") from error


def _read(answer: Any) -> bytes:
    content = bytearray()
    while chunk := _read_chunk(answer):
        content += chunk
        if len(content) > MAX_JSON:
            raise ServerError(f"an answer must have at most {MAX_JSON} bytes, got more", code="server.size")
    return bytes(content)


def _as_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServerError(
            "the server's answer must be JSON. Is it a ComfyUI? Give the address of its page.", code="server.answer"
        ) from error
