"""A websocket client, RFC 6455, as small as following a ComfyUI server takes: no extensions, no subprotocols."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import select
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
MAX_HEAD = 16 * 1024
"""Bytes of the server's answer to the handshake."""
MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of a message, all its fragments together."""
MAX_CONTROL = 125  # RFC 6455, section 5.5
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1000, 1002, 1007, 1009


class WebSocketError(OSError):
    """The connection cannot be made, has ended, or the other side breaks the protocol."""


class WebSocket:
    """An open connection. `receive` gives one message after the other; pings are answered on the way."""

    def __init__(self, connection: socket.socket, received: bytes = b""):
        self._connection = connection
        self._received = bytearray(received)
        self._begun = bytearray()
        self._kind: int | None = None

    @classmethod
    def connect(cls, url: str, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> WebSocket:
        """Open ws://host:port/path or wss://. Redirects are not followed. Raises WebSocketError."""
        parts = urlsplit(url)
        secure = parts.scheme == "wss"
        host = parts.hostname or ""
        try:
            connection = socket.create_connection((host, parts.port or (443 if secure else 80)), timeout)
            if secure:
                connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
        except OSError as error:
            raise WebSocketError(f"no connection: {error.strerror or error}") from error
        try:
            return cls(connection, _shake_hands(connection, parts.netloc, _target(parts), headers or {}, timeout))
        except BaseException:
            connection.close()
            raise

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message, str of a text and bytes of a binary one; None when none was complete after `timeout` s.

        Raises WebSocketError when the other side has closed or breaks the protocol; the connection is closed then.
        """
        until = time.monotonic() + timeout
        try:
            while True:
                frame = self._take_frame()
                if frame is not None:
                    message = self._message(*frame)
                    if message is not None:
                        return message
                    if time.monotonic() > until:  # nothing but pings
                        return None
                elif not self._read(until):
                    return None
        except OSError as error:
            self._connection.close()
            if isinstance(error, WebSocketError):
                raise
            raise WebSocketError(f"the connection broke: {error.strerror or error}") from error

    def close(self) -> None:
        """Say so and hang up. Raises nothing."""
        with contextlib.suppress(OSError):
            self._send(CLOSE, struct.pack("!H", NORMAL))
        self._connection.close()

    def _read(self, until: float) -> bool:
        """Wait for more bytes; False when the time is over."""
        pending = isinstance(self._connection, ssl.SSLSocket) and self._connection.pending()
        left = until - time.monotonic()
        if not pending and not select.select([self._connection], [], [], max(0.0, left))[0]:
            return False
        read = self._connection.recv(65536)
        if not read:
            raise WebSocketError("the server hung up")
        self._received += read
        return True

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """(final, opcode, payload) of the next frame, when all of it has been received. Section 5.2."""
        buffer = self._received
        if len(buffer) < 2:
            return None
        final, opcode, length, at = bool(buffer[0] & 0x80), buffer[0] & 0x0F, buffer[1] & 0x7F, 2
        if buffer[0] & 0x70:
            raise self._broken("reserved bits are set, and no extension was agreed on")
        if buffer[1] & 0x80:
            raise self._broken("a server's frame is masked")
        if opcode >= CLOSE and (length > MAX_CONTROL or not final):
            raise self._broken("a control frame is long or in pieces")
        if length >= 126:
            width = 2 if length == 126 else 8
            if len(buffer) < at + width:
                return None
            length, at = int.from_bytes(buffer[at : at + width], "big"), at + width
        if length + len(self._begun) > MAX_MESSAGE:
            raise self._broken(f"a message has more than {MAX_MESSAGE} bytes", TOO_BIG)
        if len(buffer) < at + length:
            return None
        payload = bytes(buffer[at : at + length])
        del buffer[: at + length]
        return final, opcode, payload

    def _message(self, final: bool, opcode: int, payload: bytes) -> str | bytes | None:
        """The message that this frame completes, if it does; control frames are answered."""
        if opcode == PING:
            self._send(PONG, payload)
        elif opcode == CLOSE:
            with contextlib.suppress(OSError):
                self._send(CLOSE, payload[:2])
            raise WebSocketError("the server closed the connection")
        elif opcode in (CONTINUATION, TEXT, BINARY):
            if (opcode == CONTINUATION) == (self._kind is None):
                raise self._broken("fragments come out of order")
            self._kind = self._kind or opcode
            self._begun += payload
            if final:
                return self._joined()
        elif opcode != PONG:
            raise self._broken(f"opcode {opcode} has no meaning")
        return None

    def _joined(self) -> str | bytes:
        kind, whole = self._kind, bytes(self._begun)
        self._kind, self._begun = None, bytearray()
        if kind == BINARY:
            return whole
        try:
            return whole.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken("a text is not UTF-8", NOT_UTF8) from error

    def _broken(self, reason: str, status: int = PROTOCOL_ERROR) -> WebSocketError:
        """Tell the server why we hang up; the error to raise."""
        with contextlib.suppress(OSError):
            self._send(CLOSE, struct.pack("!H", status))
        return WebSocketError(f"the server breaks the websocket protocol: {reason}")

    def _send(self, opcode: int, payload: bytes) -> None:
        """One frame, masked as a client's must be. Ours are all short: section 5.3."""
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self._connection.sendall(struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + mask + masked)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _shake_hands(
    connection: socket.socket, host: str, target: str, headers: Mapping[str, str], timeout: float
) -> bytes:
    """The opening handshake, section 4.1; what was received beyond it."""
    key = base64.b64encode(os.urandom(16))
    fields = {
        "Host": host.rpartition("@")[2],
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key.decode(),
        "Sec-WebSocket-Version": "13",
        **headers,
    }
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    try:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        head, rest = _read_head(connection, time.monotonic() + timeout)
    except OSError as error:
        if isinstance(error, WebSocketError):
            raise
        raise WebSocketError(f"no answer to the handshake: {error.strerror or error}") from error
    status, _, block = head.partition("\r\n")
    answered = {}
    for line in block.split("\r\n"):
        name, _, value = line.partition(":")
        answered[name.strip().lower()] = value.strip()
    if status.split(" ")[1:2] != ["101"]:
        raise WebSocketError(f"the server does not open a websocket: {status[:80]}")
    accepted = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest()).decode()
    if answered.get("sec-websocket-accept") != accepted or answered.get("upgrade", "").lower() != "websocket":
        raise WebSocketError("the server's handshake is not one of a websocket")
    if answered.get("sec-websocket-extensions") or answered.get("sec-websocket-protocol"):
        raise WebSocketError("the server wants an extension or a subprotocol that was not offered")
    return rest


def _read_head(connection: socket.socket, until: float) -> tuple[str, bytes]:
    """The server's header lines, and what came after them."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > MAX_HEAD:
            raise WebSocketError(f"the server's handshake has more than {MAX_HEAD} bytes")
        left = until - time.monotonic()
        if left <= 0:
            raise WebSocketError("the server did not answer the handshake in time")
        connection.settimeout(left)
        read = connection.recv(4096)
        if not read:
            raise WebSocketError("the server hung up during the handshake")
        received += read
    connection.settimeout(30.0)
    return received[:end].decode("latin-1"), bytes(received[end + 4 :])
