"""Call the routes of a running ComfyUI: HTTP with the standard library, events with `websockets`.

Nothing goes through a proxy, redirects to another place are refused, answers have limits, and the password in the
address is sent to that server alone and is in no message. An answer in JSON is complete in time or an error; a result
may take as long as its bytes keep coming.
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
"""Bytes of an answer in JSON. /object_info of a large installation has some ten million."""
MAX_FILE = 16 * 1024**3
"""Bytes of a result."""
CHUNK = 1024 * 1024


class ServerRejected(Exception):
    """The server answered with an HTTP error: its status and what it said, JSON when it was."""

    def __init__(self, status: int, answer: Any):
        super().__init__(status)
        self.status = status
        self.answer = answer


@dataclass(frozen=True)
class Server:
    """A ComfyUI at `address`, scheme://host:port/path without a slash at its end.

    timeout  seconds for each of these: to connect, to send what is asked, and to answer it completely. A result has
             none for the whole of it, only for a silence
    """

    address: str
    timeout: float = 60.0
    _login: str | None = field(default=None, repr=False)

    @classmethod
    def at(cls, url: str, timeout: float = 60.0) -> Server:
        """The server at a URL as people write it: HOST:PORT, http://... or https://USER:PASSWORD@...

        Raises ServerError (`server.url`) for what is no such address.
        """
        text = url if "://" in url else f"http://{url}"
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urllib.parse.urlsplit(""), None
        plain = text.isascii() and text.isprintable() and " " not in text
        misplaced = parts.query or parts.fragment or "@" in parts.path  # a password's "/" ends the host
        if parts.scheme not in ("http", "https") or not _is_host(parts.hostname) or not plain or misplaced:
            shown = text.rpartition("@")[2][:100]
            raise ServerError(
                f'"{one_line(shown)}" is no address of a ComfyUI; write it as http://localhost:8188, with '
                "USER:PASSWORD@ before the host where it wants a login; / ? # and @ in them as %2F %3F %23 and %40.",
                code="server.url",
            )
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        place = host if port is None else f"{host}:{port}"
        login = None
        if parts.username is not None:
            words = ":".join(urllib.parse.unquote(each or "") for each in (parts.username, parts.password))
            login = "Basic " + base64.b64encode(words.encode()).decode()
        return cls(f"{parts.scheme}://{place}{parts.path.rstrip('/')}", timeout, login)

    def within(self, seconds: float) -> Server:
        """The same server, with so long for an answer."""
        return replace(self, timeout=seconds)

    def get(self, route: str, **query: str) -> Any:
        """A route's answer, read as JSON. Raises ServerError, and Refused for an HTTP error."""
        with self._open(route, query=query) as answer:
            return _as_json(_read(answer, MAX_JSON))

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """What a route answers to JSON, read as JSON; None when it is empty. Raises as `get` does."""
        content = json.dumps(body).encode()
        with self._open(route, content, {"Content-Type": "application/json"}) as answer:
            read = _read(answer, MAX_JSON)
        return _as_json(read) if read.strip() else None

    def upload(self, name: str, content: bytes, subfolder: str) -> Any:
        """Put a file into a subfolder of the server's input folder; its answer {name, subfolder, type}.

        A file of that name with other content stays: the server then chooses another name. Raises as `get` does.
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
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with self._open("/upload/image", body, kind) as answer:
            return _as_json(_read(answer, MAX_JSON))

    def download(self, route: str, target: Path, **query: str) -> None:
        """Write a route's answer to a file. Raises as `get` does, also when the answer breaks off; OSError."""
        answering = _InTime(self.timeout)
        with self._open(route, query=query, answering=answering) as answer, target.open("wb") as file:
            answering.until = math.inf
            promised, size = answer.length, 0
            while chunk := _some(answer):
                size += len(chunk)
                if size > MAX_FILE:
                    raise ServerError(f"a result has more than {MAX_FILE} bytes; it is not fetched", code="server.size")
                file.write(chunk)
        if promised not in (None, size):
            raise self._unreachable(f"a result broke off after {size} of {promised} bytes")

    def listen(self, client_id: str) -> WebSocket:
        """Open the websocket on which the server sends the events of a client.

        Raises:
            ConnectionError: The websocket cannot be opened.
        """
        from .websocket import open_websocket

        scheme, _, rest = self.address.partition("://")
        url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={client_id}"
        return open_websocket(url, self._headers(), min(self.timeout, 30.0))

    def _headers(self) -> dict[str, str]:
        return {} if self._login is None else {"Authorization": self._login}

    def _open(
        self,
        route: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        answering: _InTime | None = None,
    ) -> Any:
        url = self.address + route + (f"?{urllib.parse.urlencode(query)}" if query else "")
        # the address is http or https, see `server_at`
        request = urllib.request.Request(url, body, {**self._headers(), **(headers or {})})  # noqa: S310
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), _SamePlace(), answering or _InTime(self.timeout)
        )
        try:
            return opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, _some(error)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise self._unreachable(str(getattr(reason, "strerror", None) or reason or type(reason).__name__)) from None
        except ValueError:  # of the library, about the place that a redirect names
            raise ServerError(
                f"the server at {self.address} sends us on to what is no address; give that of a ComfyUI's page.",
                code="server.redirect",
            ) from None

    def _refused(self, status: int, content: bytes) -> Exception:
        """The error for an answer with an HTTP error status."""
        if status in (401, 403):
            return ServerError(
                f"the server at {self.address} refuses us ({status}); give its login in the address, as in "
                "https://USER:PASSWORD@HOST, or ask who runs it.",
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


class _InTime(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections whose answer ends at `until` (of time.monotonic), however slowly it drips: a socket's own
    timeout begins again with every byte. Time begins when the first request has been sent; redirects get no more."""

    def __init__(self, seconds: float):
        super().__init__()
        self.until: float | None = None
        self._seconds = seconds

    def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
        """As the library does, with answers of ours."""

        def connect(*place: Any, **how: Any) -> http.client.HTTPConnection:
            connection = http_class(*place, **how)
            connection.response_class = self._answer
            return connection

        return super().do_open(connect, req, **http_conn_args)

    def _answer(self, sock: Any, *more: Any, **how: Any) -> http.client.HTTPResponse:
        self.until = self.until or time.monotonic() + self._seconds
        answer = http.client.HTTPResponse(sock, *more, **how)
        answer.fp = io.BufferedReader(_Dripping(answer.fp.detach(), sock, self))
        return answer


class _Dripping(io.RawIOBase):
    """What comes from a socket, until its time is over. Raises TimeoutError then."""

    def __init__(self, raw: Any, sock: socket.socket, limit: _InTime):
        self._raw = raw
        self._socket = sock
        self._timeout = sock.gettimeout() or math.inf
        self._limit = limit

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """What is there, or comes in time."""
        left = (self._limit.until or math.inf) - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long to answer")
        if left < self._timeout:
            self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Hang up."""
        self._raw.close()
        super().close()


class _SamePlace(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port only: requests carry a login and the user's files."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Refuse another place."""
        there = urllib.parse.urlsplit(newurl)
        runtime = urllib.parse.urlsplit(req.full_url)
        if (there.scheme, there.netloc) != (runtime.scheme, runtime.netloc):
            raise ServerError(
                f"the server at {runtime.scheme}://{runtime.netloc} sends us on to another one, "
                f"{one_line(there.scheme, 20)}://{one_line(there.netloc.rpartition('@')[2], 100)}; if that is meant, "
                "give its address.",
                code="server.redirect",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_host(name: str | None) -> bool:
    """Whether a name can be looked up: labels that are neither empty nor long."""
    try:
        return bool((name or "").encode("idna"))
    except UnicodeError:
        return False


def _some(answer: Any) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ServerError(f"the server broke off its answer: {error}", code="server.unreachable") from error


def _read(answer: Any, limit: int) -> bytes:
    read = bytearray()
    while chunk := _some(answer):
        read += chunk
        if len(read) > limit:
            raise ServerError(f"an answer of the server has more than {limit} bytes", code="server.size")
    return bytes(read)


def _as_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServerError(
            "the server answers what is not JSON; is it a ComfyUI? Give the address of its page.", code="server.answer"
        ) from error
