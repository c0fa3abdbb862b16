"""The websocket client against a server of sockets and bytes: RFC 6455, and servers that break it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from svd_stages.headless import websocket
from svd_stages.headless.websocket import WebSocket, WebSocketError

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", final: bool = True, first: int = 0, mask: int = 0) -> bytes:
    """A frame as a server sends it, in the shortest form; `first` and `mask` are added to its first two bytes."""
    size = len(payload)
    if size < 126:
        length = bytes([size | mask])
    else:
        length = struct.pack("!BH", 126, size) if size < 1 << 16 else struct.pack("!BQ", 127, size)
    return bytes([(0x80 if final else 0) | opcode | first]) + length + payload


def accepted(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def read_request(connection: socket.socket) -> dict[str, str]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    first, *lines = received.decode().split("\r\n\r\n")[0].split("\r\n")
    return {"": first, **{name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}}


def agree(connection: socket.socket) -> dict[str, str]:
    """The server's side of the handshake; the request's headers."""
    request = read_request(connection)
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accepted(request["sec-websocket-key"]).encode() + b"\r\n\r\n"
    )
    return request


def read_frame(connection: socket.socket) -> tuple[int, bytes]:
    """(opcode, payload) of a client's frame, which must be masked."""

    def exactly(count: int) -> bytes:
        received = b""
        while len(received) < count:
            more = connection.recv(count - len(received))
            assert more, "the client hung up"
            received += more
        return received

    first, second = exactly(2)
    assert second & 0x80, "a client's frame must be masked"
    mask, payload = exactly(4), exactly(second & 0x7F)
    return first & 0x0F, bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that handles one connection."""
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


def received_from(*chunks: bytes, pause: float = 0.0, count: int = 1) -> list[str | bytes | None]:
    """What the client makes of a server's bytes, sent in these chunks."""

    def serve(connection: socket.socket) -> None:
        agree(connection)
        for chunk in chunks:
            connection.sendall(chunk)
            time.sleep(pause)
        with contextlib.suppress(OSError, AssertionError):
            read_frame(connection)  # until the client hangs up

    with serving(serve) as url:
        client = WebSocket.connect(url)
        try:
            return [client.receive(5) for _ in range(count)]
        finally:
            client.close()


def test_the_handshake_is_that_of_the_standard():
    seen = {}
    with serving(lambda connection: seen.update(agree(connection))) as url:
        WebSocket.connect(url, {"Authorization": "Basic abc"}).close()
    assert seen[""] == "GET /ws?clientId=me HTTP/1.1"
    assert (seen["upgrade"], seen["connection"], seen["sec-websocket-version"]) == ("websocket", "Upgrade", "13")
    assert len(base64.b64decode(seen["sec-websocket-key"])) == 16
    assert seen["authorization"] == "Basic abc"
    assert accepted("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the standard's own example


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1_000_000])
def test_messages_of_every_length_come_through(size):
    text, binary = "ü" * (size // 2), bytes(size)
    assert received_from(frame(TEXT, text.encode()), frame(BINARY, binary), count=2) == [text, binary]


def test_a_message_may_come_byte_by_byte_in_fragments_with_a_ping_between():
    pieces = frame(TEXT, "h\u00e4".encode()[:2], final=False) + frame(PING, b"?") + frame(0, "\u00e4".encode()[1:])
    assert received_from(*(bytes([byte]) for byte in pieces), pause=0.001) == ["hä"]


def test_a_message_that_came_with_the_handshake_is_not_lost():
    def serve(connection: socket.socket) -> None:
        key = read_request(connection)["sec-websocket-key"]
        head = f"HTTP/1.1 101 ok\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accepted(key)}\r\n\r\n"
        connection.sendall(head.encode() + frame(TEXT, b"early"))
        read_frame(connection)

    with serving(serve) as url:
        client = WebSocket.connect(url)
        assert client.receive(5) == "early"
        client.close()


def test_pings_are_answered_with_what_they_hold_and_closing_is_said():
    told = []

    def serve(connection: socket.socket) -> None:
        agree(connection)
        connection.sendall(frame(PING, b"are you there") + frame(PONG, b"unasked") + frame(TEXT, b"yes"))
        told.append(read_frame(connection))
        told.append(read_frame(connection))

    with serving(serve) as url:
        client = WebSocket.connect(url)
        assert client.receive(5) == "yes"
        client.close()
    assert told == [(PONG, b"are you there"), (CLOSE, struct.pack("!H", 1000))]


def test_nothing_in_time_is_none_and_half_a_message_is_kept_for_later():
    whole, half = frame(TEXT, b"whole"), threading.Event()

    def serve(connection: socket.socket) -> None:
        agree(connection)
        connection.sendall(whole[:3])
        half.wait(10)
        connection.sendall(whole[3:])
        read_frame(connection)

    with serving(serve) as url:
        client = WebSocket.connect(url)
        assert client.receive(0.05) is None
        half.set()
        assert client.receive(5) == "whole"
        client.close()


HOSTILE = {
    "masked": (frame(TEXT, b"mask" + b"x", mask=0x80), "masked"),
    "reserved bits": (frame(TEXT, b"x", first=0x40), "reserved"),
    "unknown opcode": (frame(3, b"x"), "opcode 3"),
    "unknown control opcode": (frame(0xB), "opcode 11"),
    "continuation of nothing": (frame(0, b"x"), "out of order"),
    "text inside a text": (frame(TEXT, b"a", final=False) + frame(TEXT, b"b"), "out of order"),
    "long ping": (frame(PING, bytes(126)), "control frame"),
    "ping in pieces": (frame(PING, b"x", final=False), "control frame"),
    "not UTF-8": (frame(TEXT, b"\xff\xfe"), "UTF-8"),
    "half a surrogate pair": (frame(TEXT, b"\xed\xa0\x80"), "UTF-8"),
    "a length of 2**63": (b"\x82\x7f" + struct.pack("!Q", 1 << 63), "more than"),
    "closing": (frame(CLOSE, struct.pack("!H", 1001)), "closed"),
    "closing without a reason": (frame(CLOSE), "closed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_breaks_the_protocol_ends_the_connection(case):
    sent, words = HOSTILE[case]
    with pytest.raises(WebSocketError, match=words):
        received_from(sent)


def test_a_message_in_pieces_has_a_limit_too(monkeypatch):
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 1000)
    pieces = [frame(BINARY, bytes(500), final=False), *[frame(0, bytes(500), final=False)] * 2]
    with pytest.raises(WebSocketError, match="more than 1000 bytes"):
        received_from(*pieces)


def test_pings_without_end_do_not_keep_the_caller():
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        agree(connection)
        with contextlib.suppress(OSError):
            while not stop.is_set():
                connection.sendall(frame(PING))

    with serving(serve) as url:
        client = WebSocket.connect(url)
        began = time.monotonic()
        assert client.receive(0.2) is None
        assert time.monotonic() - began < 2
        stop.set()
        client.close()


def test_a_server_that_hangs_up_is_an_error():
    with serving(agree) as url:
        client = WebSocket.connect(url)
        with pytest.raises(WebSocketError, match=r"hung up|broke"):
            client.receive(5)


REFUSALS = {
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "302"),
    "not found": (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
    "no HTTP": (b"220 mail.example.org\r\n\r\n", "220"),
    "wrong key": (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: abc\r\n\r\n", "handshake"),
    "endless head": (b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 4000, "more than"),
    "hanging up": (b"HTTP/1.1 101 x\r\n", "hung up"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_handshake_is_an_error(case):
    answer, words = REFUSALS[case]

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        with contextlib.suppress(OSError):
            connection.sendall(answer)

    with serving(serve) as url, pytest.raises(WebSocketError, match=words):
        WebSocket.connect(url)


def test_an_extension_that_was_not_offered_is_refused():
    def serve(connection: socket.socket) -> None:
        key = read_request(connection)["sec-websocket-key"]
        head = f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accepted(key)}\r\n"
        connection.sendall(f"{head}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode())

    with serving(serve) as url, pytest.raises(WebSocketError, match="extension"):
        WebSocket.connect(url)


def test_a_silent_server_is_given_up_in_time():
    done = threading.Event()
    with serving(lambda connection: bool(done.wait(10)) and None) as url:
        with pytest.raises(WebSocketError, match="time"):
            WebSocket.connect(url, timeout=0.2)
        done.set()


def test_nobody_there_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(WebSocketError, match="no connection"):
        WebSocket.connect(f"ws://127.0.0.1:{port}/ws")
