"""Answers of HTTP servers as they should not be: statuses, redirects, lengths, bodies, headers."""

from __future__ import annotations

import gzip
import random
from typing import Any

CONTENT = random.Random(1).randbytes(50_000)
_STATUS = (
    *("200 OK", "200", "201 Created", "202 Accepted", "203 X", "204 No Content", "205 Reset", "206 Partial Content"),
    *(
        "300 X",
        "301 X",
        "302 X",
        "303 X",
        "304 Not Modified",
        "307 X",
        "308 X",
        "400 Bad",
        "401 X",
        "403 X",
        "404 No",
        "408 X",
    ),
    *(
        "409 X",
        "410 X",
        "416 Range",
        "418 X",
        "429 X",
        "451 X",
        "500 X",
        "502 X",
        "503 X",
        "504 X",
        "599 X",
        "999 X",
        "100 X",
    ),
    *("101 Switching Protocols", "103 Early Hints", "abc", "-1 X", "0 X", "200 \x1b[31mred", "2000 X", ""),
)
_ETAGS = ('""', '"x"', 'W/"x"', "x" * 20_000, '"é"', "\x1b[31m", '"' + "0" * 64 + '"', '"' + "0" * 40 + '"', "*", "\t")
_LENGTHS = (
    "0",
    "-1",
    "abc",
    "1e3",
    "99999999999",
    "9" * 30,
    "",
    " 50000 ",
    "50_000",
    "0x10",
    "+50000",
    "٣",
    "49999",
    "50001",
    "50000, 50000",
)
_TYPES = (
    "text/html",
    "TEXT/HTML; charset=x",
    "application/json",
    "multipart/byteranges; boundary=x",
    "",
    "\xff",
    "x" * 5000,
    "image/png",
)


def piece(text: bytes | str, times: int = 1, wait: float = 0) -> dict[str, Any]:
    """A part of an answer that is written `times` times, after `wait` seconds each."""
    return {"text": text if isinstance(text, str) else text.decode("latin1"), "times": times, "wait": wait}


def answer(body: bytes = CONTENT, status: str = "200 OK", **headers: str | None) -> list[dict[str, Any]]:
    """A whole answer; a header of None is left out."""
    stated = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
    stated |= {key.replace("_", "-"): value for key, value in headers.items()}  # type: ignore[misc]
    lines = [f"HTTP/1.1 {status}", *(f"{key}: {value}" for key, value in stated.items() if value is not None)]
    return [piece("\r\n".join(lines).encode("utf-8") + b"\r\n\r\n"), piece(body)]


def odd_answer(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    """Return a description, an answer, and what whoever asks may make of it: "right", "wrong" (refuse it) or "any"."""
    ways = (_status, _redirect, _length, _endless, _slow, _chunks, _headers, _kind, _cut, _range, _noise)
    return rng.choice(ways)(rng, body)


def _status(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    status = rng.choice(_STATUS)
    body = rng.choice((body, b"", b"no such thing"))
    headers = rng.choice(
        ({}, {"X_Error_Code": "GatedRepo"}, {"Retry_After": "99999999"}, {"WWW_Authenticate": "Basic"})
    )
    return f"status {status}", answer(body, status, **headers), "any" if status.startswith("20") else "wrong"


def _redirect(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    target = rng.choice(
        (
            *(
                "/",
                "/again",
                "?x",
                "#x",
                "file:///etc/passwd",
                "ftp://127.0.0.1:9/x",
                "data:,x",
                "javascript:x",
                "//127.0.0.1:9/x",
            ),
            *(
                "http://127.0.0.1:9/x",
                "https://127.0.0.1:9/x",
                "http://[::1",
                "http://127.0.0.1:999999/x",
                "http://",
                "http:///x",
            ),
            *(
                "",
                "é",
                "\x00",
                "http://a:b@127.0.0.1:9/",
                "x" * 70_000,
                "http://127.0.0.1:9/\r\nX: y",
                "HTTP://127.0.0.1:9",
                "unix:/x",
            ),
            *("http://127.0.0.1:x/", "\\\\x\\y", "http://%zz/", "gopher://127.0.0.1:9/", "http://127.0.0.1:-1/"),
        )
    )
    made = answer(b"moved", rng.choice(("301 X", "302 X", "303 X", "307 X", "308 X", "300 X")), Location=target)
    way = rng.choice(("", "", "endless", "slow"))
    if way == "endless":
        made = [made[0], piece(b"y" * 65_536, 10**6)]
        made[0]["text"] = made[0]["text"].replace("Content-Length: 5\r\n", "")
    elif way == "slow":
        made = [made[0], piece(b"y", 10**6, 0.1)]
        made[0]["text"] = made[0]["text"].replace("Content-Length: 5", "Content-Length: 99999999")
    return f"{way} redirect to {target[:40]!r}", made, "wrong"


def _length(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    length = rng.choice((*_LENGTHS, str(len(body) - 1), str(len(body) + 1)))
    return f"length {length!r}", answer(body, Content_Length=length), "any"


def _endless(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    made = answer(body, Content_Length=rng.choice((None, None, str(10**12), str(len(body)))))
    return "endless", [*made, piece(rng.choice((b"x", b"\0", b" ", b"[", b"{" * 9)) * 65_536, 10**6)], "any"


def _slow(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    head, _ = answer(body)
    way = rng.choice(("body", "head", "silent", "first"))
    made = {
        "body": [head, *(piece(body[at : at + 10], 1, 0.1) for at in range(0, min(5000, len(body)), 10))],
        "head": [piece("HTTP/1.1 200 OK\r\n"), piece("X: y\r\n", 10**6, 0.1)],
        "silent": [head, piece(body[:10]), piece(b"", 300, 0.2)],
        "first": [piece(b"", 300, 0.2)],
    }[way]
    return f"slow {way}", made, "wrong"


def _chunks(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    head = answer(body, Content_Length=None, Transfer_Encoding="chunked")[0]
    size = f"{len(body):x}\r\n".encode()
    way = rng.choice(
        ("good", "cut", "size", "huge", "negative", "extension", "trailers", "slow trailers", "empty", "long line")
    )
    made = {
        "good": [piece(size + body + b"\r\n0\r\n\r\n")],
        "cut": [piece(size + body[: len(body) // 2])],
        "size": [piece(b"xyz\r\n" + body)],
        "huge": [piece(b"f" * 15 + b"\r\n"), piece(body, 10**6)],
        "negative": [piece(b"-5\r\n" + body)],
        "extension": [piece(size[:-2] + b";x=y" * 9999 + b"\r\n" + body + b"\r\n0\r\n\r\n")],
        "trailers": [piece(size + body + b"\r\n0\r\n"), piece(b"X: y\r\n" * 1000, 10**6, 0.001)],
        "slow trailers": [piece(size + body + b"\r\n0\r\n"), piece(b"X: y\r\n", 10**6, 0.1)],
        "empty": [piece(b"0\r\n\r\n")],
        "long line": [piece(b"0" * 65_536, 10**6)],
    }[way]
    return f"chunks {way}", [head, *made], "right" if way == "good" else "any"


def _headers(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    head, rest = answer(body)
    extra = rng.choice(
        (
            *(f"ETag: {tag}" for tag in _ETAGS),
            *(
                "X: y\r\n" * 200,
                "X: " + "y" * 70_000,
                "no colon",
                ": x",
                "\x00: y",
                "X: y\r\n folded",
                "X-Linked-Size: 5",
                "X-Linked-Size: x",
            ),
            *(
                "X-Linked-Etag: " + "0" * 64,
                "X-Linked-Etag: \xff",
                "Last-Modified: \xff\x00",
                "Content-Encoding: gzip",
                "Connection: upgrade",
            ),
            *(
                "Transfer-Encoding: gzip",
                "Content-Length: 3",
                "Content-Range: bytes 5-9/10",
                "Set-Cookie: x",
                "Content-Type: text/html",
            ),
        )
    )
    head["text"] = head["text"].replace("\r\n\r\n", f"\r\n{extra}\r\n\r\n")
    way = rng.choice(("", "", "cut"))
    made = [head, rest] if not way else [head, piece(body[: len(body) // 3])]
    return f"{way} header {extra[:40]!r}", made, "any"


def _kind(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    bomb = gzip.compress(bytes(10_000_000))
    kind = rng.choice((*_TYPES, "application/octet-stream"))
    sent, encoding = rng.choice(
        ((page, None), (body, None), (bomb, "gzip"), (gzip.compress(body), "gzip"), (b"{}", "x"), (b"", None))
    )
    return f"type {kind[:20]!r} {sent[:10]!r}", answer(sent, Content_Type=kind, Content_Encoding=encoding), "any"


def _cut(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    at = rng.choice((0, 1, len(body) // 2, len(body) - 1))
    return f"cut at {at}", [answer(body)[0], piece(body[:at])], "wrong"


def _range(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    """Answer with a part that nobody asked for, or another than was asked for."""
    stated = rng.choice(
        ("bytes 0-99/50000", "bytes 100-199/50000", "bytes */50000", "x", None, "bytes 9-1/0", "bytes 0-99/*")
    )
    return f"range {stated}", answer(body[:100], "206 Partial Content", Content_Range=stated, ETag='"x"'), "wrong"


def _noise(rng: random.Random, body: bytes) -> tuple[str, list[dict[str, Any]], str]:
    text = rng.choice(
        (
            *(
                b"",
                b"\0" * 1000,
                b"<html>",
                b"HTTP/1.1",
                b"HTTP/9.9 200 OK\r\n\r\n" + body,
                b"ICY 200 OK\r\n\r\n",
                body,
            ),
            *(b"\r\n" * 1000, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n", b"x" * 100_000),
            b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        )
    )
    return f"noise {text[:20]!r}", [piece(text)], "any"
