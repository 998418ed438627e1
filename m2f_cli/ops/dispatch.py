"""Choice of the implementation of an operator, by the environment, the device and whether a graph is being made.

`M2F_OPS=reference` asks for the reference of every operator, `M2F_OPS=linear:blas,attention:sdpa` for single
implementations. `OPERATORS` lists the names. Each operator also has an older variable of its own, which counts where
`M2F_OPS` does not name the operator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from ..errors import ConfigError

VARIABLE = "M2F_OPS"


@dataclass(frozen=True)
class Implementations:
    """Implementations of one operator.

    Attributes:
        operator: the name of the operator in `M2F_OPS`.
        names: the implementations; the first is the reference.
        older_variable: an environment variable for this operator alone.
    """

    operator: str
    names: tuple[str, ...]
    older_variable: str

    def override(self) -> str | None:
        """Return the implementation that the environment asks for, or None.

        Raises:
            ConfigError: a variable names an operator or an implementation that does not exist.
        """
        found = _requested().get(self.operator)
        if found is None:
            name = os.environ.get(self.older_variable, "auto")
            found = _checked(self.older_variable, self.operator, name)
        return None if found == "auto" else found

    def variable(self) -> str:
        """Return the name of the environment variable that decides: the older one only where it is set alone."""
        asked = os.environ.get(VARIABLE, "")
        is_older = self.older_variable in os.environ and self.operator not in asked and "reference" not in asked
        return self.older_variable if is_older else VARIABLE

    def checked(self, name: str) -> str:
        """Return the name if it is one of the implementations.

        Raises:
            ValueError: it is not.
        """
        if name not in self.names:
            raise ValueError(f"{name!r} is no implementation of {self.operator}: choose {', '.join(self.names)}")
        return name


OPERATORS = {
    each.operator: each
    for each in (
        Implementations("deformable_attention", ("reference", "bag", "gather", "triton"), "M2F_DEFORM_ATTN"),
        Implementations("linear", ("blas", "fused"), "M2F_LINEAR"),
        Implementations("feed_forward", ("layers", "own"), "M2F_FEED_FORWARD"),
        Implementations("attention", ("sdpa", "products"), "M2F_ATTENTION"),
        Implementations("conv", ("plain", "fused"), "M2F_CONV"),
        Implementations("group_norm", ("plain", "chunked"), "M2F_GROUP_NORM"),
    )
}


def _requested() -> dict[str, str]:
    """Return what `M2F_OPS` asks for, by operator; later entries win."""
    found: dict[str, str] = {}
    text = os.environ.get(VARIABLE)
    for entry in filter(None, map(str.strip, text.split(","))) if text else ():
        operator, colon, name = entry.partition(":")
        if entry in ("reference", "auto"):
            found |= {each: OPERATORS[each].names[0] if entry == "reference" else "auto" for each in OPERATORS}
        elif operator not in OPERATORS or not colon:
            raise ConfigError(
                f"{VARIABLE} has the entry {entry!r}, which names no operator.",
                hint=f"Write reference, or operator:implementation with one of {', '.join(OPERATORS)}.",
            )
        else:
            found[operator] = _checked(VARIABLE, operator, name)
    return found


def _checked(variable: str, operator: str, name: str) -> str:
    known = OPERATORS[operator].names
    if name not in ("auto", *known):
        raise ConfigError(
            f"{variable} asks for {name!r}, which is no implementation of {operator}.",
            hint=f"Choose one of {', '.join(known)}, or auto.",
        )
    return name


_plain = ContextVar("plain", default=False)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Compute operators inside as an exported graph would: PyTorch's documented ones, all rows at once."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_tracing() -> bool:
    """Return True while PyTorch makes a graph, whose sizes may be symbols, or inside `plain_operators`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or _plain.get()


is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first is new in torch 2.7
