"""The errors that m2f raises on purpose. Each is one sentence for a person and one exit code for a script.

M2FError                exit 1   anything that went wrong at run time
├── ConfigError         exit 2   a preset, option or argument that makes no sense
├── DataError           exit 3   an image, annotation or folder that cannot be used
├── WeightsError        exit 4   a checkpoint that is missing, unsafe, or does not fit
│   └── Unreachable     exit 4   …because there is no way to where it is published
├── ExportError         exit 5   an exported file that cannot be written or is wrong
└── MissingDependency   exit 1   an optional package that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M2FError(Exception):
    """Base of all errors that m2f raises on purpose.

    Args:
        message: what is wrong, with the offending value in it; one sentence.
        hint: what to do about it; one sentence, shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigError(M2FError):
    """A preset, an option or an argument makes no sense."""

    exit_code = 2


class DataError(M2FError):
    """An image, an annotation or a folder cannot be used."""

    exit_code = 3


class WeightsError(M2FError):
    """A checkpoint is missing, unsafe, or does not fit the network."""

    exit_code = 4


class Unreachable(WeightsError):
    """Weights cannot be fetched, because there is no way to where they are published."""


class ExportError(M2FError):
    """An exported file cannot be written, or differs from the model."""

    exit_code = 5


class MissingDependency(M2FError):
    """An optional package is needed and not installed.

    Args:
        package: the distribution to install, as pip spells it.
        purpose: what needs it, for the sentence.
        extra: the extra of m2f-cli that brings it, when there is one.
    """

    def __init__(self, package: str, purpose: str, extra: str | None = None):
        command = f"pip install 'm2f-cli[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package}, which is not installed.", hint=f"Run: {command}")


def nearest(value: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names in `known` that look most like `value`, best first."""
    known = list(known)
    folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(value.casefold(), folded, n=count, cutoff=0.5)
    return [folded[name] for name in found]


def unknown_name(kind: str, value: str, known: Iterable[str], *, error: type[M2FError] = ConfigError) -> M2FError:
    """The error for a name that nobody knows: says the value, the nearest names, or all of them when they are few."""
    known = sorted(known)
    close = nearest(value, known)
    if close:
        hint = f"Did you mean {' or '.join(close)}?"
    elif len(known) <= 12:
        hint = f"Known: {', '.join(known) or 'none'}."
    else:
        hint = f"There are {len(known)} known names, such as {', '.join(known[:3])}."
    return error(f"There is no {kind} named {value!r}.", hint=hint)
