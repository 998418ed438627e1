"""URIs: which are followed, and what is shown of them."""

from __future__ import annotations

import pytest

from m2f_cli.errors import DataError
from m2f_cli.storage import files


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("https://anna:secret@host:80/a.jpg?sig=1#top", "https://host:80/a.jpg"),
        ("https://anna:se/cret@host/a.jpg", "https://host/a.jpg"),
        ("https://host:80/a@b.jpg", "https://host:80/a@b.jpg"),
        ("https://host", "https://host"),
        ("s3://key:secret@bucket/a#1.jpg", "s3://bucket/a#1.jpg"),
        ("s3://bucket/a\x1b[31m\n.jpg", r"s3://bucket/a\x1b[31m\n.jpg"),
        ("C:\\photos\\a.jpg", "C:\\photos\\a.jpg"),
        ("photos/a?b.jpg", "photos/a?b.jpg"),
    ],
)
def test_messages_have_no_secrets_and_no_control_characters(uri, shown):
    assert files.shown(uri) == shown


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///etc/passwd", "address of a local file"),
        ("FILE:///etc/passwd", "address of a local file"),
        ("zip://a.jpg::file:///etc/x.zip", "scheme that is not read"),
        ("s3://bucket/a::file:///etc/passwd", "chains"),
        ("ftp://host/a.jpg", "scheme that is not read"),
        ("memory://a", "scheme that is not read"),
        ("s3://", "names no host or bucket"),
        ("https:///a.jpg", "names no host or bucket"),
        ("http://[1/a.jpg", "its host or port makes no sense"),
        ("http://host:99999/a.jpg", "its host or port makes no sense"),
        ("http://host/a\r\nX-Evil: 1", "control characters"),
        ("http://host/" + "a" * 9000, "too long"),
        ("s3://key:secret@bucket/a.jpg", "has credentials in it"),
    ],
)
def test_what_is_not_followed_is_one_sentence(uri, message):
    for action in (files.read, files.info, files.exists, files.remove, lambda uri: list(files.find(uri))):
        with pytest.raises(DataError, match=message) as caught:
            action(uri)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_is_a_file(tmp_path):
    place = str(tmp_path / "sub" / "a.bin")
    files.write(place, b"0123456789")
    assert files.read(place) == b"0123456789" and files.read(place, start=2, stop=4) == b"23"
    before = files.info(place)
    assert before.size == 10 and list(files.find(str(tmp_path))) == [place]
    files.write(place, tmp_path / "sub" / "a.bin")
    with pytest.raises(DataError, match="more than 5 bytes"):
        files.read(place, limit=5)
    files.write(place, b"012345678")
    with pytest.raises(DataError, match="changed: its size was 10"):
        files.read(place, expected=before)
    files.remove(place)
    files.remove(place)
    assert not files.exists(place)
    for odd in ("gone", "a\0b"):
        with pytest.raises(DataError):
            files.read(str(tmp_path / odd))
