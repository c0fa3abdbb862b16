"""Receive events of a ComfyUI server with the library `websockets`. Import this module where it is used: it is slow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import DATA_OPCODES
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

MAX_MESSAGE = 64 * 1024 * 1024  # bytes, all fragments together
MAX_FRAGMENTS = 4096  # of a message; websockets 15 and 16 have no limit
SOCKET_TIMEOUT = 30.0  # seconds; websockets 15 and 16 also end a silence of that length, so the server is pinged
_NO_LOG = logging.Logger("websocket", logging.CRITICAL + 1)  # websockets logs the login at level DEBUG


def open_websocket(url: str, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> WebSocket:
    """Connect without proxies, redirects or compression. The response headers are limited to 1 MiB by websockets.

    Args:
        url: ws://host:port/path or wss://host:port/path, without a login.
        headers: Additional headers of the handshake request.
        timeout: Seconds for the TCP, TLS and websocket handshakes together.

    Raises:
        ConnectionError: The connection cannot be opened.
    """
    try:
        connection = connect(
            url, additional_headers=headers, user_agent_header=None, proxy=None, compression=None, open_timeout=timeout,
            ping_interval=20.0, ping_timeout=None, close_timeout=0.1, max_size=MAX_MESSAGE, max_queue=1, logger=_NO_LOG,
            create_connection=WebSocket,
        ).__enter__()  # fmt: skip
    except (OSError, WebSocketException) as error:
        raise ConnectionError(f"websocket handshake failed: {error!r:.200}") from error
    assert isinstance(connection, WebSocket)
    return connection


class WebSocket(ClientConnection):
    """An open websocket. `close` sends a close frame and hangs up."""

    fragments = 0

    def __init__(self, sock: Any, *args: Any, **options: Any):
        sock.settimeout(SOCKET_TIMEOUT)  # without it, a pong that the server does not read blocks `close` forever
        super().__init__(sock, *args, **options)

    def receive(self, timeout: float) -> str | bytes | None:
        """Return the next message: str (text), bytes (binary), or None if none is complete after `timeout` seconds.

        Raises:
            ConnectionError: The server closed the connection or violated the protocol. The connection is closed.
        """
        try:
            return self.recv(timeout)
        except (OSError, WebSocketException) as error:
            if isinstance(error, TimeoutError) and self.protocol.state is State.OPEN:
                return None
            self.close()
            raise ConnectionError(f"websocket closed: {error}") from error

    def handshake(self, *args: Any, **options: Any) -> None:
        """Send the request and read the response. Raise ConnectionError for a redirect, else `connect` follows it."""
        try:
            super().handshake(*args, **options)
        except InvalidStatus as error:
            raise ConnectionError(f"HTTP status {error.response.status_code}") from error

    def process_event(self, event: Any) -> None:
        """Queue a frame; close the socket when its message has too many fragments."""
        super().process_event(event)
        if getattr(event, "opcode", None) in DATA_OPCODES:
            self.fragments = 0 if event.fin else self.fragments + 1
            if self.fragments >= MAX_FRAGMENTS:
                self.close_socket()
