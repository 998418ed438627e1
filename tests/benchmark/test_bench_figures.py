"""What benchmarks count and sum up: ratios, stages, memory, energy, FLOPs; no test here looks at a clock."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.parts import tiny_config
from torch import nn

from m2f_cli.benchmark import machine
from m2f_cli.benchmark import statistics as stats
from m2f_cli.benchmark.case import Case
from m2f_cli.benchmark.flops import parameters_of
from m2f_cli.benchmark.stages import Stages, split
from m2f_cli.model import build
from m2f_cli.runtime.memory import Memory

CPU = torch.device("cpu")
SIZE = (64, 96)
CASE = Case(size=SIZE, images=2)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_of_medians_and_its_interval_is_over_pairs():
    ours_, theirs = [1.0, 2.0, 9.0], [3.0, 6.0, 27.0]  # every round: exactly three times
    found = stats.ratio(theirs, ours_)
    assert found["value"] == 3.0
    assert found["low"] == found["high"] == pytest.approx(3.0)  # unpaired, it would be wide
    twice = stats.ratio([*theirs, *theirs], [*ours_, *ours_])
    assert twice["interval"] == "95 %" and twice["low"] == twice["high"] == pytest.approx(3.0)
    noisy = stats.ratio([3.0, 5.0, 4.0, 4.5, 3.5, 4.0], [1.0, 1.2, 0.9, 1.1, 1.0, 1.0])
    assert noisy["low"] < noisy["value"] == 4.0 < noisy["high"]
    assert stats.between(noisy).startswith(" (95 %: ") and stats.between(stats.ratio([2.0], [1.0])) == ""
    few = stats.ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])  # too few for an interval: the range of the rounds
    assert few == {"value": 3.0, "low": 2.0, "high": 4.0, "interval": "3 rounds"}
    assert stats.between(few) == " (3 rounds: 2.00 to 4.00)"
    with pytest.raises(ValueError, match="2 and 1"):
        stats.ratio([1.0, 2.0], [1.0])


def test_summary_and_difference():
    assert stats.summary([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert stats.difference(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == {"share": 0.25}
    assert stats.difference(np.array([1.0, 2.0]), np.array([1.5, 2.0])) == {"largest": 0.5, "mean": 0.25}
    nan, inf = float("nan"), float("inf")
    assert stats.difference(np.array([nan, 1.0, 2.0, inf]), np.array([1.0, nan, nan, 3.0])) == {"not finite": 1.0}
    assert stats.difference(np.array([nan, 1.0]), np.array([nan, 1.0])) == {"not finite": 0.0}
    assert stats.most({"not finite": 0.5}) == stats.most({"shapes": [[1], [2]]}) == inf
    assert stats.most({"share": 0.25}) == 0.25 and stats.most({"largest": 0.5, "mean": 0.1}) == 0.5
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        stats.difference(np.zeros(2), np.zeros(3))


def test_stages_are_those_of_modules_and_blocks_and_only_when_live(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("m2f_cli.benchmark.stages.time.perf_counter", lambda: float(next(ticks)))
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for live, expected in ((True, {"backbone": 2.0, "post": 1.0}), (False, {})):
        stages = Stages(CPU, live=live)
        with stages.watching({"backbone": net[0]}):
            net(torch.zeros(1, 2))
            net(torch.zeros(1, 2))
        with stages("post"):
            pass
        net(torch.zeros(1, 2))  # nobody watches any more
        assert stages.seconds == expected
    ordered = [("backbone", 2.0), ("post", 1.0), ("other", 2.0)]
    assert list(split({"post": 1.0, "backbone": 2.0}, 5.0).items()) == ordered


def test_a_stage_inside_another_is_taken_out_of_it(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("m2f_cli.benchmark.stages.time.perf_counter", lambda: float(next(ticks)))

    class Base:
        def work(self):
            return 7

    class Worker(Base):
        pass

    mine, stages = Worker(), Stages(CPU, live=True)
    with stages.watching({}, {"render": ((Worker, "work"),), "read": ((mine, "work"),)}), stages("post"):
        assert mine.work() == 7  # 0 post 1 read 2 render 3 4 5
    assert stages.seconds == {"post": 2.0, "read": 2.0, "render": 1.0}
    assert "work" not in vars(Worker) and "work" not in vars(mine) and Worker.work is Base.work  # nothing stays


# --- the machine ------------------------------------------------------------------------------------------------------


def test_memory_tells_the_peak_of_what_was_done():
    memory = Memory(CPU)
    if memory.start is None:
        pytest.skip("this system does not tell the peak of a process (/proc/self/clear_refs)")
    with mmap.mmap(-1, 64 << 20) as filled:  # numpy may get memory that an earlier test has freed
        filled.write(bytes(64 << 20))
    growth = memory.growth()
    assert 60 < growth["resident_growth_mib"] < 120 and growth["device_peak_mib"] is None
    assert growth["resident_peak_mib"] == pytest.approx(growth["resident_growth_mib"] + memory.start / machine.MIB)
    assert Memory(CPU).growth()["resident_growth_mib"] < 8  # the peak begins anew


def test_energy_is_the_sum_of_packages_or_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RAPL", tmp_path)
    energy = machine.Energy(CPU)
    assert not energy.told and energy.joules() is None and energy.source == "not told"
    for name, value in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    energy = machine.Energy(CPU)
    assert energy.told and energy.joules() == 3.5  # the sub-domain is part of its package
    assert energy.since(1.5) == 2.0 and energy.since(None) is None
    assert energy.since(9.0) is None  # the counter began anew


def test_busy_seconds_leave_out_idle_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.busy_seconds() is None
    (tmp_path / "stat").write_text("cpu  100 20 30 99999 88888 1 2 3 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert machine.busy_seconds() == pytest.approx(156 / machine.os.sysconf("SC_CLK_TCK"))


def test_a_description_says_what_a_timing_depends_on(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    found = machine.describe(CPU)
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1 and found["device"] == found["cpu"]
    assert found["allocator"]["settings"]["THP_MEM_ALLOC_ENABLE"] == "1" and found["allocator"]["name"]


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(fresh):
    """FLOPs of some (layers, batch, size): in a process of its own, since it keeps fake tensors by shape."""
    wanted = [(1, 2, SIZE), (3, 2, SIZE), (1, 1, (128, 256)), (1, 1, (4096, 8192))]
    code = (
        "import json, sys; from helpers.parts import tiny_config; from m2f_cli.benchmark.flops import flops_of\n"
        "def layers(n):\n"
        "    model = tiny_config(name='resnet', depth=18, width=8, stem='basic', norm='frozen_bn')\n"
        "    part = model.pixel_decoder.model_copy(update={'num_layers': n})\n"
        "    return model.model_copy(update={'pixel_decoder': part})\n"
        f"print(json.dumps([flops_of(layers(n), 6, batch, size, trust_code=False) for n, batch, size in {wanted}]))"
    )
    tests = Path(__file__).resolve().parents[1]
    return json.loads(fresh(code, folder=tests).stdout)


@pytest.mark.slow
def test_flops_of_a_deformable_layer_are_those_of_its_formula(counted):
    few, many = counted[:2]
    tokens = 2 * (2 * 3 + 4 * 6 + 8 * 12)  # of both images, strides 32, 16, 8
    dim, ffn, samples = 64, 64, 4 * 3 * 4  # heads, levels, points
    linear = 2 * tokens * dim * (dim + dim + 2 * samples + samples + 2 * ffn)
    sampling = 2 * 4 * (3 * 4) * tokens * dim
    assert many["pixel decoder"] - few["pixel decoder"] == 2 * (linear + sampling)
    assert {name: value for name, value in few.items() if name not in ("pixel decoder", "total")} == {
        name: value for name, value in many.items() if name not in ("pixel decoder", "total")
    }
    assert few["render"] == 2 * 2 * 12 * 32 * (16 * 24)  # images, queries, channels, stride 4
    assert few["total"] == sum(value for name, value in few.items() if name != "total")


@pytest.mark.slow
def test_counting_computes_nothing_however_large(counted):
    small, large = counted[2:]  # minutes and gigabytes, were it computed
    assert large["backbone"] == pytest.approx(1024 * small["backbone"], rel=0.1)  # windows are padded


def test_parameters_are_counted_by_part():
    network = build(tiny_config(), 6)
    counts = parameters_of(network)
    assert counts["backbone"] + counts["pixel decoder"] + counts["decoder"] == counts["total"]
    assert counts["total"] == sum(parameter.numel() for parameter in network.parameters())
