"""Read text, JSON and YAML from others within limits, or refuse them in one sentence."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, DataError, M2FError
from .files import open_to_read

LARGEST_YAML = 4 << 20  # bytes; a table of two thousand classes has 200 kB
LARGEST_TEXT = 256 << 20  # bytes; a list of a million images has 60 MB
LONGEST_NUMBER = 100  # letters of a number in YAML; its own notations cost time that grows with the square
LONGEST_KEY = 19  # letters of a number that is a key; many longer ones can have one hash
MOST_NODES = 200_000  # values of a YAML document, those that aliases repeat counted each time
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C, where PyYAML has it: five times as fast
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_bytes(path: Path, *, largest: int, error: type[M2FError] = DataError) -> bytes:
    """Read a file of at most `largest` bytes.

    Raises:
        error: missing, unreadable, too large, or a device.
    """
    content = _read(path, largest + 1, error)
    if len(content) > largest:
        raise error(f"{path} has more than {largest:,} bytes, which no file of its kind has.")
    return content


def read_text(path: Path, *, error: type[M2FError] = DataError) -> str:
    """Read text in UTF-8, without its byte order mark and with "\\n" as the only line end.

    Raises:
        error: missing, unreadable, too large or in another encoding.
    """
    return decode(read_bytes(path, largest=LARGEST_TEXT, error=error), str(path), error=error)


def read_lines(path: Path, *, error: type[M2FError] = DataError) -> list[str]:
    """Read the lines of a text file, as `read_text` does; only line feeds separate lines."""
    lines = read_text(path, error=error).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def decode(content: bytes, where: str, *, error: type[M2FError] = DataError) -> str:
    """Decode text in UTF-8, without its byte order mark and with "\\n" as the only line end.

    Raises:
        error: the text has another encoding. The message names it where a mark does.
    """
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        if marked is not None:
            raise error(f"{where} is text in {marked}, where UTF-8 is expected.", hint="Save it as UTF-8.")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        shown = content[reason.start : reason.start + 4].hex(" ")
        raise error(
            f"{where} is not text in UTF-8: byte {reason.start} on is {shown}.", hint="Save it as UTF-8."
        ) from reason
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, error: type[M2FError] = DataError) -> Any:
    """Read a JSON file; see `parse_json`."""
    return parse_json(_read(path, -1, error), str(path), error=error)


def _read(path: Path, most: int, error: type[M2FError]) -> bytes:
    """Return the first `most` bytes of a file; all of them where `most` is -1."""
    try:
        with open_to_read(path) as file:
            return file.read(most)
    except (OSError, ValueError) as reason:  # ValueError: a name with a zero byte
        raise error(f"{path} cannot be read: {getattr(reason, 'strerror', None) or reason}.") from reason


def parse_json(content: bytes | str, where: str, *, error: type[M2FError] = DataError) -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        error: the text is not valid, is nested too deeply, or has a number of too many digits.
    """
    try:
        if isinstance(content, bytes):  # rebound, so that the bytes of a large file are free before it is parsed
            content = content.decode(json.detect_encoding(content), "surrogatepass")
        return json.loads(content)
    except RecursionError as reason:
        raise error(f"{where} is not usable json: it is nested too deeply.") from reason
    except UnicodeDecodeError as reason:
        said = f"{where} is not valid json: it is not text in UTF-8 ({reason})."
        raise error(said, hint="Save it as UTF-8.") from reason
    except ValueError as reason:  # JSONDecodeError, and integers of thousands of digits
        raise error(f"{where} is not valid json: {reason}.", hint="Copy, download or export it again.") from reason


def read_yaml(path: Path, *, texts: Collection[str] = (), error: type[M2FError] = ConfigError) -> Any:
    """Read a YAML file; see `parse_yaml`."""
    content = read_bytes(path, largest=LARGEST_YAML, error=error)
    return parse_yaml(decode(content, str(path), error=error), str(path), texts=texts, error=error)


def parse_yaml(text: str, where: str, *, texts: Collection[str] = (), error: type[M2FError] = ConfigError) -> Any:
    """Parse one YAML document of plain values.

    Args:
        texts: keys whose values are names. Values right below them stay text as written, where YAML itself would
            make False of `no`, None of `null` and a date of `2024-01-01`.

    Raises:
        error: not YAML, tags that name code, or aliases that multiply it to more than `MOST_NODES` values.
    """
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, ValueError) as reason:  # control characters, or halves of characters
        raise error(f"{where} is not valid YAML: {' '.join(str(reason).split())}") from reason
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_bomb(root, where, error)
        for node in _all_nodes(root):
            if texts and isinstance(node, yaml.MappingNode):
                _keep_texts(node, texts)
        for node in _all_nodes(root):
            _refuse_number(node, where, error)
        return loader.construct_document(root)
    except RecursionError as reason:
        raise error(f"{where} is nested too deeply.") from reason
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, LookupError) as reason:
        # A date of 31 February or a number such as "1__" makes PyYAML raise what Python raises.
        raise error(f"{where} is not valid YAML: {' '.join(str(reason).split())}") from reason
    finally:
        loader.dispose()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _all_nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield each node once, however often aliases repeat it."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        fresh = [child for child in _children(node) if id(child) not in seen]
        seen.update(map(id, fresh))
        waiting += fresh


def _refuse_bomb(root: yaml.Node, where: str, error: type[M2FError]) -> None:
    """Refuse a document that contains itself, or that aliases make too large."""
    weights: dict[int, int] = {}
    inside: set[int] = set()

    def weigh(node: yaml.Node) -> int:
        key = id(node)
        if key in inside:
            raise error(f"{where} holds an alias to what it is a part of.")
        if key not in weights:
            inside.add(key)
            weights[key] = 1 + sum(map(weigh, _children(node)))
            inside.discard(key)
        return weights[key]

    if weigh(root) > MOST_NODES:
        raise error(f"{where} holds more than {MOST_NODES:,} values, counting what its aliases repeat.")


def _refuse_number(node: yaml.Node, where: str, error: type[M2FError]) -> None:
    """Refuse numbers of absurd length, and mappings whose keys would be compared one by one."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        raise error(f"{where} holds a number of {len(node.value):,} letters, {node.value[:20]}….")
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.tag in _NUMBERS and len(key.value) > LONGEST_KEY:
            raise error(f"{where} has the key {key.value}, a number that is too large for one.")


def _keep_texts(node: yaml.MappingNode, texts: Collection[str]) -> None:
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in texts:
            continue
        values = [each for _, each in value.value] if isinstance(value, yaml.MappingNode) else _children(value)
        for each in [value, *values]:
            if isinstance(each, yaml.ScalarNode):
                each.tag = _TEXT
