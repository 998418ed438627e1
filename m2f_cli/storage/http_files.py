"""Files of web servers, by the standard library: redirects are checked, bodies have an end."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import quote, urlsplit

from ..runtime import web
from .info import Info
from .retry import WrongAnswer
from .uris import login_of

TIMEOUT = 30.0  # seconds without a byte
LONGEST = 900.0  # seconds of one answer, however steadily its bytes come
_CHUNK = 1 << 20  # bytes


def read(uri: str, limit: int, start: int | None, stop: int | None) -> tuple[bytes, Info]:
    """Read a file, or its bytes from `start` to `stop`; at most `limit` + 1 of them.

    Returns:
        The bytes, and the size and version of the whole file as far as the server states them.
    """
    first = start or 0
    is_part = start is not None or stop is not None
    last = "" if stop is None else str(stop - 1)
    headers = {"Range": f"bytes={first}-{last}"} if is_part else {}
    with _opened(uri, headers) as answer, web.in_time(answer, LONGEST):
        if answer.status == 200:
            first, skipped = 0, first
        elif answer.status == 206 and is_part and _starts_at(answer, first):
            skipped = 0
        else:
            raise WrongAnswer(f"the server's answer {answer.status} is not the part that was asked for")
        wanted = limit + 1 if stop is None else min(limit + 1, stop - (start or 0))
        content = _body(answer, skipped + wanted)[skipped:]
        return content, _info(answer)


def info(uri: str) -> Info:
    """Return the size and the version of a file, from the head of an answer."""
    with _opened(uri, {}, method="HEAD") as answer:
        return _info(answer)


def _opened(uri: str, headers: dict[str, str], method: str = "GET") -> Any:
    address, login = login_of(uri)
    parts = urlsplit(address)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]{}|")
    address = parts._replace(path=path, query=query, fragment="").geturl()
    return web.open_url(address, headers, timeout=TIMEOUT, login=login, method=method)


def _body(answer: Any, most: int) -> bytes:
    """Read a body of at most `most` bytes; what comes after them is left.

    Raises:
        http.client.IncompleteRead: it is shorter than the server said.
    """
    announced = answer.length  # None where the length is not known before
    chunks, count = [], 0
    while count < most and (chunk := _chunk(answer, min(_CHUNK, most - count))):
        chunks.append(chunk)
        count += len(chunk)
    if announced is not None and count < min(announced, most):
        raise http.client.IncompleteRead(b"", announced - count)
    return b"".join(chunks)


def _chunk(answer: Any, most: int) -> bytes:
    try:
        chunk: bytes = answer.read(most)
    except ValueError as error:  # http.client's own, of a chunk of a negative size
        raise web.Refused(f"the answer makes no sense: {error}") from error
    return chunk


def _starts_at(answer: Any, first: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {first}-")


def _info(answer: Any) -> Info:
    size = answer.headers.get("Content-Length")
    if answer.status == 206:
        size = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
    known = int(size) if size and size.isdecimal() and len(size) < 19 else None
    return Info(known, answer.headers.get("ETag") or answer.headers.get("Last-Modified"))
