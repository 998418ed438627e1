"""Checksums inside of files: each flipped bit is found, and what was written before there were any is read."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from m2f_cli.runtime import checksums
from m2f_cli.runtime.checksums import ChecksumError
from m2f_cli.runtime.text import json_text

TREE = {"name": "é 001", "number": 7, "values": [0.1, 2e-30], "nested": {"}": "x"}}


def flipped(content: bytes):
    """Yield the content with each of its bits changed, one at a time."""
    for at in range(len(content)):
        for bit in range(8):
            yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=str)
def test_each_flipped_bit_of_a_json_text_is_found(options):
    text = checksums.sealed(json_text(TREE, **options)).encode()
    assert json.loads(checksums.unsealed(text)) == TREE and checksums.is_sealed(text)
    for damaged in flipped(text):
        with pytest.raises(ValueError):
            json.loads(checksums.unsealed(damaged))


def test_each_flipped_bit_of_a_yaml_text_is_found():
    text = checksums.sealed_yaml(yaml.safe_dump(TREE)).encode()
    checksums.check_yaml(text)
    assert checksums.is_sealed_yaml(text) and yaml.safe_load(text) == TREE
    for damaged in flipped(text):
        with pytest.raises(ChecksumError):
            checksums.check_yaml(damaged)


def test_each_flipped_bit_of_a_digested_file_is_found(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"x": torch.arange(3)}, path)
    checksums.append_digest(path)
    checksums.check_digest(path)
    assert checksums.has_digest(path) and torch.load(path)["x"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    places = [*range(0, len(whole), 41), *range(len(whole) - 80, len(whole))]
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ChecksumError, match="does not fit its checksum"):
            checksums.check_digest(path)


def test_a_cut_off_file_does_not_fit(tmp_path):
    """What is cut off inside has no checksum at its end: the reader of its format says so."""
    path = tmp_path / "state.pt"
    torch.save({"x": torch.arange(3)}, path)
    checksums.append_digest(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-80] + whole[-76:])
    with pytest.raises(ChecksumError):
        checksums.check_digest(path)


@pytest.mark.parametrize("content", [b"", b"x", b'{"a": 1}\n', b"a: 1\n", b"a: 1\n# remark\n"])
def test_content_without_a_checksum_is_taken_as_it_is(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    checksums.check_digest(tmp_path / "file")
    checksums.check_yaml(content)
    assert checksums.unsealed(content) == content
    assert not (
        checksums.has_digest(tmp_path / "file") or checksums.is_sealed(content) or checksums.is_sealed_yaml(content)
    )
