"""m2f reproduce: published rows again, from their released weights, judged."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..config.published import decimals
from ..errors import unknown_name

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalProgress
    from ..workflows.reproduce import Check, Reproduced, ReproduceOptions

PRECISIONS = ("fp32", "bf16", "fp16")
ROW_FAILED = 1
COLUMNS = ["row", "figure", "published", "measured", "difference", "verdict"]


def reproduce(
    rows: Annotated[list[str], typer.Argument(metavar="ROW", help="Presets with released weights: m2f presets list.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Annotated pictures; default: in $DETECTRON2_DATASETS.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder per row; stopped ones go on.")] = Path(
        "runs/reproduce"
    ),
    tta: Annotated[
        bool | None,
        typer.Option("--tta/--no-tta", help="Also at several sizes, mirrored; default: where that was published."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N pictures: shows figures, judges nothing.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, …")] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="FORMAT", help=f"Number format of the network: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read, and as many that finish results.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fetch the released weights of published rows, evaluate them on their data, and say whether the figures come out.

    A figure passes within 0.1 of the published one, both rounded to its digits. Exit code 1: a row failed.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    from ..workflows import reproduce as core

    options = core.ReproduceOptions(data, device, precision, limit, workers, tta)
    rows = list(dict.fromkeys(rows))
    with console.downloads() as fetched:
        core.make_ready(rows, options, fetched)
    found = [_one(name, options, out / name, as_json) for name in rows]
    if as_json:
        console.emit_json({"rule": core.RULE, "rows": [row.to_dict() for row in found]})
    else:
        _print(found, core.RULE)
    if any(row.verdict == core.FAIL for row in found):
        raise typer.Exit(ROW_FAILED)


def _one(name: str, options: ReproduceOptions, folder: Path, as_json: bool) -> Reproduced:
    from ..workflows import reproduce as core

    with ExitStack() as stack:
        advance: Any = None

        def start(what: str, count: int) -> None:
            nonlocal advance
            stack.close()
            advance = stack.enter_context(console.progress(what, count))

        def show(step: EvalProgress) -> None:
            advance(step.message and f"{step.name}: {step.message}")

        try:
            command = ["m2f", *sys.argv[1:]]
            row = core.reproduce(name, options, folder, command=command, on_start=start, on_progress=show)
        except KeyboardInterrupt:
            console.note(f"To go on: the same command. What is done is in {folder}.")
            raise
    for remark in row.notes:
        console.note(remark)
    return row


def _print(found: list[Reproduced], rule: str) -> None:
    table = [[row.preset, check.label, *_figures(check), check.verdict] for row in found for check in row.checks]
    console.show_table(f"Reproduced: {rule}", COLUMNS, table)
    for row in found:
        speed = f", {row.images_per_second:.2f} pictures/s on {row.device}" if row.images_per_second else ""
        failed = f", {row.failed} pictures failed" if row.failed else ""
        console.out(f"{row.preset}: {row.verdict}{failed}{speed}")


def _figures(check: Check) -> list[str]:
    published, measured = check.published, check.measured
    difference = "-" if published is None or measured is None else f"{measured - published:+.2f}"
    said = "-" if published is None else f"{published:.{decimals(published)}f}"
    return [said, "-" if measured is None else f"{measured:.2f}", difference]
