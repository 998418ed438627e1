"""Objects of S3: moto's server for what works, a web server in its place for what fails."""

from __future__ import annotations

import socket

import pytest
from storage.door import refusing
from storage.s3_server import s3_server, settings
from storage.web_server import cut_off, hung_up, served, shorter_than_said

from m2f_cli.errors import DataError, MissingDependency
from m2f_cli.storage import files

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The token verysecretkey has expired</Message></Error>"


@pytest.fixture(scope="module")
def store():
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in settings(address).items():
            patch.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address}).mkdir("photos")
        yield address


@pytest.fixture(autouse=True)
def fresh_stores(monkeypatch):
    """Let no test use the connections of another one, which lead to another server."""
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra test)")
    pytest.importorskip("s3fs", reason="needs s3fs (extra test)")
    monkeypatch.setenv("M2F_STORAGE_RETRY", "2")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_objects_are_written_listed_read_and_removed(store, tmp_path):
    (tmp_path / "b").write_bytes(b"from a file")
    files.write("s3://photos/day/a#1.jpg", b"0123456789")
    files.write("s3://photos/day/b ü.jpg", tmp_path / "b")
    files.write("s3://photos/day/empty", b"")
    names = ["s3://photos/day/a#1.jpg", "s3://photos/day/b ü.jpg", "s3://photos/day/empty"]
    assert list(files.find("s3://photos/day")) == list(files.find("s3://photos/day/")) == names
    assert [files.read(name) for name in names] == [b"0123456789", b"from a file", b""]
    assert files.read(names[0], start=3, stop=5) == b"34"
    assert files.info(names[0]).size == 10
    for name in names:
        files.remove(name)
        files.remove(name)
        assert not files.exists(name)
    assert list(files.find("s3://photos/day")) == []


def test_an_object_that_changed_since_it_was_listed_is_refused(store):
    files.write("s3://photos/changing/a", b"0123456789")
    [(name, listed)] = files.listed("s3://photos/changing")
    assert files.read(name, expected=listed) == b"0123456789"
    files.write(name, b"9876543210")
    with pytest.raises(DataError, match="changed: its version"):
        files.read(name, expected=listed)
    files.write(name, b"longer than before")
    with pytest.raises(DataError, match="changed"):
        files.read(name, expected=listed)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: files.read("s3://photos/gone"), "photos/gone cannot be read: there is no such object"),
        (lambda: files.read("s3://elsewhere/a"), "elsewhere/a cannot be read: there is no such bucket"),
        (lambda: list(files.find("s3://elsewhere/a")), "elsewhere/a cannot be listed: there is no such bucket"),
        (lambda: files.write("s3://elsewhere/a", b""), "elsewhere/a cannot be written: there is no such bucket"),
        (lambda: files.read("s3://photos/large", limit=9), "more than 9 bytes"),
    ],
)
def test_what_is_not_there_is_one_sentence(store, action, message):
    files.write("s3://photos/large", b"0123456789")
    with pytest.raises(DataError, match=message):
        action()


@pytest.fixture
def pretender(monkeypatch):
    """A web server in the place of S3."""
    with served({"/photos/a": b"0123456789"}) as server:
        for name, value in settings(server.address).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize("fault", [503, 500, cut_off, hung_up, shorter_than_said])
def test_a_store_that_is_away_for_a_moment_is_asked_again(pretender, fault):
    pretender.faults["/photos/a"] = [fault, None]
    assert files.read("s3://photos/a") == b"0123456789"


def test_a_store_that_stays_away_is_one_sentence(pretender, monkeypatch):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.2")
    pretender.faults["/away/a"] = [503]
    with pytest.raises(DataError, match="s3://away/a cannot be read: the server says 503"):
        files.read("s3://away/a")


def expired(handler, content):
    handler.send_response(400)
    handler.send_header("Content-Length", str(len(EXPIRED)))
    handler.end_headers()
    handler.wfile.write(EXPIRED)


@pytest.mark.parametrize(
    ("fault", "message"), [(expired, "its credentials have expired"), (403, "permission is denied")]
)
def test_what_credentials_do_not_allow_is_said_without_them(pretender, fault, message):
    pretender.faults["/photos/a"] = [fault]
    with pytest.raises(DataError, match=message) as caught:
        files.read("s3://photos/a")
    assert "verysecretkey" not in str(caught.value) and "AKIDTEST" not in str(caught.value)


ACTIONS = {
    "read": lambda: files.read("s3://photos/a"),
    "listed": lambda: list(files.find("s3://photos/day/")),
    "written": lambda: files.write("s3://photos/a", b""),
    "removed": lambda: files.remove("s3://photos/a"),
}


@pytest.mark.parametrize("verb", ACTIONS)
@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "permission is denied. Ask its owner for access, or check the credentials."),
        (400, "ExpiredToken", "its credentials have expired or are not accepted. Renew them"),
    ],
)
def test_a_bucket_where_nothing_is_allowed(monkeypatch, verb, status, code, says):
    with refusing(status, code) as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DataError, match=rf"^s3://photos/\S+ cannot be {verb}: {says}") as caught:
            ACTIONS[verb]()
    assert "verysecretkey" not in str(caught.value)


@pytest.mark.parametrize("verb", ["listed", "written"])
def test_a_store_where_nobody_answers(monkeypatch, verb):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"http://127.0.0.1:{gone.getsockname()[1]}"
    for name, value in settings(address).items():
        monkeypatch.setenv(name, value)
    says = r"the connection is refused( \(\d+ times\))?\. Check the address and the network"
    with pytest.raises(DataError, match=rf"^s3://photos/\S+ cannot be {verb}: {says}"):
        ACTIONS[verb]()


def test_no_credentials_at_all(pretender, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match="no credentials were found"):
        files.read("s3://photos/a")


def test_a_store_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingDependency, match=r"An object store needs the package gcsfs.*m2f-cli\[storage\]"):
        files.read("gs://photos/a")
