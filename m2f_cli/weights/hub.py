"""Getting released weights: single files over https, and repositories of the Hugging Face hub.

Environment: `M2F_HOME` (default ~/.cache/m2f) is where files are kept, `M2F_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids
the network. Hub repositories live in huggingface_hub's own cache (`HF_HOME`, `HF_ENDPOINT`).
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import Unreachable, WeightsError

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4  # a cut connection is taken up again where it was cut
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
    target = weights_dir() / name
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


def _fetch(url: str, part: Path, progress: Progress | None, by_hand: str) -> None:
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            if _fetch_rest(url, part, progress):
                return
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
        except TimeoutError:
            reason = f"nothing came for {TIMEOUT:.0f} seconds"
        except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
            reason = f"the connection was cut ({error})"
    raise WeightsError(
        f"{url} could not be downloaded: {reason}, {ATTEMPTS} times.",
        hint=f"Try again: it goes on where it stopped. {by_hand}",
    )


def _fetch_rest(url: str, part: Path, progress: Progress | None) -> bool:
    """Append what is missing; whether the file is complete then."""
    validator = _read_validator(part)
    have = part.stat().st_size if part.is_file() and validator else 0
    headers = {"User-Agent": "m2f"}
    if have:
        headers.update({"Range": f"bytes={have}-", "If-Range": validator})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != 206 or not _continues(answer, have):
            have = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _validator(part).write_text(json.dumps([url, _etag(answer)]), encoding="utf-8")
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(Download(part.name.removesuffix(".part"), have, total))
    return total is None or have == total


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
    hashes = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in hashes:
                digest.update(chunk)
    return hashes[0].hexdigest(), hashes[1].hexdigest()


def _check_hash(part: Path, url: str, prefix: str | None) -> None:
    if prefix is None:
        return
    found = file_hashes(part)
    if not any(digest.startswith(prefix.lower()) for digest in found):
        part.unlink()
        _validator(part).unlink(missing_ok=True)
        raise WeightsError(
            f"{url} arrived with another content than published: neither its SHA-256 ({found[0][:8]}…) nor its MD5 "
            f"({found[1][:8]}…) begins with {prefix}. The copy was deleted.",
            hint="Try again; if it happens again, the file on the server was changed.",
        )


# --- repositories of the hub ------------------------------------------------------------------------------------------

CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = (  # in order of preference
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)


def fetch_repo(repo: str, *, progress: Progress | None = None) -> Path:
    """The folder with a hub repository's configuration and weights (safetensors where it has them).

    Without network a complete copy in huggingface_hub's cache will do.

    Raises:
        WeightsError: no such repository, no access, no weights in it, or no network and no copy here.
    """
    from huggingface_hub import errors as hub_errors

    if offline():
        return _cached_copy(repo, "the network is switched off (M2F_OFFLINE or HF_HUB_OFFLINE)", None)
    try:
        return _snapshot(repo, progress)
    except hub_errors.GatedRepoError as error:
        hint = "Do so on its page, then log in: hf auth login"
        raise WeightsError(f"The hub repository {repo!r} wants you to accept its terms first.", hint=hint) from error
    except hub_errors.RepositoryNotFoundError as error:
        hint = "For a file or folder, check the path; for a private repository, log in: hf auth login"
        raise WeightsError(f"The hub has no repository {repo!r}, or it is private.", hint=hint) from error
    except _network_errors() as error:
        return _cached_copy(repo, (str(error).strip() or type(error).__name__).split("\n")[0][:200], error)


def _snapshot(repo: str, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    siblings = HfApi().model_info(repo, timeout=TIMEOUT).siblings or ()
    wanted = _wanted(repo, [file.rfilename for file in siblings])
    return Path(snapshot_download(repo, allow_patterns=wanted, tqdm_class=_quiet_bar(repo, progress)))


def _cached_copy(repo: str, reason: str, cause: Exception | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=["config.json"]))
    except (LocalEntryNotFoundError, OSError) as error:
        endpoint = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
        raise Unreachable(
            f"The repository {repo!r} is not in the local cache and cannot be fetched from {endpoint}: {reason}.",
            hint="You can also fetch it elsewhere (git clone, or its web page) and give m2f the folder.",
        ) from (cause or error)


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises without network: its HTTP library changed from requests to others over time."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    ours = ("huggingface_hub", "builtins")
    library = [base for base in HfHubHTTPError.__mro__ if base.__module__.split(".")[0] not in ours]
    return (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *library[-1:])


def _wanted(repo: str, names: Iterable[str]) -> list[str]:
    names = set(names)
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if "config.json" not in names or weights is None:
        missing = "config.json" if "config.json" not in names else "model.safetensors"
        raise WeightsError(f"The hub repository {repo!r} holds no transformers model: it has no {missing}.")
    wanted = [name for name in CONFIG_FILES if name in names]
    if not weights.endswith(".index.json"):
        return [*wanted, weights]
    stem, suffix = ("model-", ".safetensors") if "safetensors" in weights else ("pytorch_model-", ".bin")
    return [*wanted, weights, *sorted(n for n in names if n.startswith(stem) and n.endswith(suffix))]


def _quiet_bar(repo: str, progress: Progress | None) -> type:
    """A tqdm that prints nothing and passes on what it is told of bytes."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "mininterval": 0.0})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if progress and self.counts_bytes:
                progress(Download(repo, int(self.n), int(self.total) if self.total else None))
            return shown

    return Bar
