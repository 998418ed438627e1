"""Opening of http and https addresses, with checked redirects and time limits."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

MOST_REDIRECTS = 5
_LINKED = ("X-Linked-Etag", "X-Linked-Size")  # the hub's headers about a file that it redirects to


class Refused(Exception):
    """Error of an unacceptable answer of a server. Its message is a clause with the answer and what was expected."""


def open_url(
    url: str,
    headers: Mapping[str, str],
    *,
    timeout: float,
    token: str | None = None,
    login: str | None = None,
    method: str = "GET",
) -> Any:
    """Open an address as `urllib.request.urlopen` does.

    Args:
        timeout: seconds without a byte, and twice as many for everything before the body.
        token: sent to the host of `url` alone, not to the target of a redirect.
        login: "user:password", sent as `token` is.
        method: GET or HEAD.

    Raises:
        Refused: the address is of another kind, or redirects to one.
        urllib.error.URLError, http.client.HTTPException, OSError: as for `urlopen`.
    """
    _refuse_scheme(url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "m2f", **headers}, method=method)
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        if login:
            encoded = base64.b64encode(login.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {encoded}")
        return _opener().open(request, timeout=timeout)
    except ValueError as error:  # a redirect to an invalid address, or a header with a line break
        raise Refused(f"the address or the answer makes no sense: {error}") from error


def read_url(url: str, *, largest: int, timeout: float, token: str | None = None) -> bytes:
    """Read a short answer.

    Raises:
        Refused: as for `open_url`, or the answer is too long, or takes too long.
        urllib.error.URLError, http.client.HTTPException, OSError: as for `open_url`.
    """
    with open_url(url, {}, timeout=timeout, token=token) as answer, in_time(answer, 2 * timeout):
        if answer.status != 200:
            raise Refused(f"the server says {answer.status}, where 200 was expected")
        try:
            content = answer.read(largest + 1)
        except ValueError as error:  # http.client's own, of a chunk of a negative size
            raise Refused(f"the answer makes no sense: {error}") from error
    if len(content) > largest:
        raise Refused(f"more than {largest:,} bytes came, where a list of files was expected")
    return content


def linked(answer: Any, name: str) -> str | None:
    """Return a header of `_LINKED`, from the answer or from one on the way to it."""
    return answer.headers.get(name) or answer.headers.get(f"M2F-{name}")


def was_redirected(answer: Any) -> bool:
    return answer.headers.get("M2F-Redirected") is not None


def _refuse_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"it leads to {url[:80]!r}, where an address of http or https was expected")


def _is_here(url: str) -> bool:
    """Return True for an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MOST_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _refuse_scheme(newurl)
        if req.type == "https" and urlsplit(newurl).scheme == "http" and not _is_here(newurl):
            raise Refused(f"it leads from https to {newurl[:80]!r}, which nobody encrypts")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            fp.close()  # urllib would read the body of this answer, which may have no end
            before = getattr(req, "linked", {})
            following.linked = {**before, **{name: headers[name] for name in _LINKED if headers.get(name)}}
        return following

    def http_response(self, request: Any, response: Any) -> Any:
        """Copy the linked headers of earlier answers to the last one."""
        for name in (*_LINKED, "Redirected"):
            del response.headers[f"M2F-{name}"]
        for name, value in {**getattr(request, "linked", {}), **_marked(request)}.items():
            response.headers[f"M2F-{name}"] = value
        return response

    https_response = http_response


def _marked(request: Any) -> dict[str, str]:
    return {"Redirected": "yes"} if hasattr(request, "linked") else {}


@contextmanager
def in_time(connection: Any, seconds: float) -> Iterator[None]:
    """Cut a connection after some seconds, however steadily its bytes come.

    Raises:
        TimeoutError: it was cut.
    """
    sock = getattr(connection, "sock", None) or getattr(getattr(connection, "fp", None), "raw", None)
    sock = getattr(sock, "_sock", sock)
    is_over = threading.Event()
    timer = threading.Timer(seconds, _cut, [sock, is_over])
    timer.daemon = True
    timer.start()
    late = f"the answer was not whole after {seconds:.0f} seconds"
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise (TimeoutError(late) if is_over.is_set() else error) from error
    finally:
        timer.cancel()
    if is_over.is_set():
        raise TimeoutError(late)


def _cut(sock: Any, is_over: threading.Event) -> None:
    is_over.set()
    with suppress(OSError, AttributeError):  # it may be closed already
        sock.shutdown(socket.SHUT_RDWR)


class _InTime:
    """Connection whose answer has to begin in time."""

    def getresponse(self) -> http.client.HTTPResponse:
        with in_time(self, 2 * (self.timeout or 60)):  # type: ignore[attr-defined]
            return super().getresponse()  # type: ignore[misc]


class _Http(_InTime, http.client.HTTPConnection):
    pass


class _Https(_InTime, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_Https, req, context=self._context)  # type: ignore[attr-defined]


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener without the handlers of files, FTP and data, which urllib has by default."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HttpHandler(),
        _HttpsHandler(),
        Redirects(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
