"""Text, JSON and YAML of strangers: read, or refused in one sentence."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.runtime.documents import parse_json, parse_yaml, read_json, read_lines, read_text, read_yaml


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\rfox\xc2\x85x\n")
    assert read_text(tmp_path / "x.txt") == "cat\ndog\nfox\x85x\n"
    assert read_lines(tmp_path / "x.txt") == ["cat", "dog", "fox\x85x"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "gbk", "latin-1"])
def test_text_in_another_encoding_says_what_to_do(tmp_path, encoding):
    (tmp_path / "x.txt").write_bytes("été 猫"[: 3 if encoding == "latin-1" else None].encode(encoding))
    with pytest.raises(DataError, match="UTF-8.*Save it as UTF-8"):
        read_text(tmp_path / "x.txt")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1" + b"0" * 10_000 + b"]", b'{"a": ', b"\xff\xfe\xfd"])
def test_unusable_json_is_one_sentence(content):
    with pytest.raises(DataError, match="^x.json is not"):
        parse_json(content, "x.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_may_be_in_any_unicode(encoding):
    assert parse_json('{"é": 1}'.encode(encoding), "x.json") == {"é": 1}


def bomb(depth: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "a: &a [*a]",
        "[" * 5000,
        "a: !!python/object/apply:os.system [ls]",
        "a: 2024-02-31",
        "a: [",
        "? {}\n: 1",
        "a: !!bool foo",
        'a: !!float ""',
        "a: 0x" + "f" * 9000,
        "a: " + "1:" * 50_000 + "1",
        "a: 1" + "0" * 200,
        f"{(2**61 - 1) * 7}0: x",
    ],
    ids=[
        "aliases",
        "cycle",
        "depth",
        "tag",
        "date",
        "cut",
        "key",
        "bool",
        "float",
        "hex",
        "sexagesimal",
        "long",
        "big",
    ],
)
def test_unusable_yaml_is_one_sentence(text):
    with pytest.raises(ConfigError, match="^x.yaml "):
        parse_yaml(text, "x.yaml")


def test_ordinary_aliases_work():
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "x")["d"] == {"b": 1, "e": 2}


def test_names_are_text_as_written():
    text = "names: [no, 007, null, 2024-01-01, cat]\nmore: {names: {0: yes}}\nnc: 5\nclasses: [{name: on, isthing: no}]"
    tree = parse_yaml(text, "x", texts=("names", "name"))
    assert tree["names"] == ["no", "007", "null", "2024-01-01", "cat"]
    assert tree["more"]["names"] == {0: "yes"}
    assert tree["nc"] == 5
    assert tree["classes"] == [{"name": "on", "isthing": False}]


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    for read in (read_text, read_json, lambda path: read_yaml(path, error=DataError)):
        with pytest.raises(DataError, match="x cannot be read: it is a named pipe and no file"):
            read(tmp_path / "x")


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="what a shell gives for <(command)")
def test_a_pipe_that_somebody_writes_to_is_waited_for():
    end, start = os.pipe()
    writer = threading.Timer(0.3, lambda: (os.write(start, b'{"a": 1}'), os.close(start)))
    writer.start()
    assert read_json(Path(f"/dev/fd/{end}")) == {"a": 1}
    writer.join()
    os.close(end)


@pytest.mark.skipif(os.name != "posix", reason="devices")
@pytest.mark.parametrize("read", [read_text, read_json, read_yaml, read_lines])
def test_devices_are_not_read(tmp_path, read):
    (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(M2FError, match="x cannot be read: it is a device and no file"):
        read(tmp_path / "x")


def test_yaml_with_half_a_character_is_one_sentence():
    for text in ("a: \ud800", "a: \x00"):
        with pytest.raises(ConfigError, match="--set is not valid YAML"):
            parse_yaml(text, "--set")
