"""Test the websocket client against a server that sends raw bytes: RFC 6455, and violations of it."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from error_checks import raises
from svd_stages.headless.engines.remote import websocket
from svd_stages.headless.engines.remote.websocket import WebSocket, open_websocket
from websockets.http11 import Response
from websockets.server import ServerProtocol

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\n"


def frame(opcode: int, payload: bytes = b"", final: bool = True, first: int = 0, mask: int = 0) -> bytes:
    """A frame as a server sends it, in the shortest form; `first` and `mask` are added to its first two bytes."""
    size = len(payload)
    if size < 126:
        length = bytes([size | mask])
    else:
        length = struct.pack("!BH", 126, size) if size < 1 << 16 else struct.pack("!BQ", 127, size)
    return bytes([(0x80 if final else 0) | opcode | first]) + length + payload


def read_request(connection: socket.socket) -> tuple[ServerProtocol, Response]:
    """Read the client's handshake. Return the server's side of the protocol and an answer that accepts it."""
    protocol = ServerProtocol(logger=logging.Logger("server", logging.CRITICAL))  # the tests read the client's log
    protocol.receive_data(connection.recv(65536))
    (request,) = protocol.events_received()
    return protocol, protocol.accept(request)


def answer(connection: socket.socket, protocol: ServerProtocol, response: Response, more: bytes = b"") -> None:
    protocol.send_response(response)
    connection.sendall(b"".join(protocol.data_to_send()) + more)


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the address of a server that handles one connection with `serve`."""
    errors: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def handle() -> None:
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(10)
                    serve(connection)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=handle)
        thread.start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/ws?clientId=me"
        thread.join(10)
    assert not errors, errors


@contextlib.contextmanager
def connected(serve: Callable[[socket.socket], object]) -> Iterator[WebSocket]:
    """Yield a client of a server that accepts the handshake and then calls `serve`. Closes the client first."""

    def handle(connection: socket.socket) -> None:
        answer(connection, *read_request(connection))
        serve(connection)

    with serving(handle) as url, contextlib.closing(open_websocket(url)) as client:
        yield client


def received_from(*chunks: bytes, pause: float = 0.0, count: int = 1) -> list[str | bytes | None]:
    """Return the messages that the client receives from a server that sends these chunks."""

    def serve(connection: socket.socket) -> None:
        for chunk in chunks:
            connection.sendall(chunk)
            time.sleep(pause)
        with contextlib.suppress(OSError):
            connection.recv(65536)  # until the client closes

    with connected(serve) as client:
        return [client.receive(5) for _ in range(count)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1_000_000])
def test_messages_of_every_length_are_received(size):
    text, binary = "ü" * (size // 2), bytes(size)
    assert received_from(frame(TEXT, text.encode()), frame(BINARY, binary), count=2) == [text, binary]


def test_a_fragmented_message_with_a_ping_between_is_received_byte_by_byte():
    fragments = frame(TEXT, "h\u00e4".encode()[:2], final=False) + frame(PING, b"?") + frame(0, "\u00e4".encode()[1:])
    assert received_from(*(bytes([byte]) for byte in fragments), pause=0.001) == ["hä"]


def test_a_message_sent_with_the_handshake_is_received():
    def serve(connection: socket.socket) -> None:
        answer(connection, *read_request(connection), frame(TEXT, b"early"))
        connection.recv(65536)

    with serving(serve) as url, contextlib.closing(open_websocket(url)) as client:
        assert client.receive(5) == "early"


def test_a_ping_is_answered_with_its_content_and_closing_sends_a_close_frame():
    frames = []

    def serve(connection: socket.socket) -> None:
        protocol, response = read_request(connection)
        answer(connection, protocol, response, frame(PING, b"are you there") + frame(PONG, b"unasked"))
        connection.sendall(frame(TEXT, b"yes"))
        while len(frames) < 2:
            protocol.receive_data(connection.recv(65536))
            frames.extend((frame.opcode, frame.data) for frame in protocol.events_received())

    with serving(serve) as url, contextlib.closing(open_websocket(url)) as client:
        assert client.receive(5) == "yes"
    assert frames == [(PONG, b"are you there"), (CLOSE, struct.pack("!H", 1000))]


def test_a_timeout_returns_none_and_keeps_half_a_message():
    message, proceed = frame(TEXT, b"whole"), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(message[:3])
        proceed.wait(10)
        connection.sendall(message[3:])
        connection.recv(65536)

    with connected(serve) as client:
        assert client.receive(0.05) is None
        proceed.set()
        assert client.receive(5) == "whole"


HOSTILE = {
    "masked": (frame(TEXT, b"mask" + b"x", mask=0x80), 1002),
    "reserved bits": (frame(TEXT, b"x", first=0x40), 1002),
    "unknown opcode": (frame(3, b"x"), 1002),
    "unknown control opcode": (frame(0xB), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "text inside a text": (frame(TEXT, b"a", final=False) + frame(TEXT, b"b"), 1002),
    "long ping": (frame(PING, bytes(126)), 1002),
    "ping in fragments": (frame(PING, b"x", final=False), 1002),
    "not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "half a surrogate pair": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a length of 2**63": (b"\x82\x7f" + struct.pack("!Q", 1 << 63), 1009),
    "closing": (frame(CLOSE, struct.pack("!H", 1001)), 1001),
    "closing without a reason": (frame(CLOSE), 1005),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_protocol_violation_closes_the_connection(case):
    sent, code = HOSTILE[case]
    with raises(ConnectionError) as error:
        received_from(sent)
    close = error.value.__cause__
    assert code in (close.rcvd and close.rcvd.code, close.sent and close.sent.code)


def test_a_fragmented_message_has_a_size_limit(monkeypatch):
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 1000)
    fragments = [frame(BINARY, bytes(500), final=False), *[frame(0, bytes(500), final=False)] * 2]
    with raises(ConnectionError, None, 1009, 1000):
        received_from(*fragments)


def test_empty_fragments_have_a_count_limit(monkeypatch):
    monkeypatch.setattr(websocket, "MAX_FRAGMENTS", 50)
    fragments = [frame(BINARY, final=False), *[frame(PONG) + frame(0, final=False)] * 50]
    with pytest.raises(ConnectionError):
        received_from(*fragments)


def test_a_server_that_violates_the_protocol_and_stays_is_left():
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(frame(3, b"x"))
        stop.wait(10)

    with connected(serve) as client:
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            client.receive(0.3)
        assert time.monotonic() - start < 8
        stop.set()


def test_pings_whose_pongs_are_never_read_do_not_block_close(monkeypatch):
    monkeypatch.setattr(websocket, "SOCKET_TIMEOUT", 0.5)
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        answer(connection, *read_request(connection))
        connection.settimeout(0.2)
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection.sendall(frame(PING, bytes(125)) * 1000)

    with serving(serve) as url:
        client = open_websocket(url)
        time.sleep(1)
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 30
        stop.set()


def test_endless_pings_do_not_block_receive():
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                connection.sendall(frame(PING))

    with connected(serve) as client:
        start = time.monotonic()
        assert client.receive(0.2) is None
        assert time.monotonic() - start < 8
        stop.set()


REFUSALS = {
    "redirect to no place": (b"HTTP/1.1 302 Found\r\nLocation: ws://[\r\n\r\n", "302"),
    "not found": (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
    "no HTTP": (b"220 mail.example.org\r\n\r\n", "InvalidMessage"),
    "wrong key": (f"HTTP/1.1 101 x\r\n{UPGRADE}Sec-WebSocket-Accept: abc\r\n\r\n".encode(), "Sec-WebSocket-Accept"),
    "no upgrade": (b"HTTP/1.1 101 x\r\n\r\n", "InvalidUpgrade"),
    "endless head": (b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 4000, "InvalidMessage"),
    "endless line": (b"HTTP/1.1 101 x\r\nX: " + b"y" * 16_000, "InvalidMessage"),
    "hanging up": (b"HTTP/1.1 101 x\r\n", "InvalidMessage"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_invalid_handshake_is_an_error(case):
    refusal, fact = REFUSALS[case]

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        with contextlib.suppress(OSError):
            connection.sendall(refusal)

    with serving(serve) as url, raises(ConnectionError, None, fact):
        open_websocket(url, timeout=5)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_a_redirect_is_not_followed_and_no_login_goes_there(status, scheme):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        place = f"{scheme}://127.0.0.1:{elsewhere.getsockname()[1]}/ws"
        redirect = f"HTTP/1.1 {status} x\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()

        def serve(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(redirect)

        with serving(serve) as url, raises(ConnectionError, None, status):
            open_websocket(url, {"Authorization": "Basic abc"}, timeout=5)
        elsewhere.settimeout(0)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_no_proxy_is_used_and_no_login_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda connection: answer(connection, *read_request(connection))) as url:
        open_websocket(url, {"Authorization": "Basic c2VjcmV0"}).close()
    assert "c2VjcmV0" not in caplog.text and "Authorization" not in caplog.text


@pytest.mark.parametrize(("field", "value"), [("Extensions", "permessage-deflate"), ("Protocol", "chat")])
def test_an_extension_that_was_not_offered_is_refused(field, value):
    def serve(connection: socket.socket) -> None:
        protocol, response = read_request(connection)
        response.headers[f"Sec-WebSocket-{field}"] = value
        answer(connection, protocol, response)

    with serving(serve) as url, raises(ConnectionError, None, "NegotiationError"):
        open_websocket(url)


@pytest.mark.parametrize("drop", [b"", b"x"])
def test_a_silent_server_is_a_timeout(drop):
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                connection.sendall(drop)

    with serving(serve) as url:
        with raises(ConnectionError) as error:
            open_websocket(url, timeout=0.2)
        done.set()
    assert isinstance(error.value.__cause__, TimeoutError)
