"""Download of single files over https, complete and with verified hashes.

`runtime/caches.py` has the folder of the files; `runtime/network.py` says what forbids a download.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import Unreachable, WeightsError
from ..runtime import files, network, web
from ..runtime.caches import weights_dir

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # each continues where the connection was cut
WINDOW = 60.0  # seconds in which at least LEAST_RATE bytes a second have to come
LEAST_RATE = 1024
LONGEST = 24 * 3600.0  # seconds of one file, all attempts together
LARGEST = 20 << 30  # bytes of one file; the largest released weights have 0.9
_SPARE = 64 << 20  # bytes that stay free on the disk
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """Progress of one file.

    Attributes:
        name: name of the file or repository.
        received: bytes so far.
        total: bytes in all. None if the server does not state them.
    """

    name: str
    received: int
    total: int | None


Progress = Callable[[Download], None]


# --- files ------------------------------------------------------------------------------------------------------------


def download(url: str, *, hash_prefix: str | None = None, progress: Progress | None = None) -> Path:
    """Fetch a file once. Later calls return the local copy.

    The file appears under its name only when it is complete and its hash is right. An interrupted download is
    continued, also by a later call. Processes that want the same file wait for each other.

    Args:
        hash_prefix: hexadecimal start of the file's SHA-256 or MD5, or the whole of it. The local copy, which may have
            been put there by hand, has to have it, too.

    Raises:
        WeightsError: the network is off, the address is unreachable or refused, the connection is cut, or the hash
            differs. The message says where a copy could be put.
    """
    name = url.rsplit("/", 1)[-1]
    target = files.output_path(weights_dir(), name)
    if target.is_file():
        refuse_other_content(target, hash_prefix)
        return target
    by_hand = f"You can also fetch it elsewhere and put it at {target}."
    if network.is_offline():
        raise Unreachable(f"{url} is not here yet, and {network.SWITCHED_OFF}.", hint=by_hand)
    part = target.with_name(name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(name + ".lock")):
            if target.is_file():
                return target
            fetch(url, part, progress, by_hand)
            _refuse_page(part, url, by_hand)
            _check_hash(part, url, hash_prefix)
            finish(part, target)
    except OSError as error:
        raise not_written(target, error) from error
    return target


def finish(part: Path, target: Path) -> None:
    """Rename a complete and verified file to its final name."""
    _validator(part).unlink(missing_ok=True)
    part.replace(target)


def not_written(path: Path, error: OSError) -> WeightsError:
    """Return the error for a path that downloads cannot be written to."""
    where = "M2F_HOME says where downloads go."
    return WeightsError(f"Cannot write {path}: {error.strerror or error}.", hint=where)


@dataclass(frozen=True)
class Stated:
    """Size and hash of a file, as far as they are known before the download.

    Attributes:
        size: bytes.
        digest: SHA-256 or git hash, in hexadecimal.
    """

    size: int | None = None
    digest: str | None = None


def fetch(
    url: str,
    part: Path,
    progress: Progress | None,
    by_hand: str,
    *,
    stated: Stated = Stated(),
    token: str | None = None,
) -> Stated:
    """Fetch a file into `part`, continuing an interrupted download, and return its size and hash as far as stated.

    Args:
        by_hand: hint for error messages about how to fetch the file otherwise.
        stated: size and hash that are known already.
        token: access token for the host of `url`.

    Raises:
        WeightsError: the address is unreachable or refused, or the connection is cut too often.
    """
    reason, until = "", time.monotonic() + LONGEST
    for _ in range(ATTEMPTS):
        try:
            is_complete, known = _fetch_rest(url, part, progress, stated, token, until)
            if is_complete:
                return known
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the local part does not belong to the file on the server
                part.unlink(missing_ok=True)
                reason = "the file changed on the server"
                continue
            answer = f"the server says {error.code} {error.reason}"
            raise WeightsError(f"{url} cannot be downloaded: {answer}.", hint=by_hand) from error
        except urllib.error.URLError as error:
            raise Unreachable(f"{url} cannot be reached: {error.reason}.", hint=by_hand) from error
        except web.Refused as error:
            _forget(part)
            raise WeightsError(f"{url} cannot be downloaded: {error}.", hint=by_hand) from error
        except TimeoutError as error:
            reason = f"nothing came for {TIMEOUT:.0f} seconds" if "timed out" in str(error) else str(error)
        except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
            reason = f"the connection was cut ({error})"
    raise WeightsError(
        f"{url} could not be downloaded: {reason}, {ATTEMPTS} times.",
        hint=f"Try again: it goes on where it stopped. {by_hand}",
    )


def _fetch_rest(
    url: str, part: Path, progress: Progress | None, stated: Stated, token: str | None, until: float
) -> tuple[bool, Stated]:
    """Append the missing bytes. Return True if the file is complete then, and its stated size and hash."""
    validator = _read_validator(part)
    have = part.stat().st_size if part.is_file() and validator else 0
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with web.open_url(url, headers, timeout=TIMEOUT, token=token) as answer:
        have = _place(answer, have)
        known = Stated(stated.size or linked_size(answer), stated.digest or linked_digest(answer))
        total = _total(answer, have, known)
        _refuse_full_disk(part, (total or 0) - have)
        _validator(part).write_text(json.dumps([url, _etag(answer)]), encoding="utf-8")
        with part.open("ab" if have else "wb") as file:
            for chunk in _steadily(answer, until):
                have += len(chunk)
                if have > (LARGEST if total is None else total):
                    raise web.Refused(f"more than {have - 1:,} bytes came, and {_said(total)} were announced")
                if total is None:
                    _refuse_full_disk(part, len(chunk))
                file.write(chunk)
                if progress:
                    progress(Download(part.name.removesuffix(".part"), have, total))
    return total is None or have == total, known


def _steadily(answer: Any, until: float) -> Iterable[bytes]:
    """Yield the bytes of an answer as they come.

    Raises:
        TimeoutError: they come too slowly, or there is no end of them at the time `until`.
    """
    while True:
        began, received = time.monotonic(), 0
        with web.in_time(answer, 2 * WINDOW):  # what stands between the bytes may have no end either
            while (passed := time.monotonic() - began) < WINDOW:
                try:
                    chunk = answer.read1(_CHUNK)
                except ValueError as error:  # http.client's own, of a chunk of a negative size
                    raise web.Refused(f"the answer makes no sense: {error}") from error
                if not chunk:
                    return
                received += len(chunk)
                yield chunk
        if received < LEAST_RATE * passed:
            raise TimeoutError(f"only {received:,} bytes came in {passed:.0f} seconds")
        if time.monotonic() > until:
            raise TimeoutError(f"it is not whole after {LONGEST / 3600:.0f} hours")


def _place(answer: Any, have: int) -> int:
    """Return the place in the file at which an answer begins: 0, or `have` where that was asked for.

    Raises:
        web.Refused: the answer is another part of the file, or of a kind that no file comes with.
    """
    if answer.status == 200:
        return 0
    if answer.status != 206:
        raise web.Refused(f"the server says {answer.status}, where 200 was expected")
    if not have or not _continues(answer, have):
        shown = answer.headers.get("Content-Range", "")[:80]
        raise web.Refused(f"a part of the file came ({shown!r}) that was not asked for")
    return have


def _refuse_page(part: Path, url: str, by_hand: str) -> None:
    """Refuse a file that is empty or a web page, whatever the server called it: it would stay under its name."""
    with part.open("rb") as file:
        start = file.read(512).lstrip()
    if not start or start[:1] == b"<":
        _forget(part)
        what = "a web page" if start else "an empty file"
        raise WeightsError(f"{url} cannot be downloaded: {what} came, where weights were expected.", hint=by_hand)


def _total(answer: Any, have: int, stated: Stated) -> int | None:
    """Return the size of the whole file, or None if the server does not state it.

    Raises:
        web.Refused: the answer is a web page, or its length is not a number, too large, or not that of the hub.
    """
    kind, length = answer.headers.get("Content-Type", ""), answer.headers.get("Content-Length")
    if kind.strip().lower().startswith("text/html"):
        raise web.Refused("a web page came, where a file was expected")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length.strip()):
        raise web.Refused(f"the server says {length[:40]!r} is its length, where a number was expected")
    total = stated.size if length is None else have + int(length)
    if total is not None and total > LARGEST:
        raise web.Refused(f"it has {total:,} bytes, and no file of weights has more than {LARGEST:,}")
    if stated.size not in (None, total):
        raise web.Refused(f"{total:,} bytes are offered, where {stated.size:,} were expected")
    return total


def _said(total: int | None) -> str:
    return "none" if total is None else f"{total:,}"


def _refuse_full_disk(part: Path, coming: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if coming > free - _SPARE:
        raise web.Refused(f"{coming:,} bytes do not fit on the disk of {part.parent}, where {free:,} are free")


def linked_digest(answer: Any) -> str | None:
    """Return the hash that the hub states in a header. After a redirect, the host's own header is not a hash."""
    etag = web.linked(answer, "X-Linked-Etag") or ("" if web.was_redirected(answer) else answer.headers.get("ETag", ""))
    match = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?', etag.strip())
    return match[1] if match else None


def linked_size(answer: Any) -> int | None:
    size = web.linked(answer, "X-Linked-Size") or ""
    return int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None


def _continues(answer: Any, have: int) -> bool:
    return re.match(rf"bytes {have}-", answer.headers.get("Content-Range", "")) is not None


def _etag(answer: Any) -> str:
    """Return a tag of this version of the file. Weak tags do not promise equal bytes and are left out."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_validator(part: Path) -> str:
    try:
        _, etag = json.loads(_validator(part).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return ""  # the origin of the part is unknown, so it is fetched anew
    return str(etag)


def file_hashes(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file in hexadecimal."""
    return _digests(path, hashlib.sha256(), hashlib.md5(usedforsecurity=False))  # type: ignore[return-value]


def _digests(path: Path, *hashes: Any) -> tuple[str, ...]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in hashes:
                digest.update(chunk)
    return tuple(digest.hexdigest() for digest in hashes)


def refuse_other_content(path: Path, published: str | None) -> None:
    """Compare a file that is here already with the hash that is published.

    Args:
        published: as `hash_prefix` of `download`; None where nothing is known.

    Raises:
        WeightsError: neither the SHA-256 nor the MD5 of the file begins so, or the file cannot be read.
    """
    try:
        found = _other_hashes(path, published)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    if found is not None:
        hint = "It is damaged, or another file: remove it, and it is fetched again."
        raise WeightsError(f"{path} has another content than published: {found}.", hint=hint)


def _other_hashes(path: Path, prefix: str | None) -> str | None:
    """Return a clause about the hashes of a file, or None where one of them begins as it should."""
    if prefix is None or _digests(path, hashlib.sha256())[0].startswith(prefix.lower()):
        return None
    sha256, md5 = file_hashes(path)
    if md5.startswith(prefix.lower()):
        return None
    return f"neither its SHA-256 ({sha256[:8]}…) nor its MD5 ({md5[:8]}…) begins with {prefix}"


def _check_hash(part: Path, url: str, prefix: str | None) -> None:
    found = _other_hashes(part, prefix)
    if found is not None:
        _forget(part)
        raise WeightsError(
            f"{url} arrived with another content than published: {found}. The copy was deleted.",
            hint="Try again; if it happens again, the file on the server was changed.",
        )


def check_digest(part: Path, url: str, digest: str | None) -> None:
    """Compare a file with the hash that the hub states: SHA-256 of large files, git's hash of small ones.

    Raises:
        WeightsError: the hash differs. The file is deleted.
    """
    if digest is None:
        return
    git = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False)
    [actual] = _digests(part, hashlib.sha256() if len(digest) == 64 else git)
    if actual != digest:
        _forget(part)
        raise WeightsError(
            f"{url} arrived with another content than the hub states: its hash is {actual[:8]}…, where {digest[:8]}… "
            "was expected. The copy was deleted.",
            hint="Try again; if it happens again, the file on the server was changed.",
        )


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
