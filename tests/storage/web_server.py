"""Web server on loopback whose next answers can be faults."""

from __future__ import annotations

import hashlib
import threading
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`. `server.faults[path]` is a list of faults of the next answers, the first one first.

    A fault is a function of the handler and the content, or the number of a status.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.requests.append((self.command, self.path, dict(self.headers)))
        content = server.files.get(self.path)
        faults = server.faults.get(self.path, [])
        fault = (faults.pop(0) if len(faults) > 1 or not server.repeats else faults[0]) if faults else None
        if callable(fault):
            return fault(self, content)
        if fault is not None:
            return self.send_error(fault)
        if content is None:
            return self.send_error(404)
        self.whole(content)

    def whole(self, content, *, length=None, cut=None):
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        body, status = content, 200
        if asked and self.server.ranges:
            start, _, last = asked.partition("-")
            if int(start) >= len(content):
                return self.send_error(416)
            body, status = content[int(start) : int(last) + 1 if last else None], 206
        self.send_response(status)
        if status == 206:
            end = int(start) + len(body) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None or length is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


def redirect(target):
    def answer(handler, content):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def busy(status, seconds):
    def answer(handler, content):
        handler.send_response(status)
        handler.send_header("Retry-After", str(seconds))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut_off(handler, content):
    handler.whole(content, cut=len(content) // 2)


def longer_than_said(handler, content):
    handler.whole(content, length=len(content) - 3)


def shorter_than_said(handler, content):
    handler.whole(content, length=len(content) + 3)


def hung_up(handler, content):
    handler.close_connection = True
    handler.connection.close()


def endless(handler, content):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    except OSError:
        handler.close_connection = True


def negative_chunk(handler, content):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"-5\r\nabc")
    handler.close_connection = True


@contextmanager
def served(files):
    """Yield a server of `files` (path to bytes): address, files, faults, requests; `repeats` keeps the last fault."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.faults, server.requests, server.ranges, server.repeats = dict(files), {}, [], True, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield types.SimpleNamespace(
            address=address, files=server.files, faults=server.faults, requests=server.requests, server=server
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
