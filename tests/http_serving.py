"""Serve an image over HTTP on this machine."""

from __future__ import annotations

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serving(answer):
    """Serve over HTTP on this machine: `answer(handler)` writes one answer. Gives the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/photo.png"
    finally:
        server.shutdown()
        server.server_close()


def send(content: bytes, status: int = 200):
    def answer(handler):
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(content)

    return answer
