"""The option by which a user says that the maker of a file is trusted; the commands that read such files share it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

TrustCode: TypeAlias = Annotated[
    bool,
    typer.Option("--trust-code", help="Let the checkpoint or run run code of its own. Only if you trust its maker."),
]
