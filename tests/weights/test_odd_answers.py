"""Answers of servers that no file comes with: refused in one sentence, within limits of bytes and seconds."""

from __future__ import annotations

import pytest
from weights.servers import Answers, serving

from m2f_cli.errors import WeightsError
from m2f_cli.runtime import web
from m2f_cli.weights import download, hub

CONTENT = bytes(range(1, 101))
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 100\r\n\r\n" + CONTENT


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_HOME", str(tmp_path))
    for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def odd():
    with serving(Answers, answer=lambda path: []) as server:
        yield server


def refused(odd, home, message):
    """The download of x.pkl fails with this message, and nothing of it stays."""
    with pytest.raises(WeightsError, match=message) as caught:
        download.download(f"{odd.url}/x.pkl")
    assert f"{odd.url}/x.pkl" in str(caught.value)
    assert [path.name for path in (home / "weights").iterdir() if path.suffix != ".lock"] == []


def test_the_body_of_a_redirect_is_not_read(odd):
    """urllib reads it to its end, and this one has none."""

    def answer(path):
        if path == "/y":
            yield WHOLE
            return
        yield b"HTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n"
        while True:
            yield bytes(1 << 16)

    odd.answer = answer
    assert download.download(f"{odd.url}/x.pkl").read_bytes() == CONTENT


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted", "203 Other", "204 No Content", "205 Reset Content"])
def test_a_success_that_is_not_200_is_refused(odd, home, status):
    odd.answer = lambda path: [f"HTTP/1.1 {status}\r\nContent-Length: 100\r\n\r\n".encode(), CONTENT]
    refused(odd, home, f"the server says {status[:3]}, where 200 was expected")


def test_a_part_that_nobody_asked_for_is_refused(odd, home):
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 50\r\nContent-Range: bytes 0-49/100\r\n\r\n"
    odd.answer = lambda path: [head + CONTENT[:50]]
    refused(odd, home, r"a part of the file came \('bytes 0-49/100'\) that was not asked for")


def test_another_part_than_was_asked_for_is_refused(odd, home):
    """The connection was cut after 40 bytes; the answer about the rest begins elsewhere."""
    first = OK + b'ETag: "x"\r\nContent-Length: 100\r\n\r\n' + CONTENT[:40]
    other = b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Length: 60\r\nContent-Range: bytes 0-59/100\r\n\r\n'
    answers = [first, other + CONTENT[:60]]
    odd.answer = lambda path: [answers.pop(0)]
    refused(odd, home, "that was not asked for")


@pytest.mark.parametrize(
    ("body", "what"),
    [(b"", "an empty file"), (b"\n<!DOCTYPE html><p>Log in.", "a web page"), (b" \n", "an empty file")],
)
def test_what_is_no_file_of_weights_does_not_stay_under_its_name(odd, home, body, what):
    """Every later call would find it there."""
    odd.answer = lambda path: [OK + b"Content-Length: %d\r\n\r\n" % len(body) + body]
    refused(odd, home, f"{what} came, where weights were expected")
    odd.answer = lambda path: [WHOLE]
    assert download.download(f"{odd.url}/x.pkl").read_bytes() == CONTENT


def test_lines_between_the_bytes_that_never_end_are_given_up(odd, monkeypatch):
    """Chunks may be followed by header lines, which http.client reads as long as they come."""
    monkeypatch.setattr(download, "WINDOW", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 2)

    def answer(path):
        yield OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + CONTENT + b"\r\n0\r\n"
        while True:
            yield b"X: y\r\n"

    odd.answer = answer
    with pytest.raises(WeightsError, match="the answer was not whole after 0 seconds, 2 times"):
        download.download(f"{odd.url}/x.pkl")


def test_a_file_that_takes_longer_than_a_day_is_given_up(odd, monkeypatch):
    """It comes faster than the least rate, so that only the limit of the whole can end it."""
    for name, value in {"WINDOW": 0.05, "LEAST_RATE": 0, "LONGEST": 0.0, "ATTEMPTS": 2}.items():
        monkeypatch.setattr(download, name, value)

    def answer(path):
        yield OK + b"Content-Length: 1000000000\r\n\r\n"
        while True:
            yield b"x"

    odd.answer = answer
    with pytest.raises(WeightsError, match="it is not whole after 0 hours, 2 times"):
        download.download(f"{odd.url}/x.pkl")


def test_an_answer_of_the_hub_that_is_not_200_is_refused(odd, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    odd.answer = lambda path: [b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"]
    with pytest.raises(WeightsError, match="the server says 202, where 200 was expected"):
        hub.fetch_repo("someone/something")


@pytest.mark.parametrize("name", ["a/b..c", "a/b--c", "a/b.git", "a/" + "b" * 200, "../x"])
def test_names_that_no_repository_has_are_not_asked_for(odd, monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    with pytest.raises(WeightsError, match="The hub can have no repository"):
        hub.fetch_repo(name)
    assert odd.requests == []


def test_a_connection_that_is_cut_says_so(odd):
    def answer(path):
        yield OK + b"Content-Length: 100000\r\n\r\n"
        while True:
            yield b"x"

    odd.answer = answer
    with (
        pytest.raises(TimeoutError, match="not whole after 0 seconds"),
        web.open_url(odd.url, {}, timeout=5) as got,
        web.in_time(got, 0.1),
    ):
        got.read()


def test_a_chunk_of_a_negative_size_is_refused(odd, home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", odd.url)
    odd.answer = lambda path: [OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + CONTENT]
    with pytest.raises(WeightsError, match="cannot be fetched from"):
        hub.fetch_repo("someone/something")
    with pytest.raises(WeightsError, match=f"{odd.url}/x.pkl could not be downloaded|{odd.url}/x.pkl cannot be"):
        download.download(f"{odd.url}/x.pkl")
    assert not (home / "weights" / "x.pkl").exists()
