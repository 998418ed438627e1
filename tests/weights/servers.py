"""Loopback servers for the tests of downloads: one plays a file host, one the Hugging Face hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO, TOKEN = "someone/cells", "hf_secret"  # of the hub that can be written to


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
                    "private": getattr(server, "is_private", False),
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


class WritableHub(Hub):
    """A hub that makes one repository, `server.repo`, and takes its files from whoever has `server.token`.

    `server.failures` gives the status of answers to paths that end so; `server.large` the suffixes of large files.
    """

    def do_GET(self):
        if self._is_failing():
            return None
        if self.server.repo is None:
            return self._send(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)
        return super().do_GET()

    def do_POST(self):
        body = self._body()
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path))
        if self._is_failing():
            return None
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer({"error": "Invalid token"}, 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self._answer({"warnings": [], "errors": []})
        if path == f"/api/models/{self.server.repo}/preupload/main":
            return self._answer({"files": [self._mode(each["path"]) for each in json.loads(body)["files"]]})
        if path == f"/{self.server.repo}.git/info/lfs/objects/batch":
            return self._answer({"objects": [self._place(each) for each in json.loads(body)["objects"]]})
        if path == f"/api/models/{self.server.repo}/commit/main":
            return self._commit([json.loads(line) for line in body.splitlines()])
        return self._answer({"error": "Not found"}, 404)

    def do_PUT(self):
        """Take a large file. The place is one of the storage's, which gets no token."""
        self.server.requests.append((self.command, self.path))
        body = self._body()
        assert "Authorization" not in self.headers and self.path == "/storage/" + hashlib.sha256(body).hexdigest()
        self.server.storage[hashlib.sha256(body).hexdigest()] = body
        self._answer({})

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if self.server.repo == name:
            return self._answer(
                {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409
            )
        self.server.repo = name
        self.server.is_private = asked.get("visibility") == "private" or asked.get("private", False)
        return self._answer({"url": f"{self.server.url}/{name}"})

    def _mode(self, name):
        return {
            "path": name,
            "uploadMode": "lfs" if name.endswith(self.server.large) else "regular",
            "shouldIgnore": False,
        }

    def _place(self, entry):
        return {**entry, "actions": {"upload": {"href": f"{self.server.url}/storage/{entry['oid']}"}}}

    def _commit(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.storage[value["oid"]]
        url = f"{self.server.url}/{self.server.repo}/commit/{self.commit}"
        return self._answer({"commitUrl": url, "commitOid": self.commit})

    def _body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _is_failing(self):
        path = self.path.split("?")[0]
        status = next((status for end, status in self.server.failures.items() if path.endswith(end)), None)
        if status is not None:
            self._answer({"error": "<b>secret of the server</b>"}, status)
        return status is not None

    def _answer(self, tree, status=200):
        self.send_any(json.dumps(tree).encode(), status)

    def send_any(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


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


@contextmanager
def serving_writable(monkeypatch):
    """Serve an empty hub, and tell huggingface_hub and m2f where it is, and its token."""
    settings = {"repo": None, "files": {}, "storage": {}, "cards": [], "failures": {}, "large": (".safetensors",)}
    with serving(WritableHub, token=TOKEN, **settings) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def without_hub(folder, monkeypatch):
    """Take away the token, the cache and the network switches of this machine, and huggingface_hub's pauses."""
    monkeypatch.setenv("M2F_HOME", str(folder / "home"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(folder / "no token"))
    for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Its storage has a protocol of its own. The oldest versions have no such switch.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    clock = types.SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
