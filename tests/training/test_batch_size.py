"""--batch auto: the largest micro-batch that fits, on devices that run out of memory and on this CPU."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from training.tiny import settings

from m2f_cli.errors import ConfigError, M2FError
from m2f_cli.inference.load_network import load_model
from m2f_cli.training import batch_size, run
from m2f_cli.training.batch_size import CudaMemory, HostMemory, accumulation, largest_micro_batch
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

GIB = 2**30


def test_accumulation_makes_up_for_small_batches():
    assert accumulation(16, 1, None) == 8 and accumulation(16, 8, None) == 1 and accumulation(3, 1, None) == 3
    assert accumulation(16, 2, 8) == 1
    with pytest.raises(ConfigError, match="16 images cannot be shared by 3"):
        accumulation(16, 3, None)
    with pytest.raises(ConfigError, match="8 images per process and step are no multiple of the 3"):
        accumulation(16, 2, 3)


@pytest.mark.parametrize(
    ("own", "room", "expected", "tried"),
    [
        (16, 5, 4, [1, 2, 4, 8]),
        (16, 99, 16, [1, 2, 4, 8, 16]),
        (12, 7, 6, [1, 2, 3, 4, 6, 12]),
        (7, 6, 1, [1, 7]),
        (16, 0, None, [1]),
    ],
)
def test_the_largest_divisor_that_fits(own, room, expected, tried):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= room

    assert largest_micro_batch(own, fits) == expected and asked == tried


class FakeGpu:
    """A GPU of some GiB, of which others use some and each image takes two; counts how often it is emptied."""

    def __init__(self, monkeypatch, total: float, used_by_others: float = 0.0):
        self.total, self.others, self.peak, self.emptied = total, used_by_others, 0.0, 0
        for name in ("empty_cache", "reset_peak_memory_stats", "mem_get_info", "memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: int(self.peak * GIB))

    def empty_cache(self):
        self.emptied += 1

    def reset_peak_memory_stats(self, device):
        self.peak = 0.0

    def mem_get_info(self, device):
        return int((self.total - self.others) * GIB), int(self.total * GIB)

    def memory_reserved(self, device):
        return 0

    def step(self, size):
        self.peak = min(2.0 * size, self.total - self.others)
        if 2.0 * size > self.total - self.others:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("total", "others", "expected"),
    [
        (17.0, 0.0, 4),  # 16 GiB of 17 run, but leave no tenth free
        (18.0, 0.0, 8),
        (18.0, 10.0, 2),  # what others use is not there
        (15.9, 0.0, 4),  # eight run out of memory
    ],
)
def test_a_gpu_that_runs_out(monkeypatch, total, others, expected):
    gpu = FakeGpu(monkeypatch, total, others)
    memory = CudaMemory(torch.device("cuda", 0))
    assert largest_micro_batch(16, lambda size: memory.fits(size, gpu.step)) == expected
    assert gpu.emptied >= 2, "what a failed attempt left behind is given back"


def test_another_error_is_no_lack_of_memory(monkeypatch):
    FakeGpu(monkeypatch, 80.0)

    def broken(size):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        CudaMemory(torch.device("cuda", 0)).fits(1, broken)


def test_a_cpu_is_never_asked_for_what_it_does_not_have(monkeypatch):
    """2 GiB an image, 10 GiB there: 4 are tried after 2 took 4 GiB; 8 would take 16 and are not."""
    in_use, peak, tried = [GIB], [0], []
    monkeypatch.setattr(batch_size, "in_use", lambda: in_use[0])
    monkeypatch.setattr(batch_size, "available", lambda: 11 * GIB - in_use[0])
    monkeypatch.setattr(batch_size, "peak", lambda: peak[0])
    monkeypatch.setattr(batch_size, "restart_peak", lambda: None)

    def attempt(size):
        tried.append(size)
        peak[0] = GIB + 2 * size * GIB
        in_use[0] = GIB + size * GIB  # the allocator keeps half of it

    memory = HostMemory()
    assert largest_micro_batch(16, lambda size: memory.fits(size, attempt)) == 4
    assert tried == [1, 2, 4]


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(batch_size, "PROC", tmp_path)
    monkeypatch.setattr(batch_size, "CGROUP", tmp_path / "cgroup")
    assert batch_size.available() == 8000 * 1024
    (tmp_path / "cgroup").mkdir()
    for name, text in (("max", "5000000"), ("current", "2000000"), ("stat", "anon 7\ninactive_file 500000\n")):
        (tmp_path / "cgroup" / f"memory.{name}").write_text(text)
    assert batch_size.available() == 5_000_000 - 2_000_000 + 500_000
    (tmp_path / "cgroup" / "memory.max").write_text("max\n")
    assert batch_size.available() == 8000 * 1024
    (tmp_path / "cgroup" / "memory").mkdir()
    for name, text in (
        ("limit_in_bytes", "4000000"),
        ("usage_in_bytes", "1000000"),
        ("stat", "inactive_file 5\ntotal_inactive_file 300000\n"),
    ):
        (tmp_path / "cgroup" / "memory" / f"memory.{name}").write_text(text)
    assert batch_size.available() == 4_000_000 - 1_000_000 + 300_000


def test_where_memory_cannot_be_measured(monkeypatch):
    with pytest.raises(ConfigError, match="this is mps.*--micro-batch N"):
        batch_size.memory_of(torch.device("mps"))


def test_not_even_one_image(tmp_path, monkeypatch):
    monkeypatch.setattr(HostMemory, "fits", lambda self, size, attempt: False)
    options = TrainOptions(init="random", device="cpu", micro_batch="auto")
    with pytest.raises(M2FError, match="Not even one image at a time fits into the memory of cpu"):
        run.prepare(settings(), tmp_path, options, torch.device("cpu"), Listener())


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory of a CPU is measured under Linux only")


@linux
def test_a_run_that_measured_is_the_run_that_was_told(tmp_path, monkeypatch):
    """Real steps are tried, with each size, and nothing of them stays: the same weights as with --micro-batch 2."""
    sizes, real = [], batch_size.one_step

    def counted(parts, batch):
        sizes.append(len(batch))
        real(parts, batch)

    monkeypatch.setattr(batch_size, "one_step", counted)
    fits = HostMemory.fits
    monkeypatch.setattr(HostMemory, "fits", lambda self, size, attempt: size <= 2 and fits(self, size, attempt))
    notes = []
    for name, micro in (("auto", "auto"), ("told", 2)):
        options = TrainOptions(init="random", device="cpu", micro_batch=micro)
        listener = Listener(on_start=lambda r: notes.append(r.notes))
        run.start(settings("train.iterations=2"), tmp_path / name, options, listener)
    assert sizes == [1, 2]
    assert "--batch auto: 2 of the 4 images of a process and step fit into memory at once." in notes[0]
    states = [
        load_model(tmp_path / name / "checkpoints" / "last.safetensors").model.state_dict() for name in ("auto", "told")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads((tmp_path / "auto" / "env.json").read_text())["options"]["micro_batch"] == 2


@pytest.mark.slow
@linux
def test_the_peak_is_measured(fresh):
    """In a process of its own: 512 MB come and go, and are seen."""
    script = (
        "from m2f_cli.training.batch_size import HostMemory\n"
        "import numpy\n"
        "memory = HostMemory()\n"
        "assert memory.fits(1, lambda size: numpy.ones(512 << 17).sum())\n"
        "print(memory.needed >> 20)\n"
    )
    assert 500 <= int(fresh(script).stdout) <= 600


def test_all_processes_take_the_least(monkeypatch):
    """A size that another process cannot hold is not taken here either."""
    parts = SimpleNamespace(
        device=torch.device("cpu"),
        frozen=(),
        model=torch.nn.Linear(1, 1),
        ema=None,
        optimizer=torch.optim.SGD([torch.zeros(1)]),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    monkeypatch.setattr(batch_size, "one_step", lambda parts, batch: None)
    votes = []

    def any_of_us(flag, device):
        votes.append(flag)
        return flag or len(votes) >= 3  # the other process runs out at the third size

    monkeypatch.setattr(batch_size.distributed, "any_of_us", any_of_us)
    assert batch_size.measured_micro_batch(parts, 16, lambda size: iter([None])) == 2
    assert votes == [False, False, False]
