"""Download of Hugging Face repositories: the configuration and the weights of a transformers model.

Environment: that of download.py, and `HF_ENDPOINT`, which names a mirror of the hub. Files in the cache of
huggingface_hub (`HF_HOME`) are used too.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import M2FError, Unreachable, WeightsError
from ..runtime import documents, files, network, web
from .download import (
    TIMEOUT,
    Download,
    Progress,
    Stated,
    check_digest,
    fetch,
    finish,
    not_written,
    weights_dir,
)

CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
LARGEST_ANSWER = 16 << 20  # bytes of the hub's answer about a repository
MOST_SHARDS = 1000
_NOTE = "main.json"  # file that names the commit whose local copy is complete


def fetch_repo(repo: str, *, progress: Progress | None = None, needs_config: bool = True) -> Path:
    """Fetch the configuration and the weights of a repository, and return their folder.

    Safetensors are preferred. Every file has the size and the hash that the hub states. Without network, a complete
    local copy is used, either m2f's own or that in the cache of huggingface_hub.

    Args:
        needs_config: whether a repository without a config.json is refused.

    Raises:
        WeightsError: the repository does not exist, is not accessible or has no weights; a file differs from what the
            hub states; or there is neither network nor a local copy.
    """
    if network.is_offline():
        return _cached_copy(repo, network.SWITCHED_OFF, None)
    refuse_name(repo)
    token = access_token()
    api = f"{endpoint()}/api/models/{repo}"
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
    wanted = wanted_files(repo, listed, needs_config=needs_config)
    return _in_their_cache(repo, commit, wanted) or _fetch_files(repo, commit, wanted, listed, progress, token)


def refuse_name(repo: str, error: type[M2FError] = WeightsError) -> None:
    """Refuse a name that no repository of the hub can have.

    Raises:
        error: the hub has other rules for names.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as reason:
        raise error(f"The hub can have no repository {repo!r}: {str(reason).rstrip('.')}.") from reason


def endpoint() -> str:
    """Return the address of the hub, without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def access_token() -> str | None:
    """Return the access token of huggingface_hub: `HF_TOKEN`, or that of `hf auth login`; None without one."""
    from huggingface_hub import get_token

    return get_token()


def _no_access(repo: str, error: urllib.error.HTTPError) -> WeightsError:
    if error.headers.get("X-Error-Code") == "GatedRepo":
        hint = "Do so on its page, then log in: hf auth login"
        return WeightsError(f"The hub repository {repo!r} wants you to accept its terms first.", hint=hint)
    hint = "For a file or folder, check the path; for a private repository, log in: hf auth login"
    return WeightsError(f"The hub has no repository {repo!r}, or it is private.", hint=hint)


def _listing(tree: Any, url: str) -> tuple[str, dict[str, Stated]]:
    """Return the commit of a repository, and its files.

    Raises:
        WeightsError: the answer does not come from the hub.
    """
    try:
        commit, siblings = tree["sha"], tree["siblings"]
        stated_of = {entry["rfilename"]: _stated(entry) for entry in siblings}
        if re.fullmatch("[0-9a-f]{40}", commit) and all(isinstance(name, str) for name in stated_of):
            return commit, stated_of
    except (TypeError, KeyError, AttributeError, ValueError):
        pass  # another form is refused below, like wrong values in the right form
    shown = json.dumps(tree)[:60]
    raise WeightsError(f"{url} answered {shown}, where the hub's list of files was expected.")


def _stated(entry: dict[str, Any]) -> Stated:
    large = entry.get("lfs") or {}
    size, digest = large.get("size", entry.get("size")), large.get("sha256") or entry.get("blobId")
    is_hash = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", digest)
    return Stated(size if type(size) is int and size >= 0 else None, digest if is_hash else None)


def _fetch_files(
    repo: str, commit: str, wanted: list[str], listed: dict[str, Stated], progress: Progress | None, token: str | None
) -> Path:
    home = _home(repo)
    folder, sizes = home / commit, [listed[name].size for name in wanted]
    total = None if None in sizes else sum(sizes)  # type: ignore[arg-type]
    before = 0

    def report(record: Download) -> None:
        if progress:
            progress(Download(repo, before + record.received, total))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "lock"):
            for name in wanted:
                target, part = folder / name, folder / f"{name}.part"
                if not target.is_file():
                    url = f"{endpoint()}/{repo}/resolve/{commit}/{name}"
                    by_hand = f"You can also fetch it elsewhere and put it at {target}."
                    known = fetch(url, part, report, by_hand, stated=listed[name], token=token)
                    check_digest(part, url, known.digest)
                    finish(part, target)
                before += target.stat().st_size
            files.write_json(home / _NOTE, {"commit": commit, "files": wanted})
    except OSError as error:
        raise not_written(folder, error) from error
    return folder


def _home(repo: str) -> Path:
    return weights_dir() / "hub" / files.safe_name(repo.replace("/", "--"))


def _in_their_cache(repo: str, commit: str, wanted: list[str]) -> Path | None:
    """Return the folder in the cache of huggingface_hub, if that has all files, else None."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(repo, name, revision=commit) for name in wanted]
    return Path(paths[0]).parent if all(isinstance(path, str) for path in paths) else None  # type: ignore[arg-type]


def _cached_copy(repo: str, reason: str, cause: Exception | None) -> Path:
    from huggingface_hub import snapshot_download

    note = _home(repo) / _NOTE
    try:
        tree = documents.read_json(note, error=WeightsError)
        folder = note.parent / files.safe_name(str(tree["commit"]))
        if all((folder / files.safe_name(str(name))).is_file() for name in tree["files"]):
            return folder
    except (WeightsError, TypeError, KeyError):
        pass  # there is no copy in m2f's cache
    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=["config.json"]))
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError is both
        raise Unreachable(
            f"The repository {repo!r} is not in the local cache and cannot be fetched from {endpoint()}: {reason}.",
            hint=f"You can also fetch {CONFIG_FILES[0]} and {WEIGHT_FILES[0]} elsewhere (git clone, or its web page) "
            "and give m2f the folder that they are in.",
        ) from (cause or error)


def wanted_files(repo: str, names: Iterable[str], *, needs_config: bool = True) -> list[str]:
    names = set(names)
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if (needs_config and "config.json" not in names) or weights is None:
        missing = "config.json" if "config.json" not in names else "model.safetensors"
        raise WeightsError(f"The hub repository {repo!r} holds no transformers model: it has no {missing}.")
    wanted = [name for name in CONFIG_FILES if name in names]
    if not weights.endswith(".index.json"):
        return [*wanted, weights]
    stem, suffix = ("model-", ".safetensors") if "safetensors" in weights else ("pytorch_model-", ".bin")
    shards = sorted(n for n in names if re.fullmatch(r"[\w.-]+", n) and n.startswith(stem) and n.endswith(suffix))
    if len(shards) > MOST_SHARDS:
        raise WeightsError(
            f"The hub repository {repo!r} has its weights in {len(shards):,} files, too many for a model."
        )
    return [*wanted, weights, *shards]
