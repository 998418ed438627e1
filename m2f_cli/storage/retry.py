"""Errors of web servers and object stores: the ones that may pass are waited for, the others become one sentence.

Environment: `M2F_STORAGE_RETRY` is the number of seconds for which an action is tried again (default 60).
"""

from __future__ import annotations

import http.client
import os
import random
import socket
import ssl
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ConfigError, DataError, M2FError, MissingDependency
from ..runtime import web
from .uris import shown

VARIABLE = "M2F_STORAGE_RETRY"
DEFAULT = 60.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0  # seconds
_AWAY: dict[str, int] = {}  # hosts and buckets that stayed away, and for how many objects, since they last answered
_RANDOM = random.Random()  # its own, so that no seed of a run is touched
_PASSING_STATUS = (408, 425, 429)  # and all from 500 on
_PASSING_CODES = ("SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException")
_PASSING_KINDS = {  # classes of botocore and aiohttp, by name: they may not be installed
    "HTTPClientError",
    "ConnectionClosedError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerTimeoutError",
    "RemoteProtocolError",
    "TransportError",
    "ConnectTimeout",
    "ReadTimeout",
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
_OLD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "InvalidToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "RefreshError",
}
_PLACES = "where the store's own tools find them (environment variables, profiles)"
_RENEW = f"Renew them {_PLACES}."

Value = TypeVar("Value")


class MissingObject(DataError):
    """Error for an object that does not exist."""


class WrongAnswer(Exception):
    """Error of an answer that does not fit what was announced. Its message is a clause."""


@dataclass(frozen=True)
class Fault:
    """Reason why an action on a store failed.

    Attributes:
        reason: a clause for the message.
        hint: a sentence about the remedy.
        passes: True if the same action may succeed later.
        pause: seconds that the server asks to wait.
        kind: class of the error to raise.
    """

    reason: str
    hint: str | None = None
    passes: bool = False
    pause: float = 0.0
    kind: type[DataError] = DataError


def persistently(uri: str, what: str, action: Callable[[], Value]) -> Value:
    """Try an action, again and again while it fails for a reason that may pass.

    A store that stayed away is waited for half as long at each further object that is read, until it answers: a list
    may name a million of them.

    Args:
        uri: the object, for the message.
        what: what cannot be done, for the message: "be read", "be written".

    Raises:
        MissingObject: there is no such object.
        DataError: another reason that does not pass, or one that lasted longer than `M2F_STORAGE_RETRY`.
    """
    host = "/".join(uri.split("/", 3)[:3])
    patience = seconds() / 2 ** min(_AWAY.get(host, 0), 30) if what == "be read" else seconds()
    until, pause, tries = time.monotonic() + patience, _FIRST_PAUSE, 0
    while True:
        tries += 1
        try:
            value = action()
            _AWAY.pop(host, None)
            return value
        except M2FError:
            raise
        except ImportError as error:
            raise missing_package(error) from error
        except Exception as error:  # the libraries of stores raise anything
            fault = fault_of(error)
            wait = max(fault.pause, _RANDOM.uniform(pause / 2, pause))
            if not fault.passes or time.monotonic() + wait > until:
                if fault.passes:
                    _AWAY[host] = _AWAY.get(host, 0) + 1
                else:
                    _AWAY.pop(host, None)
                again = f" ({tries} times)" if tries > 1 else ""
                reason = _without_secrets(fault.reason, uri)
                raise fault.kind(f"{shown(uri)} cannot {what}: {reason}{again}.", hint=fault.hint) from error
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def seconds() -> float:
    """Return for how long an action is tried again.

    Raises:
        ConfigError: the environment variable is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "") or str(DEFAULT)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ConfigError(
            f"{VARIABLE} is {text!r}, where a number of seconds was expected.", hint=f"Set {VARIABLE}=60."
        )
    return value


def missing_package(error: ImportError) -> MissingDependency:
    """Return the error for a store whose package is not installed."""
    named = (getattr(each, "name", None) for each in _chain(error))
    return MissingDependency(next(filter(None, named), "fsspec"), "An object store", extra="storage")


def fault_of(error: BaseException) -> Fault:
    """Classify an error of urllib, fsspec, botocore, aiohttp, gcsfs or huggingface_hub."""
    chain = list(_chain(error))
    status, code = next((found for each in chain if (found := _status(each))[0] is not None), (None, ""))
    names = {kind.__name__ for each in chain for kind in type(each).__mro__} | {code}
    if isinstance(error, (WrongAnswer, web.Refused)):
        return Fault(str(error))
    if names & _NO_CREDENTIALS:
        return Fault("no credentials were found", f"Put them {_PLACES}; FSSPEC_S3_ANON=true reads public buckets.")
    if names & _OLD_CREDENTIALS:
        return Fault("its credentials have expired or are not accepted", _RENEW)
    if code == "NoSuchBucket":
        return Fault("there is no such bucket", "Check its name and region.", kind=MissingObject)
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return Fault("there is no such object", "Check its name.", kind=MissingObject)
    if status is not None and (status in _PASSING_STATUS or status >= 500 or code in _PASSING_CODES):
        hint = f"Try again later; {VARIABLE} says for how many seconds it is tried."
        return Fault(f"the server says {status} {code}".rstrip(), hint, passes=True, pause=_asked_pause(chain))
    if status in (401, 403) or (status is None and isinstance(error, PermissionError)):
        return Fault("permission is denied", "Ask its owner for access, or check the credentials.")
    if status is not None and 300 <= status < 400:
        return Fault(f"it redirects to an address that is not followed ({status})")
    if status is not None:
        return Fault(f"the server says {status} {code}".rstrip())
    return _fault_of_connection(chain, names)


def _fault_of_connection(chain: list[BaseException], names: set[str]) -> Fault:
    hint = f"Check the address and the network; {VARIABLE} says for how many seconds it is tried."
    error = chain[0]
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return Fault("the certificate of the server is not trusted", "Check the address and the certificates here.")
    if any(isinstance(each, socket.gaierror) for each in chain):
        return Fault("there is no such host", hint, passes=True)
    if any(isinstance(each, ConnectionRefusedError) for each in chain):
        return Fault("the connection is refused", hint, passes=True)
    if any(isinstance(each, TimeoutError) for each in chain):
        return Fault("no answer came in time", hint, passes=True)
    if "ConnectError" in names:  # of httpx, which does not keep the reason
        return Fault("it cannot be reached", hint, passes=True)
    passing = (ConnectionError, http.client.IncompleteRead, http.client.RemoteDisconnected, ssl.SSLError, EOFError)
    if names & _PASSING_KINDS or any(isinstance(each, passing) for each in chain):
        return Fault("the connection was cut", hint, passes=True)
    if isinstance(error, urllib.error.URLError):
        return Fault(f"it cannot be reached: {error.reason}", hint, passes=True)
    said = " ".join(str(error).split()).rstrip(".")[:200]
    return Fault(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, getattr(each, "reason", None)]


def _status(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status of an error and the store's own code for it; (None, "") where it has none."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return (int(status) if status else int(code) if code.isdecimal() else None), "" if code.isdecimal() else code
    for value in (getattr(response, "status_code", None), getattr(error, "code", None), getattr(error, "status", None)):
        if isinstance(value, (int, str)) and str(value).isdecimal() and 100 <= int(value) < 600:
            return int(value), ""
    return None, ""


def _asked_pause(chain: list[BaseException]) -> float:
    """Return the seconds of a Retry-After header, at most `_LONGEST_PAUSE`."""
    for error in chain:
        headers = getattr(error, "headers", None)
        text = headers.get("Retry-After", "") if headers is not None and hasattr(headers, "get") else ""
        if isinstance(text, str) and text.isdecimal() and len(text) < 9:
            return min(float(text), _LONGEST_PAUSE)
    return 0.0


def _without_secrets(text: str, uri: str) -> str:
    """Take a URI and its parts that are not shown out of a text of others."""
    text = text.replace(uri, shown(uri))
    query = uri.partition("?")[2]
    login = uri.partition("://")[2].partition("@")[0] if "@" in uri else ""
    for secret in (query, login, login.partition(":")[2]):
        if len(secret) > 2:
            text = text.replace(secret, "…")
    return shown(text) if "://" in text and "?" in text else text
