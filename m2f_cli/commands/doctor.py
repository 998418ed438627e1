"""m2f doctor: report what this machine has, what m2f will use and what is missing."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import typer

from .. import console
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..workflows.doctor import DoctorFinding


@help_page(
    "m2f doctor",
    "m2f doctor --json",
)
def doctor(as_json: opt.AsJson = False) -> None:
    """Examine this machine: packages, devices, caches, and whether the operators compute right.

    Exit code 1: something that m2f needs is missing or broken.
    """
    from ..workflows.doctor import diagnose

    findings = diagnose()
    problems = [finding for finding in findings if finding.status == "problem"]
    if as_json:
        console.emit_json({"problems": len(problems), "findings": [dataclasses.asdict(each) for each in findings]})
    else:
        _show(findings)
        console.out(verdict(problems))
    if problems:
        raise typer.Exit(1)


def verdict(problems: list[DoctorFinding]) -> str:
    """Return the summary in the last line: the problems, or a sentence that there are none."""
    if not problems:
        return "everything that m2f needs is here"
    named = "; ".join(f"{each.name} ({each.group}): {each.value}" for each in problems)
    return f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}: {named}"


def _show(findings: list[DoctorFinding]) -> None:
    """Show a table per group, with its name above the first column, where a pipe has it, too."""
    for group, members in itertools.groupby(findings, key=lambda finding: finding.group):
        rows = [[each.name, each.value, each.status, each.hint] for each in members]
        columns = [group, "found", "status", "what to do"]
        if not any(each[-1] for each in rows):
            rows, columns = [each[:-1] for each in rows], columns[:-1]
        console.show_table("", columns, rows)
