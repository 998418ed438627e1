"""Getting released weights: single files over https, and repositories of the Hugging Face hub.

Environment: `M2F_HOME` (default ~/.cache/m2f) is where files are kept, `M2F_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids
the network, `HF_ENDPOINT` names a mirror of the hub. What huggingface_hub's own cache (`HF_HOME`) has is used too.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
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
from ..runtime import documents, files
from . import web

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # a cut connection is taken up again where it was cut
WINDOW = 60.0  # seconds in which at least LEAST_RATE bytes a second have to come
LEAST_RATE = 1024
LARGEST = 20 << 30  # bytes of one file; the largest released weights have 0.9
LARGEST_ANSWER = 16 << 20  # bytes of what the hub says of a repository
_SPARE = 64 << 20  # bytes that stay free on the disk
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """Progress of one file: bytes so far and in all (None where the server does not say)."""

    name: str
    received: int
    total: int | None


Progress = Callable[[Download], None]


def offline() -> bool:
    """Whether the network is switched off by M2F_OFFLINE or HF_HUB_OFFLINE."""
    values = [os.environ.get(name, "") for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE")]
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def weights_dir() -> Path:
    """Where downloaded files of weights are kept."""
    return Path(os.environ.get("M2F_HOME") or Path.home() / ".cache" / "m2f").expanduser() / "weights"


# --- files ------------------------------------------------------------------------------------------------------------


def download(url: str, *, hash_prefix: str | None = None, progress: Progress | None = None) -> Path:
    """Fetch a file once; later calls return the copy.

    The file appears under its name only when it is complete and its hash is right. An interrupted download is taken
    up again, also by a later call. Processes that want the same file wait for each other.

    Args:
        hash_prefix: hexadecimal start of the file's SHA-256 or MD5.

    Raises:
        WeightsError: offline, unreachable, refused, cut, or another hash; the message says where a copy could be put.
    """
    name = url.rsplit("/", 1)[-1]
    target = files.output_path(weights_dir(), name)
    if target.is_file():
        return target
    by_hand = f"You can also fetch it elsewhere and put it at {target}."
    if offline():
        off = "the network is switched off (M2F_OFFLINE or HF_HUB_OFFLINE)"
        raise Unreachable(f"{url} is not here yet, and {off}.", hint=by_hand)
    part = target.with_name(name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(name + ".lock")):
            if target.is_file():
                return target
            _fetch(url, part, progress, by_hand)
            _check_hash(part, url, hash_prefix)
            _validator(part).unlink(missing_ok=True)
            part.replace(target)
    except OSError as error:
        where = "M2F_HOME says where downloads go."
        raise WeightsError(f"Cannot write {target}: {error.strerror or error}.", hint=where) from error
    return target


@dataclass(frozen=True)
class _Stated:
    """What is known of a file before it comes: bytes, and SHA-256 or git's hash; None where nobody says."""

    size: int | None = None
    digest: str | None = None


def _fetch(
    url: str,
    part: Path,
    progress: Progress | None,
    by_hand: str,
    *,
    stated: _Stated = _Stated(),
    token: str | None = None,
) -> _Stated:
    """Fetch a file into `part`, taking it up again where it was cut; what is known of it now."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            is_complete, told = _fetch_rest(url, part, progress, stated, token)
            if is_complete:
                return told
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we have is no beginning of what there is now
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
            reason = str(error) if "bytes" in str(error) else f"nothing came for {TIMEOUT:.0f} seconds"
        except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
            reason = f"the connection was cut ({error})"
    raise WeightsError(
        f"{url} could not be downloaded: {reason}, {ATTEMPTS} times.",
        hint=f"Try again: it goes on where it stopped. {by_hand}",
    )


def _fetch_rest(
    url: str, part: Path, progress: Progress | None, stated: _Stated, token: str | None
) -> tuple[bool, _Stated]:
    """Append what is missing; whether the file is complete then."""
    validator = _read_validator(part)
    have = part.stat().st_size if part.is_file() and validator else 0
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with web.open_url(url, headers, timeout=TIMEOUT, token=token) as answer:
        if answer.status != 206 or not _continues(answer, have):
            have = 0
        told = _Stated(stated.size or linked_size(answer), stated.digest or linked_digest(answer))
        total = _total(answer, have, told)
        _refuse_full_disk(part, (total or 0) - have)
        _validator(part).write_text(json.dumps([url, _etag(answer)]), encoding="utf-8")
        with part.open("ab" if have else "wb") as file:
            for chunk in _steadily(answer):
                have += len(chunk)
                if have > (LARGEST if total is None else total):
                    raise web.Refused(f"more than {have - 1:,} bytes came, and {_said(total)} were announced")
                if total is None:
                    _refuse_full_disk(part, len(chunk))
                file.write(chunk)
                if progress:
                    progress(Download(part.name.removesuffix(".part"), have, total))
    return total is None or have == total, told


def _steadily(answer: Any) -> Iterable[bytes]:
    """The bytes of an answer as they come.

    Raises:
        TimeoutError: they only drip.
    """
    began, received = time.monotonic(), 0
    while chunk := answer.read1(_CHUNK):
        received += len(chunk)
        passed = time.monotonic() - began
        if passed >= WINDOW:
            if received < LEAST_RATE * passed:
                raise TimeoutError(f"only {received:,} bytes came in {passed:.0f} seconds")
            began, received = time.monotonic(), 0
        yield chunk


def _total(answer: Any, have: int, stated: _Stated) -> int | None:
    """How large the whole file will be.

    Raises:
        web.Refused: a page, a length that is none, one that is too large, or another than the hub states.
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
    """The hash that the hub states in a header; that of a host which it redirects to is none."""
    etag = web.linked(answer, "X-Linked-Etag") or ("" if web.was_redirected(answer) else answer.headers.get("ETag", ""))
    found = re.fullmatch(r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?', etag.strip())
    return found[1] if found else None


def linked_size(answer: Any) -> int | None:
    size = web.linked(answer, "X-Linked-Size") or ""
    return int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None


def _continues(answer: Any, have: int) -> bool:
    return re.match(rf"bytes {have}-", answer.headers.get("Content-Range", "")) is not None


def _etag(answer: Any) -> str:
    """What tells this version of the file from another; weak tags do not promise equal bytes."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_validator(part: Path) -> str:
    try:
        _, etag = json.loads(_validator(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # nothing known of the part: it is fetched anew
    return str(etag)


def file_hashes(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 of a file, hexadecimal."""
    return _digests(path, hashlib.sha256(), hashlib.md5(usedforsecurity=False))  # type: ignore[return-value]


def _digests(path: Path, *hashes: Any) -> tuple[str, ...]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in hashes:
                digest.update(chunk)
    return tuple(digest.hexdigest() for digest in hashes)


def _check_hash(part: Path, url: str, prefix: str | None) -> None:
    if prefix is None:
        return
    found = file_hashes(part)
    if not any(digest.startswith(prefix.lower()) for digest in found):
        _forget(part)
        raise WeightsError(
            f"{url} arrived with another content than published: neither its SHA-256 ({found[0][:8]}…) nor its MD5 "
            f"({found[1][:8]}…) begins with {prefix}. The copy was deleted.",
            hint="Try again; if it happens again, the file on the server was changed.",
        )


def _check_digest(part: Path, url: str, digest: str | None) -> None:
    """The hash that the hub states: SHA-256 of large files, git's of small ones."""
    if digest is None:
        return
    git = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False)
    [found] = _digests(part, hashlib.sha256() if len(digest) == 64 else git)
    if found != digest:
        _forget(part)
        raise WeightsError(
            f"{url} arrived with another content than the hub states: its hash is {found[:8]}…, where {digest[:8]}… "
            "was expected. The copy was deleted.",
            hint="Try again; if it happens again, the file on the server was changed.",
        )


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


# --- repositories of the hub ------------------------------------------------------------------------------------------

CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


MOST_SHARDS = 1000
_NOTE = "main.json"  # which commit of a repository is complete here


def fetch_repo(repo: str, *, progress: Progress | None = None) -> Path:
    """The folder with a hub repository's configuration and weights (safetensors where it has them).

    Every file has the size and the hash that the hub states. Without network a complete copy that is here will do,
    ours or that of huggingface_hub's cache.

    Raises:
        WeightsError: no such repository, no access, no weights in it, other content than the hub states, or no
            network and no copy here.
    """
    if offline():
        return _cached_copy(repo, "the network is switched off (M2F_OFFLINE or HF_HUB_OFFLINE)", None)
    token = _token()
    api = f"{_endpoint()}/api/models/{repo}"
    try:
        answer = web.read_url(f"{api}?blobs=true", largest=LARGEST_ANSWER, timeout=TIMEOUT, token=token)
        commit, listed = _listing(documents.parse_json(answer, api, error=WeightsError), api)
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403, 404):
            return _cached_copy(repo, f"the server says {error.code} {error.reason}", error)
        raise _no_access(repo, error) from error
    except (OSError, http.client.HTTPException, web.Refused, WeightsError) as error:
        reason = getattr(error, "reason", None) or error
        return _cached_copy(repo, (str(reason).strip() or type(error).__name__).split("\n")[0][:200], error)
    wanted = wanted_files(repo, listed)
    return _in_their_cache(repo, commit, wanted) or _fetch_files(repo, commit, wanted, listed, progress, token)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _no_access(repo: str, error: urllib.error.HTTPError) -> WeightsError:
    if error.headers.get("X-Error-Code") == "GatedRepo":
        hint = "Do so on its page, then log in: hf auth login"
        return WeightsError(f"The hub repository {repo!r} wants you to accept its terms first.", hint=hint)
    hint = "For a file or folder, check the path; for a private repository, log in: hf auth login"
    return WeightsError(f"The hub has no repository {repo!r}, or it is private.", hint=hint)


def _listing(tree: Any, url: str) -> tuple[str, dict[str, _Stated]]:
    """The commit that a repository is at, and its files.

    Raises:
        WeightsError: the answer is not the hub's.
    """
    try:
        commit, siblings = tree["sha"], tree["siblings"]
        found = {entry["rfilename"]: _stated(entry) for entry in siblings}
        if re.fullmatch("[0-9a-f]{40}", commit) and all(isinstance(name, str) for name in found):
            return commit, found
    except (TypeError, KeyError, AttributeError, ValueError):
        pass  # of another form: refused below, like one of the right form with wrong values
    shown = json.dumps(tree)[:60]
    raise WeightsError(f"{url} answered {shown}, where the hub's list of files was expected.")


def _stated(entry: dict[str, Any]) -> _Stated:
    large = entry.get("lfs") or {}
    size, digest = large.get("size", entry.get("size")), large.get("sha256") or entry.get("blobId")
    is_hash = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", digest)
    return _Stated(size if type(size) is int and size >= 0 else None, digest if is_hash else None)


def _fetch_files(
    repo: str, commit: str, wanted: list[str], listed: dict[str, _Stated], progress: Progress | None, token: str | None
) -> Path:
    home = _home(repo)
    folder, sizes = home / commit, [listed[name].size for name in wanted]
    total = None if None in sizes else sum(sizes)  # type: ignore[arg-type]
    before = 0

    def told(record: Download) -> None:
        if progress:
            progress(Download(repo, before + record.received, total))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "lock"):
            for name in wanted:
                target, part = folder / name, folder / f"{name}.part"
                if not target.is_file():
                    url = f"{_endpoint()}/{repo}/resolve/{commit}/{name}"
                    by_hand = f"You can also fetch it elsewhere and put it at {target}."
                    known = _fetch(url, part, told, by_hand, stated=listed[name], token=token)
                    _check_digest(part, url, known.digest)
                    _validator(part).unlink(missing_ok=True)
                    part.replace(target)
                before += target.stat().st_size
            files.write_json(home / _NOTE, {"commit": commit, "files": wanted})
    except OSError as error:
        where = "M2F_HOME says where downloads go."
        raise WeightsError(f"Cannot write {folder}: {error.strerror or error}.", hint=where) from error
    return folder


def _home(repo: str) -> Path:
    return weights_dir() / "hub" / files.safe_name(repo.replace("/", "--"))


def _in_their_cache(repo: str, commit: str, wanted: list[str]) -> Path | None:
    """The folder of huggingface_hub's cache, where it has all files."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name, revision=commit) for name in wanted]
    return Path(found[0]).parent if all(isinstance(path, str) for path in found) else None  # type: ignore[arg-type]


def _cached_copy(repo: str, reason: str, cause: Exception | None) -> Path:
    from huggingface_hub import snapshot_download

    note = _home(repo) / _NOTE
    try:
        tree = documents.read_json(note, error=WeightsError)
        folder = note.parent / files.safe_name(str(tree["commit"]))
        if all((folder / files.safe_name(str(name))).is_file() for name in tree["files"]):
            return folder
    except (WeightsError, TypeError, KeyError):
        pass  # nothing of ours is here
    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=["config.json"]))
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError is both
        raise Unreachable(
            f"The repository {repo!r} is not in the local cache and cannot be fetched from {_endpoint()}: {reason}.",
            hint="You can also fetch it elsewhere (git clone, or its web page) and give m2f the folder.",
        ) from (cause or error)


def wanted_files(repo: str, names: Iterable[str]) -> list[str]:
    names = set(names)
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if "config.json" not in names or weights is None:
        missing = "config.json" if "config.json" not in names else "model.safetensors"
        raise WeightsError(f"The hub repository {repo!r} holds no transformers model: it has no {missing}.")
    wanted = [name for name in CONFIG_FILES if name in names]
    if not weights.endswith(".index.json"):
        return [*wanted, weights]
    stem, suffix = ("model-", ".safetensors") if "safetensors" in weights else ("pytorch_model-", ".bin")
    shards = sorted(n for n in names if re.fullmatch(r"[\w.-]+", n) and n.startswith(stem) and n.endswith(suffix))
    if len(shards) > MOST_SHARDS:
        raise WeightsError(f"The hub repository {repo!r} has its weights in {len(shards):,} files; that is no model.")
    return [*wanted, weights, *shards]
