"""Loopback servers for the tests of downloads: one plays a file host, one the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileHost(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.cuts` says after how many bytes the next answers are cut off."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404, "Not Found")
        start = self._start(content)
        if start >= len(content):
            return self.send_error(416, "Range Not Satisfiable")
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etags:
            self.send_header("ETag", '"' + hashlib.sha1(content).hexdigest() + '"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _start(self, content):
        asked, only_if = self.headers.get("Range"), self.headers.get("If-Range")
        same = only_if == '"' + hashlib.sha1(content).hexdigest() + '"'
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked and same and self.server.ranges else 0

    def log_message(self, *_):
        pass


class Hub(BaseHTTPRequestHandler):
    """The endpoints that huggingface_hub calls for one repository of `server.files`, revision main."""

    protocol_version = "HTTP/1.1"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        path = self.path.split("?")[0]
        server.requests.append((self.command, path))
        api, files = f"/api/models/{server.repo}", f"/{server.repo}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{self.commit}"):
            return self._json(
                {
                    "id": server.repo,
                    "modelId": server.repo,
                    "sha": self.commit,
                    "private": False,
                    "siblings": [self._sibling(name, data) for name, data in server.files.items()],
                }
            )
        if path.startswith(f"{api}/tree/"):
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": self._oid(data)}
                    for name, data in server.files.items()
                ]
            )
        name = path.removeprefix(files).partition("/")[2]
        if path.startswith(files) and name in server.files:
            stated = {"ETag": f'"{self._oid(server.files[name])}"'}
            return self._send(getattr(server, "served", {}).get(name, server.files[name]), stated)
        return self._send(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    def _oid(self, data):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def _sibling(self, name, data):
        """Small files have git's hash, large ones (here: of tensors) their SHA-256, as on the hub."""
        entry = {"rfilename": name, "size": len(data), "blobId": self._oid(data)}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
        return entry if getattr(self.server, "states_hashes", True) else {"rfilename": name}

    def _json(self, tree):
        self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def _send(self, body, headers, status=200):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Answers(BaseHTTPRequestHandler):
    """Gives `server.answer(path)`: the pieces of an answer, written as they are, one by one."""

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        try:
            for piece in self.server.answer(self.path):
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass  # whoever asked has had enough

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler, **settings):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests = []
    for name, value in settings.items():
        setattr(server, name, value)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
