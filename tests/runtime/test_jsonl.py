"""Files of JSON lines: what a kill, a full disk or a link does to them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.runtime import jsonl
from m2f_cli.runtime.jsonl import JsonLines, parse, whole_bytes, whole_lines


def values(path):
    return [parse(line) for _, line in whole_lines(path)]


def test_lines_are_on_their_way_when_append_returns(tmp_path):
    path = tmp_path / "deep" / "log"
    with JsonLines(path) as lines:
        assert lines.size == 0
        starts = [lines.append(value) for value in ({"a": 1}, ["é", "\u2028"], "x\ny")]
        assert values(path) == [{"a": 1}, ["é", "\u2028"], "x\ny"]
        assert lines.size == path.stat().st_size
    assert starts == [start for start, _ in whole_lines(path)]


def test_half_a_line_is_left_out_and_cut_off_when_the_file_is_gone_on_with(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"a":')
    assert values(path) == [{"a": 1}] and whole_bytes(path) == 9
    with JsonLines(path) as lines:
        assert lines.append(2) == 9
    assert path.read_bytes() == b'{"a": 1}\n2\n'


@pytest.mark.parametrize("content", [b"", b'{"a":', b"x" * 200_000])
def test_a_file_without_a_whole_line_is_empty(tmp_path, content):
    path = tmp_path / "log"
    path.write_bytes(content)
    assert whole_bytes(path) == 0 and not list(whole_lines(path))
    with JsonLines(path) as lines:
        assert lines.size == 0


def test_a_long_half_line_after_whole_ones(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1\n22\n" + b"x" * 200_000)
    assert whole_bytes(path) == 5


def test_fresh_files_forget_and_compact_ones_have_no_spaces(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"1\n")
    with JsonLines(path, fresh=True, compact=True) as lines:
        lines.append([1, 2])
    assert path.read_bytes() == b"[1,2]\n"
    with JsonLines(path) as lines:
        lines.append([1, 2])
    assert path.read_bytes().endswith(b"\n[1, 2]\n")


@pytest.mark.parametrize("compact", [False, True])
def test_objects_have_a_checksum_that_json_readers_pass_over(tmp_path, compact):
    path = tmp_path / "log"
    with JsonLines(path, compact=compact) as lines:
        lines.append({"a": "é", "b": [1, 2]})
    assert values(path) == [{"a": "é", "b": [1, 2]}]
    assert list(json.loads(path.read_bytes())) == ["a", "b", "crc32"]
    assert jsonl.has_checksums(path) and not jsonl.remarks(path)


def test_a_damaged_line_is_told_by_its_number(tmp_path):
    path = tmp_path / "log"
    with JsonLines(path) as lines:
        lines.append({"a": 1})
        lines.append({"a": 2})
    path.write_bytes(path.read_bytes().replace(b'"a": 2', b'"a": 3'))
    with pytest.raises(DataError, match=r"log is damaged in line 2: it does not fit its checksum\. Copy it\."):
        list(jsonl.parsed_lines(path, "Copy it."))


def test_files_of_older_versions_are_gone_on_with(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n')
    with JsonLines(path) as lines:
        lines.append({"a": 2})
    assert values(path) == [{"a": 1}, {"a": 2}]
    [remark] = jsonl.remarks(path)
    assert str(path) in remark and "without checksums" in remark
    assert not jsonl.remarks(tmp_path / "none")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_is_one_sentence_and_closing_says_nothing_more(tmp_path):
    lines = JsonLines(tmp_path / "log")
    lines.file.close()
    lines.file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with lines, pytest.raises(M2FError, match="Cannot write .*log: No space left"):
        lines.append(1)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_refused(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="is a link"):
        JsonLines(tmp_path / "log")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "log")
    for path in (tmp_path / "log", Path("/dev/null")):
        with pytest.raises(ConfigError, match="is a pipe or a device"):
            JsonLines(path)


def test_what_is_no_json_is_a_value_error():
    for line in (b"{", b"[" * 100_000):
        with pytest.raises(ValueError):
            parse(line)


def test_lines_of_absurd_length_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 10)
    (tmp_path / "log").write_bytes(b"1\n" + b"2" * 50 + b"\n")
    with pytest.raises(DataError, match="a line of more than 10 bytes"):
        list(whole_lines(tmp_path / "log"))


@pytest.mark.parametrize("name", ["folder", "missing", "device"])
def test_what_is_no_file_is_no_journal(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for read in (whole_bytes, lambda path: list(whole_lines(path))):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read(tmp_path / name)


@pytest.mark.parametrize("line", [b"{", b"[" * 100_000, b"1" * 5000, b"\xff\xfe1\x00", b""])
def test_values_of_a_damaged_file_say_where_it_is_damaged(tmp_path, line):
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    found = jsonl.parsed_lines(path, "Copy it again.")
    assert next(found)[1] == {"a": 1}
    with pytest.raises(DataError, match="log is damaged in line 2: "):
        next(found)
