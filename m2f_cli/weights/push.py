"""Upload of files to a repository of the Hugging Face hub.

Environment: `HF_ENDPOINT`, as in hub.py, and `HF_TOKEN`. The access token goes to the hub alone; it is neither shown
nor written.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, ExportError
from ..runtime import network
from ..version import __version__
from . import hub

PATIENCE = 120.0  # seconds without a byte from the hub, after which the upload is given up
_ANSWERS = {  # status of HTTP: the meaning, and the remedy
    401: ("does not accept the access token", "Log in again (hf auth login)."),
    403: (
        "does not let this access token write there",
        "Take a name of your own, or a token with write access (hf auth login).",
    ),
    404: (
        "has no such repository, or hides it from this access token",
        "Check the name, and whether the token has write access.",
    ),
    409: ("says that somebody else is changing the repository", "Wait a moment."),
}


def check_push(repo: str) -> None:
    """Refuse an upload that cannot succeed, before anything is computed. Nobody is contacted.

    Raises:
        ConfigError: no repository can have that name, the network is switched off, or there is no access token.
    """
    if repo.count("/") != 1:
        raise ConfigError(
            f"--push takes OWNER/NAME, not {repo[:200]!r}.", hint="OWNER is you or your organisation on the hub."
        )
    hub.refuse_name(repo, ConfigError)
    if network.is_offline():
        raise ConfigError(
            f"{repo} cannot be pushed to: {network.SWITCHED_OFF}.",
            hint="Leave --push out, and push the folder later: hf upload OWNER/NAME FOLDER",
        )
    if not hub.access_token():
        raise ConfigError(
            f"{repo} cannot be pushed to without an access token of {hub.endpoint()}.",
            hint="Log in (hf auth login), or set HF_TOKEN to a token with write access.",
        )


def push_files(folder: Path, names: Sequence[str], repo: str, *, private: bool = False) -> str:
    """Upload files to a repository, which is made if there is none. Return the address of the repository.

    Args:
        folder: folder of the files.
        names: the files, relative to `folder`. Others stay on this machine.
        repo: "OWNER/NAME", see `check_push`.
        private: make the repository private. By default the hub decides: public, unless an organisation has a rule.

    Raises:
        ExportError: the hub refuses or cannot be reached, or the repository is public and `private` is set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the errors of the HTTP client, whichever that is. RuntimeError: the hub's storage refuses.
    failures = (*HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)
    api = HfApi(endpoint=hub.endpoint(), token=hub.access_token())
    try:
        with _limited_silence():
            api.create_repo(repo, private=private or None, exist_ok=True)
            is_public = private and not api.model_info(repo).private
            if not is_public:
                message = f"Export of m2f {__version__}"
                api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=[*names], commit_message=message)
    except failures as error:
        raise _not_pushed(folder, repo, error) from error
    if is_public:
        raise ExportError(
            f"{folder} is exported, but not pushed: {repo} exists and is public, and --private was asked for.",
            hint="Make it private on its page, or choose another name.",
        )
    return f"{hub.endpoint()}/{repo}"


@contextmanager
def _limited_silence() -> Iterator[None]:
    """Limit the time that huggingface_hub waits for an answer. By itself it waits for ever.

    Its versions before 1.0 know no such limit.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    before = getattr(session, "timeout", None)
    session.timeout = PATIENCE
    try:
        yield
    finally:
        session.timeout = before


def _not_pushed(folder: Path, repo: str, error: BaseException) -> ExportError:
    again = f"Then push it again: hf upload {repo} {shlex.quote(str(folder))}"
    status = _status_of(error)
    if status in _ANSWERS:
        meaning, remedy = _ANSWERS[status]
    else:
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        kind = f"answers with status {status}" if status else "gives no usable answer"
        meaning, remedy = f"{kind} ({said.rstrip('.')[:200]})", "Look at what it says, or wait."
    return ExportError(f"{folder} is exported, but not pushed: {hub.endpoint()} {meaning}.", hint=f"{remedy} {again}")


def _status_of(error: BaseException | None) -> int | None:
    """Return the status of the HTTP answer that an error, or the error that caused it, is about."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
