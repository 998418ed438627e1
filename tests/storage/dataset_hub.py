"""Loopback hub with one data set, o/n: what `datasets` and the hub's file system ask for."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class DatasetHub(BaseHTTPRequestHandler):
    """Serves `server.files` as the revision main of the data set."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, files = self.path.partition("?")[0], self.server.files
        api = "/api/datasets/o/n"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            return self.send({"id": "o/n", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        if path.startswith(f"{api}/tree/"):
            return self.send(self.listed(path.partition("/tree/")[2].partition("/")[2]))
        name = path.removeprefix("/datasets/o/n/resolve/").partition("/")[2]
        if path.startswith("/datasets/o/n/resolve/") and name in files:
            return self.send(files[name], {"ETag": f'"{self.entry(name)["oid"]}"'})
        self.send({"error": "not here"}, {"X-Error-Code": "EntryNotFound"}, 404)

    def listed(self, folder):
        start = f"{folder}/" if folder else ""
        inside = [name for name in self.server.files if name.startswith(start)]
        folders = {name[len(start) :].partition("/")[0] for name in inside if "/" in name[len(start) :]}
        own = [self.entry(name) for name in inside if "/" not in name[len(start) :]]
        return own + [{"type": "directory", "path": start + each, "oid": "0" * 40} for each in sorted(folders)]

    def entry(self, name):
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send(self, answer, headers=(), status=200):
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        stated = dict(headers)
        if asked and status == 200:
            first, _, last = asked.partition("-")
            stated["Content-Range"] = f"bytes {first}-{last or len(body) - 1}/{len(body)}"
            body, status = body[int(first) : int(last or len(body) - 1) + 1], 206
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **stated}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def dataset_hub(files):
    """Yield the address of a hub with a data set o/n of `files` (name to bytes)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), DatasetHub)
    server.files = files
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
