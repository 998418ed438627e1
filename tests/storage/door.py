"""Doors before a store on loopback: one that a test can shut for a while, and some where nobody may write, or read."""

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


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with `server.status` and an error of S3 that has a secret in its message."""

    protocol_version = "HTTP/1.1"

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<Error><Code>{self.server.code}</Code><Message>of verysecretkey</Message></Error>".encode()
        self.answer(self.server.status, {}, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse

    def answer(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "server", "date"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


class WithoutWriting(Refusing):
    """Refuses to write, and leads all else to `server.target`."""

    def do_GET(self):
        inner = http.client.HTTPConnection(self.server.target.removeprefix("http://"))
        inner.request(self.command, self.path, headers=dict(self.headers))
        found = inner.getresponse()
        self.answer(found.status, dict(found.headers), found.read())
        inner.close()

    do_HEAD = do_GET


def refusing(status, code):
    """Yield the address of a store that refuses everything."""
    return _serving(Refusing, None, status, code)


def without_writing(address, status, code):
    """Yield the address of a store that refuses to write, and leads all else to the store at `address`."""
    return _serving(WithoutWriting, address, status, code)


@contextlib.contextmanager
def _serving(handler, target, status, code):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.target, server.status, server.code = target, status, code
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
