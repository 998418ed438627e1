"""Files of web servers: what is tried again, what is refused, and what messages do not tell."""

from __future__ import annotations

import pytest
from storage.web_server import (
    busy,
    cut_off,
    endless,
    hung_up,
    longer_than_said,
    negative_chunk,
    redirect,
    served,
    shorter_than_said,
)

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.storage import files

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.5")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served({"/a.jpg": CONTENT, "/empty": b""}) as server:
        yield server


def test_a_file_is_read_whole_and_in_part(web):
    uri = f"{web.address}/a.jpg"
    assert files.read(uri) == CONTENT
    assert files.read(uri, start=10, stop=20) == CONTENT[10:20]
    assert files.read(uri, start=2040, stop=9999) == CONTENT[2040:]
    assert files.read(f"{web.address}/empty") == b""
    assert files.info(uri).size == len(CONTENT)
    assert files.exists(uri) and not files.exists(f"{web.address}/gone")


def test_a_server_without_ranges_gives_the_same_part(web):
    web.server.ranges = False
    assert files.read(f"{web.address}/a.jpg", start=10, stop=20) == CONTENT[10:20]


@pytest.mark.parametrize("fault", [429, 500, 503, cut_off, hung_up, shorter_than_said, busy(503, 0)])
def test_what_passes_is_tried_again(web, fault):
    web.faults["/a.jpg"] = [fault, 502, None]
    assert files.read(f"{web.address}/a.jpg") == CONTENT
    assert len(web.requests) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [(500, "the server says 500"), (429, "the server says 429"), (cut_off, "connection was cut")],
)
def test_what_does_not_pass_in_time_is_one_sentence(web, fault, message):
    web.faults["/a.jpg"] = [fault]
    with pytest.raises(DataError, match=f"a.jpg cannot be read: .*{message}.*times") as caught:
        files.read(f"{web.address}/a.jpg")
    assert "M2F_STORAGE_RETRY" in caught.value.hint
    assert len(web.requests) > 1


def test_a_server_that_stayed_away_is_waited_for_less_and_less_until_it_answers(web):
    web.faults["/a.jpg"] = [500]
    counts = []
    for _ in range(8):
        before = len(web.requests)
        with pytest.raises(DataError):
            files.read(f"{web.address}/a.jpg")
        counts.append(len(web.requests) - before)
    assert counts[0] > 1 and counts[-3:] == [1, 1, 1]
    web.faults.clear()
    assert files.read(f"{web.address}/a.jpg") == CONTENT
    web.faults["/a.jpg"] = [500, None]
    assert files.read(f"{web.address}/a.jpg") == CONTENT


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(web):
    web.faults["/a.jpg"] = [busy(429, 100)]
    with pytest.raises(DataError, match="429"):
        files.read(f"{web.address}/a.jpg")
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (404, "there is no such object"),
        (410, "there is no such object"),
        (401, "permission is denied"),
        (403, "permission is denied"),
        (400, "the server says 400"),
        (redirect("file:///etc/passwd"), "redirects to an address that is not followed"),
        (redirect("ftp://127.0.0.1/a"), "where an address of http or https was expected"),
        (redirect("/a.jpg"), "redirects to an address that is not followed"),
        (negative_chunk, "makes no sense"),
    ],
)
def test_what_does_not_pass_is_asked_for_once(web, fault, message):
    web.faults["/a.jpg"] = [fault]
    with pytest.raises(DataError, match=message):
        files.read(f"{web.address}/a.jpg")
    assert len({path for _, path, _ in web.requests}) == 1


def test_a_body_without_end_is_left_at_the_limit(web):
    web.faults["/a.jpg"] = [endless]
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        files.read(f"{web.address}/a.jpg", limit=1_000_000)


def test_bytes_after_the_announced_end_are_left(web):
    web.faults["/a.jpg"] = [longer_than_said]
    assert files.read(f"{web.address}/a.jpg") == CONTENT[:-3]


def test_a_file_that_changed_since_it_was_listed_is_refused(web):
    uri = f"{web.address}/a.jpg"
    before = files.info(uri)
    assert files.read(uri, expected=before) == CONTENT
    web.files["/a.jpg"] = CONTENT[::-1]
    with pytest.raises(DataError, match="changed: its version"):
        files.read(uri, expected=before)
    web.files["/a.jpg"] = CONTENT + b"more"
    with pytest.raises(DataError, match="changed: its size was 2048"):
        files.read(uri, expected=before)


def test_a_login_goes_to_its_host_alone_and_is_never_shown(web):
    host = web.address.partition("://")[2]
    uri = f"http://anna:s3cr%40t@{host}/a.jpg?sig=hidden"
    web.files["/a.jpg?sig=hidden"] = CONTENT
    assert files.read(uri) == CONTENT
    assert web.requests[-1][2]["Authorization"] == "Basic YW5uYTpzM2NyQHQ="
    web.faults["/a.jpg?sig=hidden"] = [redirect("/b.jpg")]
    with pytest.raises(DataError) as caught:
        files.read(uri)
    assert "Authorization" not in web.requests[-1][2]
    for secret in ("anna", "s3cr", "sig", "hidden"):
        assert secret not in str(caught.value)


def test_letters_that_addresses_cannot_hold_are_encoded(web):
    web.files["/a%20b%C3%BC.jpg"] = CONTENT
    assert files.read(f"{web.address}/a bü.jpg") == CONTENT


def test_a_host_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0")
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.jpg cannot be read: the connection is refused"):
        files.read("http://127.0.0.1:9/a.jpg?token=x")


def test_the_web_is_neither_listed_nor_written(web):
    with pytest.raises(DataError, match="cannot be listed"):
        list(files.find(web.address))
    for action in (lambda: files.write(f"{web.address}/b", b""), lambda: files.remove(f"{web.address}/b")):
        with pytest.raises(DataError, match="cannot be written"):
            action()


def test_without_a_network_nothing_is_asked(web, monkeypatch):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    with pytest.raises(DataError, match="the network is switched off"):
        files.read(f"{web.address}/a.jpg")
    assert not web.requests


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_an_odd_number_of_seconds_is_refused(web, monkeypatch, value):
    monkeypatch.setenv("M2F_STORAGE_RETRY", value)
    with pytest.raises(ConfigError, match="M2F_STORAGE_RETRY"):
        files.read(f"{web.address}/a.jpg")
