"""Doors before a store on loopback: one that a test can shut for a while, and one where nobody may write."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Door:
    """Loopback port that leads to another one, and refuses everybody while it is shut."""

    def __init__(self, address):
        self.target = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.is_shut = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                guest, _ = self.listener.accept()
            except OSError:
                return
            if self.is_shut:
                guest.close()
                continue
            inner = socket.create_connection(self.target)
            for each in (guest, inner):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.open += [guest, inner]
            for one, other in ((guest, inner), (inner, guest)):
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    def carry(self, one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass
        finally:
            for each in (one, other):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # wakes the thread of the other direction, which `close` does not
                each.close()

    def shut(self):
        """Refuse everybody, and cut what is going on."""
        self.is_shut = True
        for each in self.open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.open = []


@contextlib.contextmanager
def without_writing(address, status, code):
    """Yield the address of a store that answers every writing with an error, and leads all else to another store."""
    body = f"<Error><Code>{code}</Code><Message>of verysecretkey</Message></Error>".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(status, {}, body)

        def do_GET(self):
            inner = http.client.HTTPConnection(address.removeprefix("http://"))
            inner.request(self.command, self.path, headers=dict(self.headers))
            found = inner.getresponse()
            self.answer(found.status, dict(found.headers), found.read())
            inner.close()

        do_HEAD = do_GET

        def answer(self, status, headers, content):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "server", "date"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
