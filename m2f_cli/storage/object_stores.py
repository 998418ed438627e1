"""Objects of S3, Google Cloud Storage and the Hugging Face hub, by fsspec. Credentials come from the usual places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .info import Info
from .retry import WrongAnswer, fault_of
from .uris import scheme_of

_PATIENCE = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}  # `retry` tries again
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": _PATIENCE}}
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "oid", "LastModified", "mtime")


def read(uri: str, limit: int, start: int | None, stop: int | None) -> bytes:
    """Read an object, or its bytes from `start` to `stop`; at most `limit` + 1 of them."""
    store, path = _opened(uri)
    first = start or 0
    end = first + limit + 1
    try:
        content: bytes = store.cat_file(path, start=first, end=end if stop is None else min(stop, end))
    except Exception as error:
        if first == 0 and "416" in fault_of(error).reason:  # a part of nothing
            return b""
        raise
    if stop is not None and len(content) > stop - first:
        raise WrongAnswer("the store's answer is not the part that was asked for")
    return content


def info(uri: str) -> Info:
    store, path = _opened(uri)
    found = store.info(path)
    if found.get("type") == "directory":
        raise FileNotFoundError(path)
    return _info(found)


def find(uri: str) -> Iterator[tuple[str, Info]]:
    """Yield the objects below a prefix, sorted, with their sizes and versions."""
    scheme = scheme_of(uri)
    store, path = _opened(uri)
    folder = path.rstrip("/") + "/"
    found = store.find(folder.rstrip("/"), detail=True)
    if not found:
        store.ls(path.partition("/")[0])  # tells whether there is such a bucket
    for name in sorted(found):
        if name.startswith(folder) and not name.endswith("/"):  # "/": the mark of an empty folder
            yield f"{scheme}://{name}", _info(found[name])


def write(uri: str, content: bytes | Path) -> None:
    """Write an object. Stores show it when it is whole."""
    store, path = _opened(uri)
    if isinstance(content, Path):
        store.put_file(str(content), path)
    else:
        store.pipe_file(path, content)


def remove(uri: str) -> None:
    store, path = _opened(uri)
    store.rm_file(path)


def _opened(uri: str) -> tuple[Any, str]:
    import fsspec

    scheme = scheme_of(uri)
    store = fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS.get(scheme, {}))
    return store, uri.partition("://")[2]


def _info(found: dict[str, Any]) -> Info:
    version = next((str(found[key]).strip('"') for key in _VERSIONS if found.get(key)), None)
    size = found.get("size")
    return Info(int(size) if size is not None else None, version)
