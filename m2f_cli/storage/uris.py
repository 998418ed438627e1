"""URIs: which are allowed, and how they are shown without their secrets."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import DataError
from ..runtime.text import visible_line

WEB = ("http", "https")
STORES = ("s3", "gs", "hf")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: one is a drive
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_LOGIN_CUT_OFF = re.compile(r":(?!\d*$)")  # a password with a slash, so that the host seems to end in it
LONGEST = 8192  # characters


def is_uri(text: str) -> bool:
    """Return True for text such as s3://bucket/name, of any scheme; False for a path."""
    return _URI.match(text) is not None


def place_of(text: str | Path) -> str | Path:
    """Return a URI as it is, and anything else as a path."""
    return text if isinstance(text, Path) or is_uri(text) else Path(text)


def shown(uri: str) -> str:
    """Return a URI as messages and files may have it: without user, password, query and control characters.

    A path stays as it is, but for control characters.
    """
    text = uri[:LONGEST]
    if not is_uri(text):
        return visible_line(text)
    scheme, _, rest = text.partition("://")
    rest = rest.partition("?")[0]
    if scheme.lower() in WEB:
        rest = rest.partition("#")[0]
    host, slash, path = rest.partition("/")
    if _LOGIN_CUT_OFF.search(host) and "@" in path:
        host, slash, path = path.rpartition("@")[2].partition("/")
    return visible_line(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, in small letters.

    Raises:
        DataError: no URI that may be read: another scheme, several in one, no host, or control characters.
    """
    where = shown(uri)
    scheme = uri.partition("://")[0].lower()
    if scheme == "file":
        raise DataError(f"{where} is the address of a local file.", hint="Give its path.")
    if scheme not in (*WEB, *STORES):
        known = ", ".join(f"{each}://" for each in (*WEB, *STORES))
        raise DataError(f"{where} has a scheme that is not read.", hint=f"Known: {known}.")
    if "::" in uri:
        raise DataError(f"{where} chains several addresses by '::', which is not followed.", hint="Give one address.")
    if len(uri) > LONGEST or _CONTROLS.search(uri):
        raise DataError(f"{where[:200]} is no address: it is too long or has control characters.")
    try:
        parts = urlsplit(uri)
        host, has_login = parts.hostname, "@" in parts.netloc
        _ = parts.port
    except ValueError as error:
        raise DataError(f"{where} is no address: its host or port makes no sense.") from error
    if not host:
        raise DataError(f"{where} is no address: it names no host or bucket.")
    if has_login and scheme not in WEB:
        hint = "Credentials come from the environment or from the store's own files."
        raise DataError(f"{where} has credentials in it, which are not used.", hint=hint)
    return scheme


def login_of(uri: str) -> tuple[str, str | None]:
    """Split "user:password" off the address of a web server."""
    parts = urlsplit(uri)
    login, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), unquote(login) if login else None


def name_of(uri: str) -> str:
    """Return the last part of the path of a URI or file, for example photo.jpg."""
    text = shown(uri) if is_uri(uri) else uri
    return re.split(r"[\\/]", text.rstrip("/\\"))[-1]
