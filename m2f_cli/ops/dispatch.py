"""Operators that exist in several ways: how somebody says which one runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ways:
    """The implementations of an operator.

    of: what the operator is, in words. variable: the environment variable that chooses; "auto" leaves the choice.
    """

    of: str
    variable: str
    names: Sequence[str]

    def override(self) -> str | None:
        """What the environment asks for, if anything.

        Raises:
            ValueError: it is none of the names.
        """
        name = os.environ.get(self.variable, "auto")
        return None if name == "auto" else self.checked(name)

    def checked(self, name: str) -> str:
        """The name, if it is one.

        Raises:
            ValueError: it is none.
        """
        if name not in self.names:
            raise ValueError(f"{name!r} is no implementation of {self.of}: it is one of {', '.join(self.names)}")
        return name
