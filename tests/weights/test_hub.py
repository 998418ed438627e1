"""Downloads, against servers on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import types
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from weights.models import CATEGORIES, assert_equal, config_of, network_of, shapes_of
from weights.servers import Answers, FileHost, Hub, serving

from m2f_cli import weights
from m2f_cli.config import presets as config
from m2f_cli.config.schema import WeightsSource
from m2f_cli.errors import WeightsError
from m2f_cli.runtime import web
from m2f_cli.weights import download, hub, resolve, write_huggingface

CONTENT = random.Random(0).randbytes(5_000_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def host():
    with serving(FileHost, files={"/a/model_final.pkl": CONTENT}, cuts=[], ranges=True, etags=True) as server:
        server.address = server.url + "/a/model_final.pkl"
        yield server


def left_behind(home):
    return sorted(p.name for p in (home / "weights").iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("prefix", [None, SHA256[:8], SHA256[:8].upper(), MD5[:6]])
def test_a_file_is_fetched_once(host, home, prefix):
    records = []
    path = download.download(host.address, hash_prefix=prefix, progress=records.append)
    assert path == home / "weights" / "model_final.pkl"
    assert path.read_bytes() == CONTENT
    assert left_behind(home) == ["model_final.pkl"]
    assert records[-1] == download.Download("model_final.pkl", len(CONTENT), len(CONTENT))
    assert [r.received for r in records] == sorted(r.received for r in records)
    assert download.download(host.address) == path
    assert len(host.requests) == 1


def test_a_cut_connection_is_taken_up_where_it_was_cut(host):
    host.cuts = [1_000_000, 2_500_000]
    assert download.download(host.address, hash_prefix=MD5[:6]).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in host.requests] == [None, "bytes=1000000-", "bytes=3500000-"]


def test_a_later_call_goes_on(host, home):
    host.cuts = [100_000] * download.ATTEMPTS
    with pytest.raises(WeightsError, match="connection was cut") as caught:
        download.download(host.address)
    assert str(home / "weights" / "model_final.pkl") in caught.value.hint
    assert not (home / "weights" / "model_final.pkl").exists()
    host.requests.clear()
    assert download.download(host.address, hash_prefix=MD5[:6]).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in host.requests] == [f"bytes={100_000 * download.ATTEMPTS}-"]


@pytest.mark.parametrize("setting", [{"ranges": False}, {"etags": False}])
def test_a_server_without_ranges_or_tags_starts_again(host, setting):
    vars(host).update(setting)
    host.cuts = [1_000_000]
    assert download.download(host.address, hash_prefix=MD5[:6]).read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_fetched_anew(host):
    host.files["/a/model_final.pkl"] = b"old" * 1_000_000
    host.cuts = [100_000] * download.ATTEMPTS
    with pytest.raises(WeightsError):
        download.download(host.address)
    host.files["/a/model_final.pkl"] = CONTENT
    assert download.download(host.address, hash_prefix=SHA256[:8]).read_bytes() == CONTENT


def test_a_part_that_is_complete_already_is_fetched_anew(host, home):
    """The process died between the last byte and the renaming: there is no rest to ask for."""
    part = home / "weights" / "model_final.pkl.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    tag = '"' + hashlib.sha1(CONTENT).hexdigest() + '"'
    part.with_name(part.name + ".json").write_text(json.dumps([host.address, tag]))
    assert download.download(host.address, hash_prefix=MD5[:6]).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in host.requests] == [f"bytes={len(CONTENT)}-", None]


@pytest.mark.parametrize("note", ["[" * 200_000, "5", "{", "[1]"])
def test_a_part_with_a_damaged_note_is_fetched_anew(host, home, note):
    part = home / "weights" / "model_final.pkl.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:100])
    part.with_name(part.name + ".json").write_text(note)
    assert download.download(host.address, hash_prefix=MD5[:6]).read_bytes() == CONTENT


def test_another_content_is_refused_and_deleted(host, home):
    with pytest.raises(WeightsError, match=f"({SHA256[:8]}|{MD5[:8]}).*begins with abcdef"):
        download.download(host.address, hash_prefix="abcdef")
    assert left_behind(home) == []


def test_a_file_that_is_not_there(host, home):
    address = host.url + "/b/model_final_94dc52.pkl"
    with pytest.raises(WeightsError, match="the server says 404") as caught:
        download.download(address)
    assert address in str(caught.value)
    assert f"put it at {home}/weights/model_final_94dc52.pkl" in caught.value.hint


def test_no_network_is_said():
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9/x\.pkl cannot be reached"):
        download.download("http://127.0.0.1:9/x.pkl")


@pytest.mark.parametrize("variable", ["M2F_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_and_takes_the_copy(host, home, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsError, match="switched off") as caught:
        download.download(host.address)
    assert host.requests == []
    (home / "weights").mkdir()
    (home / "weights" / "model_final.pkl").write_bytes(CONTENT)
    assert str(home / "weights" / "model_final.pkl") in caught.value.hint
    assert download.download(host.address).read_bytes() == CONTENT


def test_a_silent_server_is_given_up(host, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pkl"
        with pytest.raises(WeightsError, match="nothing came|timed out"):
            download.download(address)


def test_a_folder_that_cannot_be_written(host, home):
    (home / "weights").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="Cannot write") as caught:
        download.download(host.address)
    assert "M2F_HOME" in caught.value.hint


def test_many_at_once_fetch_it_once(host):
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: download.download(host.address, hash_prefix=MD5[:6]), range(6)))
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert len(host.requests) == 1


@pytest.mark.slow
def test_two_processes_fetch_it_once(host):
    script = "import sys; from m2f_cli.weights.download import download; download(sys.argv[1], hash_prefix=sys.argv[2])"
    command = [sys.executable, "-c", script, host.address, MD5[:6]]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait(60) == 0
    assert len(host.requests) == 1


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------

REPO = "someone/mask2former-swin-nano-cells"
LOAD = """
import sys
from m2f_cli import weights
print(weights.load(sys.argv[1]).source)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    settings = config_of(heads=4)
    network = network_of(settings)
    folder = tmp_path_factory.mktemp("repo") / "model"
    write_huggingface.write_folder(folder, network.state_dict(), settings, CATEGORIES)
    return folder


@pytest.fixture
def server(repository):
    files = {path.name: path.read_bytes() for path in repository.iterdir()}
    extra = {"README.md": b"# hello", "pytorch_model.bin": b"never fetched", "runs/log.txt": b"never fetched"}
    with serving(Hub, repo=REPO, files={**files, **extra}) as running:
        yield running


@pytest.fixture
def at(monkeypatch):
    """`at(endpoint)`: from now on the hub is there."""
    return lambda endpoint: monkeypatch.setenv("HF_ENDPOINT", endpoint)


def refused(ref: str) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(ref)
    return str(caught.value)


def test_a_process_loads_a_repository_and_says_nothing_else(server, home, fresh):
    """huggingface_hub reads the environment when it is imported."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    hub_settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = fresh(LOAD, REPO, environment={**kept, **hub_settings})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{REPO}\n", "")


def test_a_repository_is_fetched_once_and_then_read_without_a_network(server, at, repository, monkeypatch):
    at(server.url)
    records = []
    found = weights.load(REPO, progress=records.append)
    assert found.source == REPO
    assert list(found.class_names) == [c.name for c in CATEGORIES]
    assert (found.resize.short_edge, found.resize.max_edge) == (96, 160)
    assert records[-1].name == REPO
    assert records[-1].received >= (repository / "model.safetensors").stat().st_size
    fetched = {path.rpartition("/")[2] for method, path in server.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "preprocessor_config.json"}

    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights.load(REPO).tensors.keys() == found.tensors.keys()
    assert server.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    at("http://127.0.0.1:9")
    assert weights.load(REPO).tensors.keys() == found.tensors.keys()


def test_a_repository_has_the_weights_that_a_preset_states(server, at, repository, monkeypatch):
    """Also those of the local copy, and whether the preset or the repository is named."""
    at(server.url)
    model = weights.load(REPO).model
    right = hashlib.sha256((repository / "model.safetensors").read_bytes()).hexdigest()
    stated = {"format": "huggingface", "licence": "MIT", "hub": REPO}

    def preset(sha256):
        source = WeightsSource(**stated, sha256=sha256)
        settings = config.load("tiny").model_copy(update={"name": "cells", "weights": (source,), "model": model})
        monkeypatch.setattr(config, "preset_names", lambda: ("cells",))
        monkeypatch.setattr(config, "load", lambda name: settings)
        resolve.shipped_presets.cache_clear()

    try:
        preset(right)
        assert weights.load("cells").tensors.keys() == weights.load(REPO).tensors.keys()
        preset("0" * 64)
        for name in ("cells", REPO):
            assert "model.safetensors has another content than published" in refused(name)
    finally:
        resolve.shipped_presets.cache_clear()


def test_a_repository_that_is_not_there_is_told_from_a_network_that_is_not(server, at, monkeypatch):
    at(server.url)
    missing = "someone/mask2former-swin-nino-cells"
    assert f"no repository '{missing}'" in refused(missing)
    at("http://127.0.0.1:9")
    assert "cannot be fetched from http://127.0.0.1:9" in refused("someone/else")
    monkeypatch.setenv("M2F_OFFLINE", "1")
    message = refused("someone/else")
    assert "not in the local cache" in message and "switched off" in message


def test_a_repository_without_weights_is_refused(server, at):
    server.files = {"config.json": b"{}"}
    at(server.url)
    assert "holds no transformers model: it has no model.safetensors" in refused(REPO)


def test_which_files_are_wanted():
    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "README.md", "model.safetensors.index.json", *sharded, "pytorch_model.bin"]
    assert hub.wanted_files("x", names) == ["config.json", "model.safetensors.index.json", *sharded]
    assert hub.wanted_files("x", ["pytorch_model.bin", "config.json"]) == ["config.json", "pytorch_model.bin"]
    assert hub.wanted_files("x", ["pytorch_model.bin"], needs_config=False) == ["pytorch_model.bin"]


def test_the_tensors_of_a_repository_are_the_network(repository):
    network = network_of(config_of(heads=4))
    assert_equal(weights.load(repository).state_for(shapes_of(network)), network.state_dict())


def test_m2f_home_has_a_default(monkeypatch):
    monkeypatch.delenv("M2F_HOME")
    assert download.weights_dir() == Path.home() / ".cache" / "m2f" / "weights"


@pytest.mark.parametrize("states_hashes", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_another_content_than_the_hub_states_is_refused(server, home, at, name, states_hashes):
    content = server.files[name]
    server.states_hashes = states_hashes
    server.served = {name: content[:-1] + bytes([content[-1] ^ 1])}
    at(server.url)
    message = refused(REPO)
    assert f"resolve/{Hub.commit}/{name} arrived with another content than the hub states" in message
    assert "The copy was deleted" in message
    assert not list(home.rglob(name))
    server.served = {}
    assert weights.load(REPO).source == REPO


def test_another_size_than_the_hub_states_is_refused(server, at):
    server.served = {"config.json": server.files["config.json"] + b" "}
    at(server.url)
    assert "bytes are offered, where" in refused(REPO)


# --- answers that are none --------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
PAGE = HEAD + b"Content-Type: text/html; charset=utf-8\r\n\r\n<!doctype html><html>please log in</html>"


def json_answer(tree):
    return HEAD + b"Content-Type: application/json\r\n\r\n" + json.dumps(tree).encode()


def deeply(depth):
    return HEAD + b"\r\n" + b"[" * depth


LISTINGS = {
    "a page": PAGE,
    "an object": json_answer({}),
    "a list": json_answer([]),
    "a number": json_answer(3),
    "nothing": HEAD + b"Content-Length: 0\r\n\r\n",
    "null": json_answer(None),
    "siblings as text": json_answer({"sha": Hub.commit, "siblings": "config.json"}),
    "siblings as numbers": json_answer({"sha": Hub.commit, "siblings": [1, 2]}),
    "names as numbers": json_answer({"sha": Hub.commit, "siblings": [{"rfilename": 3}]}),
    "no siblings": json_answer({"sha": Hub.commit, "siblings": None}),
    "a commit that is a path": json_answer({"sha": "../../..", "siblings": []}),
    "a commit that is a number": json_answer({"sha": 3, "siblings": []}),
    "deep": deeply(100_000),
    "not text": HEAD + b"\r\n\xff\xfe\x00\x01",
    "no headers": b"hello\r\n\r\n",
    "a server error": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    "a length that is none": HEAD + b"Content-Length: x\r\n\r\n{}",
    "a redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "a redirect to data": b"HTTP/1.1 302 Found\r\nLocation: data:text/plain,x\r\nContent-Length: 0\r\n\r\n",
    "a redirect to no address": b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    "a redirect for ever": b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture
def odd():
    with serving(Answers, answer=lambda path: []) as server:
        yield server


@pytest.mark.parametrize("kind", LISTINGS)
def test_listings_that_are_none(odd, home, monkeypatch, kind):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    odd.answer = lambda path: [LISTINGS[kind]]
    with pytest.raises(WeightsError, match="not in the local cache and cannot be fetched from") as caught:
        hub.fetch_repo("someone/something")
    assert odd.url in str(caught.value)


def test_a_listing_without_end_is_cut_off(odd, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    monkeypatch.setattr(hub, "LARGEST_ANSWER", 1 << 16)

    def endless(path):
        yield HEAD + b"\r\n["
        while True:
            yield b"1," * 10_000

    odd.answer = endless
    with pytest.raises(WeightsError, match="more than 65,536 bytes came, where a list of files was expected"):
        hub.fetch_repo("someone/something")


@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + b"\r\n"])
def test_a_listing_that_drips_is_given_up(odd, monkeypatch, begin):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    stop = threading.Event()

    def dripping(path):
        yield begin
        while not stop.wait(0.05):
            yield b"1"

    odd.answer = dripping
    with pytest.raises(WeightsError, match="cannot be fetched"):
        hub.fetch_repo("someone/something")
    stop.set()


FILES = {
    "a page": (PAGE, "a web page came, where a file was expected"),
    "a length that is none": (HEAD + b"Content-Length: x\r\n\r\n12", "'x' is its length, where a number was expected"),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n12", "'-1' is its length"),
    "too large": (HEAD + b"Content-Length: 99999999999999\r\n\r\n12", "no file of weights has more than"),
    "a redirect to a file": (LISTINGS["a redirect to a file"], "Redirection to url .* is not allowed"),
    "a redirect for ever": (LISTINGS["a redirect for ever"], "redirect"),
    "no http": (b"hello\r\n\r\n", "could not be downloaded: the connection was cut"),
    "cut": (HEAD + b"Content-Length: 1000\r\n\r\n12", "could not be downloaded: the connection was cut"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_none(odd, home, kind):
    content, message = FILES[kind]
    odd.answer = lambda path: [content]
    with pytest.raises(WeightsError, match=message) as caught:
        download.download(f"{odd.url}/x.pkl")
    assert f"{odd.url}/x.pkl" in str(caught.value)
    assert not (home / "weights" / "x.pkl").exists()


def test_a_file_without_end_is_cut_off(odd, home, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)

    def endless(path):
        yield HEAD + b"\r\n"
        while True:
            yield bytes(1 << 16)

    odd.answer = endless
    with pytest.raises(WeightsError, match="bytes came, and none were announced"):
        download.download(f"{odd.url}/x.pkl")
    assert left_behind(home) == []


def test_a_file_that_does_not_fit_on_the_disk_is_not_begun(host, home, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=70_000_000))
    with pytest.raises(WeightsError, match=r"5,000,000 bytes do not fit on the disk of .*, where 70,000,000 are free"):
        download.download(host.address)
    assert left_behind(home) == []


def test_a_file_that_drips_is_given_up(odd, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    stop = threading.Event()

    def dripping(path):
        yield HEAD + b"Content-Length: 100000\r\n\r\n"
        while not stop.wait(0.02):
            yield b"1"

    odd.answer = dripping
    with pytest.raises(WeightsError, match="only [0-9]+ bytes came in 0 seconds, 2 times"):
        download.download(f"{odd.url}/x.pkl")
    stop.set()


def test_a_redirect_may_not_leave_https():
    handler = web.Redirects()
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(web.Refused, match="which nobody encrypts"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/x")
    assert handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://cdn.example.org/x") is not None
    assert handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://127.0.0.1:9/x") is not None


def test_a_token_goes_to_the_hub_alone_and_a_hash_stays_over_a_redirect(odd):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    with serving(Answers, answer=lambda path: [HEAD + b'ETag: "0"\r\nContent-Length: 7\r\n\r\n', content]) as elsewhere:
        odd.answer = lambda path: [
            b'HTTP/1.1 302 Found\r\nX-Linked-Size: 7\r\nContent-Length: 0\r\nX-Linked-Etag: "'
            + digest.encode()
            + b'"\r\nLocation: '
            + elsewhere.url.encode()
            + b"/cdn\r\n\r\n"
        ]
        with web.open_url(f"{odd.url}/x", {}, timeout=5, token="secret") as answer:
            assert answer.read() == content
            assert download.linked_digest(answer) == digest and download.linked_size(answer) == 7
    assert odd.requests[0][1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in elsewhere.requests[0][1]
