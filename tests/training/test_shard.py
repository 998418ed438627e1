"""`--shard`: processes that share the network train as those that have it whole, and write the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.vits import DINOV2, TINY
from safetensors.torch import save_file
from torch.testing import assert_close
from training import shard_worker
from training.tiny import settings

from m2f_cli.errors import ConfigError
from m2f_cli.runtime import distributed
from m2f_cli.training import resume, run
from m2f_cli.weights import load

ATOL = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The runs of shard_worker.py, by two processes with gloo."""
    import timm

    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(7)
    net = timm.create_model(DINOV2, num_classes=0, img_size=64, patch_size=16, **TINY)
    save_file(net.state_dict(), folder / "dinov2.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, shard_worker.__file__, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    return folder


def state(folder: Path) -> dict:
    return resume.read(folder / "checkpoints" / "resume.pt")


def assert_same(found: dict, expected: dict, atol: float) -> None:
    """Everything that training changes; `last` is what it is for inference."""
    assert found["iteration"] == expected["iteration"] == 6 and found["best"] == expected["best"]
    for kind in ("model", "optimizer", "ema"):
        assert_close(found[kind], expected[kind], rtol=0, atol=atol)
    assert_close(found["random"], expected["random"], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "half then shared", "half then whole", "whole then shared"])
def test_shared_or_not_and_resumed_as_the_other_it_is_the_same_run(root, name):
    """Gradients are added in the same order; norms of shares round differently: float32's spacing at 1 is 1.2e-7."""
    assert_same(state(root / name), state(root / "whole"), atol=ATOL)
    tensors, expected = (load(root / each).tensors for each in (name, "whole"))
    assert_close(tensors, expected, rtol=0, atol=ATOL)
    files = [sorted(path.name for path in (root / each / "checkpoints").iterdir()) for each in (name, "whole")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(root, tmp_path):
    """Where nothing is random but the images. Sums of other orders differ by a few of float32's spacings."""
    options = run.TrainOptions(init="random", device="cpu", micro_batch=1)
    run.start(shard_worker.without_chance(), tmp_path / "run", options)
    found, expected = state(root / "two processes"), state(tmp_path / "run")
    assert found["iteration"] == expected["iteration"] == 6
    assert_close(found["model"], expected["model"], rtol=0, atol=ATOL)


@pytest.mark.slow
def test_resumed_with_as_many_processes_nothing_is_rounded(root):
    assert state(root / "half")["iteration"] == shard_worker.HALF
    assert_same(state(root / "half then shared"), state(root / "shared"), atol=0)


@pytest.mark.slow
def test_frozen_parts_stay_and_the_rest_is_trained_as_without(root):
    """With activations that are computed twice, one image at once, and a checkpoint by number."""
    found, expected, trained = (state(root / name) for name in ("frozen shared", "frozen", "whole"))
    assert_same(found, expected, atol=ATOL)
    assert (root / "frozen shared" / "checkpoints" / "iteration_0000006.safetensors").is_file()
    backbone = [name for name in found["model"] if name.startswith("backbone.")]
    assert all(torch.equal(found["model"][name], expected["model"][name]) for name in backbone)
    assert any(not torch.equal(found["model"][name], trained["model"][name]) for name in backbone)


@pytest.mark.slow
def test_lora_is_trained_and_stored_as_without(root):
    tensors, expected = (load(root / each).tensors for each in ("lora shared", "lora"))
    assert_close(tensors, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "--shard does not work with --compile"),
        ({"micro_batch": "auto"}, "--shard does not work with --batch auto"),
        ({"cache_features": Path("x")}, "--shard does not work with --cache-features"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        run.start(settings(), tmp_path / "run", run.TrainOptions(init="random", device="cpu", shard=True, **options))


def test_one_process_has_nobody_to_share_with(tmp_path):
    with pytest.raises(ConfigError, match="between processes, and there is one"):
        run.start(settings(), tmp_path / "run", run.TrainOptions(init="random", device="cpu", shard=True))
