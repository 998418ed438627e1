"""The errors that m2f raises on purpose. Each is one sentence for a person and one exit code for a script.

M2FError                exit 1   anything that went wrong at run time
├── ConfigError         exit 2   a preset, option or argument that makes no sense
├── DataError           exit 3   an image, annotation or folder that cannot be used
├── WeightsError        exit 4   a checkpoint that is missing, unsafe, or does not fit
│   └── Unreachable     exit 4   a checkpoint that cannot be fetched from where it is published
├── ExportError         exit 5   an exported file that cannot be written or is wrong
└── MissingDependency   exit 1   an optional package that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST_NAME = 200  # characters of an unknown name that an error shows


class M2FError(Exception):
    """Base class of all errors that m2f raises on purpose.

    Args:
        message: one sentence about the problem, with the offending value.
        hint: one sentence about the remedy, shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle needs: a subclass may have other arguments than a message and a hint."""
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(kind: type[M2FError], arguments: tuple[Any, ...], state: dict[str, Any]) -> M2FError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class ConfigError(M2FError):
    """Error for a preset, an option or an argument that makes no sense."""

    exit_code = 2


class DataError(M2FError):
    """Error for an image, an annotation or a folder that cannot be used."""

    exit_code = 3


class WeightsError(M2FError):
    """Error for a checkpoint that is missing, unsafe, or does not fit the network."""

    exit_code = 4


class Unreachable(WeightsError):
    """Error for weights that cannot be fetched, because the place where they are published cannot be reached."""


class ExportError(M2FError):
    """Error for an exported file that cannot be written, or that differs from the model."""

    exit_code = 5


class MissingDependency(M2FError):
    """Error for an optional package that is needed and not installed.

    Args:
        package: the distribution to install, as pip spells it.
        purpose: the feature that needs the package. It is the subject of the message.
        extra: the extra of m2f-cli that installs the package, if any.
    """

    def __init__(self, package: str, purpose: str, extra: str | None = None):
        command = f"pip install 'm2f-cli[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package}, which is not installed.", hint=f"Run: {command}")


@contextmanager
def about(source: Any) -> Iterator[None]:
    """Put the name of a file or repository in front of errors of this block that do not have it."""
    try:
        yield
    except M2FError as error:
        if str(source) not in error.message:
            error.message = f"{source}: {error.message}"
            error.args = (error.message,)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that a device or the machine has too little memory; PyTorch has several for it."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_of_torch)


def nearest(value: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the names in `known` that look most like `value`, best first."""
    folded = {name.casefold(): name for name in known}
    matches = difflib.get_close_matches(value.casefold(), folded, n=count, cutoff=0.5)
    return [folded[name] for name in matches]


def unknown_name(kind: str, value: str, known: Iterable[str], *, error: type[M2FError] = ConfigError) -> M2FError:
    """Return the error for an unknown name. Its hint has the nearest names, or all names if there are 12 at most."""
    known = sorted(known)
    close = nearest(value, known)
    if close:
        hint = f"Did you mean {' or '.join(close)}?"
    elif len(known) <= 12:
        hint = f"Known: {', '.join(known) or 'none'}."
    else:
        hint = f"There are {len(known)} known names, such as {', '.join(known[:3])}."
    shown = value if len(value) <= LONGEST_NAME else f"{value[:LONGEST_NAME]}…"
    return error(f"There is no {kind} named {shown!r}.", hint=hint)
