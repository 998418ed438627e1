"""Odd answers of a file host and of a hub on this machine. A mutant is a JSON file of what the server answers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.answers import CONTENT, answer, odd_answer, piece
from fuzz.checkpoints import huggingface_files
from fuzz.harness import Target
from fuzz.spoil import odd_value, spoil_json
from weights.servers import Answers, serving

from m2f_cli.weights import download, hub, huggingface

Mutants = Iterator[tuple[str, Path]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "somebody/model"
MOST_SENT = 64 << 20  # bytes of one server; its answers that do not end stop there
# Limits of the product while a mutant is read, so that what does not end is cut within seconds.
QUICK = {
    (download, "TIMEOUT"): 0.3,
    (hub, "TIMEOUT"): 0.3,
    (download, "WINDOW"): 0.3,
    (download, "ATTEMPTS"): 2,
    (download, "LEAST_RATE"): 10_000,
    (download, "LARGEST"): 4 << 20,
    (hub, "LARGEST_ANSWER"): 1 << 20,
}


# --- mutants ----------------------------------------------------------------------------------------------------------


def host_scripts(rng: random.Random, folder: Path) -> Mutants:
    """Scripts of a file host. Sometimes a cut answer comes first, so that the odd one answers to the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done, made, expected = odd_answer(rng, CONTENT)
        first = [answer(CONTENT, ETag='"x"')[0], piece(CONTENT[:20_000])]
        answers = [first, made] if rng.random() < 0.25 else [made]
        stated = rng.choice((None, None, hashlib.sha256(CONTENT).hexdigest()[:8], hashlib.md5(CONTENT).hexdigest()))
        path = folder / "host.json"
        path.write_text(json.dumps({"answers": {"": answers}, "hash": stated, "expected": expected}))
        yield f"{'after a cut, ' * (len(answers) - 1)}{done}", path


def hub_scripts(rng: random.Random, folder: Path) -> Mutants:
    """Scripts of a hub: an odd list of files, or an odd answer to one of its questions."""
    folder.mkdir(parents=True, exist_ok=True)
    files = huggingface_files("swin")
    while True:
        listing = _listing_of(files)
        answers = {f"/{REPO}/resolve/{COMMIT}/{name}": [answer(body)] for name, body in files.items()}
        place = f"/api/models/{REPO}"
        repo, way = REPO, rng.choice(("list", "list", "list", "answer", "file", "file", "name"))
        answers[place] = [answer(json.dumps(listing).encode(), Content_Type="application/json")]
        if way == "list":
            done, text = spoil_json(rng, listing, odd=_odd_entry)
            answers[place] = [answer(text, Content_Type="application/json")]
        elif way == "answer":
            done, made, _ = odd_answer(rng, json.dumps(listing).encode())
            answers[place] = [made]
        elif way == "file":
            place = rng.choice([each for each in answers if "resolve" in each])
            done, made, _ = odd_answer(rng, files[place.rsplit("/", 1)[-1]])
            answers[place] = [made]
        else:
            done = repo = rng.choice(
                (
                    "a/b..c",
                    "a/b--c",
                    "a/" + "b" * 200,
                    "a/b.git",
                    "-a/b",
                    "a/b/c",
                    "../x",
                    "a b/c",
                    "é/ü",
                    "a/b\n",
                    "a/..",
                )
            )
            answers[""] = answers[place]
        path = folder / "hub.json"
        path.write_text(json.dumps({"answers": answers, "repo": repo}))
        yield f"{way}: {done}", path


def _listing_of(files: dict[str, bytes]) -> dict[str, Any]:
    siblings = []
    for name, body in files.items():
        oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        large = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
        siblings.append(
            {"rfilename": name, "size": len(body), "blobId": oid, **({"lfs": large} if "safet" in name else {})}
        )
    return {"id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "siblings": siblings}


def _odd_entry(rng: random.Random, before: Any = None) -> Any:
    names = (
        "../x",
        "/etc/passwd",
        "model-1.safetensors",
        "model.safetensors.index.json",
        "config.json/x",
        "é",
        "0" * 64,
        "f" * 40,
    )
    return rng.choice(names) if rng.random() < 0.3 else odd_value(rng, before)


# --- readers ----------------------------------------------------------------------------------------------------------


class Script:
    """Answers of a script, which counts what it has sent."""

    def __init__(self, answers: dict[str, list[list[dict[str, Any]]]]):
        self.answers, self.sent, self.asked = answers, 0, dict.fromkeys(answers, 0)

    def __call__(self, path: str) -> Iterator[bytes]:
        key = next((each for each in (path.split("?")[0], "") if each in self.answers), None)
        if key is None:
            yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            return
        number = min(self.asked[key], len(self.answers[key]) - 1)
        self.asked[key] += 1
        for part in self.answers[key][number]:
            text = part["text"].encode("latin1")
            for _ in range(part["times"]):
                if self.sent > MOST_SENT:
                    return
                time.sleep(part["wait"])
                self.sent += len(text)
                yield text


def quick(path: Path) -> None:
    """Set short limits and a home of its own. Mutants are read in a process of their own, so nothing is put back."""
    for (module, name), value in QUICK.items():
        setattr(module, name, value)
    for name in (
        "M2F_OFFLINE",
        "HF_HUB_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
    ):
        os.environ.pop(name, None)
    home = path.parent / f"home-{random.SystemRandom().randrange(10**12)}"
    os.environ["M2F_HOME"] = str(home)


def read_host(path: Path) -> object:
    """Fetch a file from the host of a script."""
    quick(path)
    script = json.loads(path.read_text())
    play = Script(script["answers"])
    with serving(Answers, answer=play) as server:
        try:
            fetched = download.download(f"{server.url}/a/model.pkl", hash_prefix=script["hash"])
        finally:
            _check(play)
        content = fetched.read_bytes()
    right = content == CONTENT
    if not right and (script["hash"] or script["expected"] in ("right", "wrong") or not content):
        raise AssertionError(f"{len(content)} other bytes were taken for the file")
    return right


def read_hub(path: Path) -> object:
    """Fetch a repository from the hub of a script, and read what came."""
    quick(path)
    script = json.loads(path.read_text())
    play = Script(script["answers"])
    with serving(Answers, answer=play) as server:
        os.environ["HF_ENDPOINT"] = server.url
        try:
            folder = hub.fetch_repo(script["repo"])
        finally:
            _check(play)
    return huggingface.read_folder(folder, script["repo"])


def _check(play: Script) -> None:
    if play.sent > MOST_SENT:
        raise AssertionError(f"more than {MOST_SENT:,} bytes were taken from a server")


TARGETS = (
    Target("file host", host_scripts, read_host, items="http://127.0.0.1:", share=0.15),
    Target("hub", hub_scripts, read_hub, items=r"http://127\.0\.0\.1:|repository|somebody", share=0.06),
)
