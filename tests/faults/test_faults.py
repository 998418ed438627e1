"""Whatever goes wrong in the middle of a command: it is told in one sentence, and the next start makes it good.

The default suite has some faults of each command, `-m slow` all kinds of each; `python -m faults` has any number.
"""

from __future__ import annotations

import sys
from random import Random

import pytest
from faults.__main__ import disturb
from faults.harness import Bench, Runner, can_mount
from faults.kinds import KINDS, NEED_A_DISK
from faults.scenarios import SCENARIOS, make_given

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, /proc and limits of Linux")
QUICK = {
    "predict": ["vanished_image"],
    "eval": ["killed_before_operation"],
    "data convert to coco-instance, 1 workers": ["short_write"],
}


@pytest.fixture(scope="module")
def runner():
    with Runner() as started:
        yield started


@pytest.fixture(scope="module")
def given(tmp_path_factory, runner):
    return make_given(tmp_path_factory.mktemp("given"), runner)


def test_a_few_faults_of_each_command(tmp_path, runner, given):
    """One test, because the server and the model are made once."""
    for scenario in SCENARIOS:
        if scenario.name in QUICK:
            (tmp_path / scenario.name).mkdir()
            bench, draw = Bench(runner, scenario, tmp_path / scenario.name, given), Random(scenario.name)
            for kind in QUICK[scenario.name]:
                assert disturb(bench, kind, draw), "the fault has no text"  # `Lost` is what this test looks for


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_all_kinds_of_faults(tmp_path, runner, given, scenario):
    bench, draw, has_disks = Bench(runner, scenario, tmp_path, given), Random(1), can_mount(given)
    for kind in scenario.faults:
        if has_disks or kind not in NEED_A_DISK:
            assert disturb(bench, kind, draw), "the fault has no text"  # `Lost` is what this test looks for


def test_each_kind_of_fault_has_a_scenario():
    assert {kind for scenario in SCENARIOS for kind in scenario.faults} == set(KINDS)
    assert set(QUICK) < {scenario.name for scenario in SCENARIOS}
