"""The matrix of environments notices what does not work."""

from __future__ import annotations

import sys
from pathlib import Path

from compatibility.__main__ import CONDITIONS, Condition, run


def test_a_command_that_works_has_no_reason(tmp_path):
    for name in ("C locale", "ASCII console", "console of 20 columns", "closed input", "no home"):
        assert run(Path(sys.executable), "--version", tmp_path, CONDITIONS[name]) is None, name


def test_a_command_that_fails_has_its_last_line_as_the_reason(tmp_path):
    reason = run(Path(sys.executable), "predict missing.jpg --model nowhere", tmp_path, Condition())
    assert reason.startswith("m2f predict missing.jpg --model nowhere: exit code ")
