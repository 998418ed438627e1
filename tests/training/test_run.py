"""A whole run: it learns, it is the same from the same seed, and a run that was killed goes on bit by bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import write_text
from helpers.parts import randomise
from training.tiny import settings

from m2f_cli.config import presets as config
from m2f_cli.data.synthetic import dataset as synthetic_data
from m2f_cli.errors import ConfigError, M2FError, WeightsError
from m2f_cli.inference.load_network import load_model
from m2f_cli.training import loop, run
from m2f_cli.training import resume as state
from m2f_cli.training.ema import EMA
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener
from m2f_cli.training.visualise import draw_curves

OPTIONS = TrainOptions(init="random", device="cpu")


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_model(folder / "checkpoints" / f"{name}.safetensors").model.state_dict()


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_tree(one, other) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
    if isinstance(one, (dict, list, tuple)):
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in items:
            assert_same_tree(value, other[key])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_leaves_what_it_should(tmp_path):
    notes, steps = [], []
    listener = Listener(on_note=notes.append, on_step=steps.append)
    outcome = run.start(settings(), tmp_path / "run", OPTIONS, listener, ["m2f", "train"])
    folder = tmp_path / "run"
    assert (outcome.iteration, outcome.stopped, outcome.skipped) == (6, None, 0)
    assert len(steps) == 6 and all(math.isfinite(step.total) and step.gradient_norm > 0 for step in steps)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == list(range(6))
    assert [line["iteration"] for line in lines if line["kind"] == "val"] == [6]
    assert config.load(folder / "config.yaml").train.iterations == 6
    environment = json.loads((folder / "env.json").read_text())
    assert environment["command"] == ["m2f", "train"] and environment["options"]["init"] == "random"
    best = json.loads((folder / "results.json").read_text())["best"]
    assert best["metric"] == "pq" and all("pq" in figures for figures in best["per_class"]["pq"].values())
    assert best["per_class"] == outcome.best["per_class"] and best["per_class"]["pq"]
    assert len(list((folder / "samples").glob("*.jpg"))) == 4 and (folder / "curves.png").is_file()
    assert len(list((folder / "val" / "0000006").glob("*.jpg"))) == 3
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "resume.pt",
    ]
    loaded = load_model(folder)
    assert [c.name for c in loaded.categories] == [c.name for c in synthetic_data.CATEGORIES]


def test_the_loss_falls(tmp_path):
    """30 steps on 12 images: a loop that does not learn would stay where it is."""
    steps = []
    changes = (
        "train.iterations=30",
        "train.schedule.name=constant",
        "train.optimizer.clip_norm=1.0",
        "train.schedule.warmup_iterations=0",
    )
    run.start(settings(*changes), tmp_path / "run", OPTIONS, Listener(on_step=steps.append))
    first, last = (sum(s.total for s in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last < 0.75 * first


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        options = TrainOptions(init="random", device="cpu", workers=workers)
        run.start(settings(f"train.seed={seed}"), tmp_path / name, options)
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    one, other = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert any(not torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [*(pytest.param(at, marks=pytest.mark.slow) for at in (0, 2)), 4])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, at):
    """Interrupted in any step, also between checkpoints: the resumed run ends with the same weights."""
    changes = ("train.ema_decay=0.9", "train.precision=bf16")
    run.start(settings(*changes), tmp_path / "whole", OPTIONS)

    def stop(step):
        if step.iteration == at:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run.start(settings(*changes), tmp_path / "cut", OPTIONS, Listener(on_step=stop))
    assert (outcome.stopped, outcome.iteration) == ("SIGTERM", at + 1)
    again = run.start(settings(*changes), tmp_path / "cut", TrainOptions(device="cpu", resume=True))
    assert again.iteration == 6
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    trees = [state.read(tmp_path / name / "checkpoints" / "resume.pt") for name in ("whole", "cut")]
    for key in ("model", "optimizer", "ema", "random"):
        assert_same_tree(trees[0][key], trees[1][key])
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == list(range(6))


def test_a_full_disk_is_one_sentence_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "resume.pt"
    state.write(path, {"iteration": 3})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(M2FError, match=r"Cannot write .*resume.pt.*No space left"):
        state.write(path, {"iteration": 4})
    assert state.read(path)["iteration"] == 3 and [p.name for p in path.parent.iterdir()] == ["resume.pt"]


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Four images at once or one after the other: the same gradients, normalised by the masks of all four.

    Class losses are means over the queries of each forward pass, as on as many GPUs: to compare them, all queries
    count the same.
    """
    changes = ("train.loss.no_object_weight=1.0", "train.iterations=1")
    gradients = {}
    fixed = torch.rand(4096, 2, generator=torch.Generator().manual_seed(0))

    def rand(shape, device):
        """The same points for every image and layer, so that only the order of sums differs."""
        return fixed[: shape[-2]].expand(shape)

    for micro in (4, 1):
        options = TrainOptions(init="random", device="cpu", micro_batch=micro)
        prepared = run.prepare(settings(*changes), tmp_path, options, torch.device("cpu"), Listener())
        object.__setattr__(prepared.parts.criterion.sampling, "rand", rand)
        randomise(prepared.parts.model).eval()  # no drop path; mask logits so large that rounding turns none
        stream = iter(prepared.loader)
        loop.train_step(prepared.parts, [next(stream) for _ in range(prepared.parts.accumulate)])
        gradients[micro] = {n: p.grad.clone() for n, p in prepared.parts.model.named_parameters() if p.grad is not None}
    assert gradients[4].keys() == gradients[1].keys()
    largest = max(float(g.abs().max()) for g in gradients[4].values())
    for name, gradient in gradients[4].items():
        assert (gradient - gradients[1][name]).abs().max() < 1e-3 * largest, name


def test_steps_that_are_not_finite_are_skipped_dumped_and_then_stop(tmp_path, monkeypatch):
    real = loop.losses_of
    seen = []

    def sometimes(parts, batch, num_masks):
        losses = real(parts, batch, num_masks)
        seen.append(batch)
        return {k: v * (float("nan") if k == "loss_dice_1" and len(seen) in broken else 1.0) for k, v in losses.items()}

    monkeypatch.setattr(loop, "losses_of", sometimes)
    broken, notes = {3, 4}, []  # both micro-batches of the second step
    outcome = run.start(settings(), tmp_path / "once", OPTIONS, Listener(on_note=notes.append))
    assert outcome.skipped == 1 and outcome.iteration == 6
    [dump] = (tmp_path / "once").glob("trouble_*.pt")
    assert "in iteration 1 the loss loss_dice is nan" in notes[0] and str(dump) in notes[0]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "once").values())

    from m2f_cli.training.replay import look_at

    rows = dict(look_at(dump, torch.device("cpu")))
    assert rows["weights"] == "finite" and rows["skipped in iteration"] == "1" and "now loss_dice_1" in rows
    tree = torch.load(dump)
    doubled = {name: each.double() if each.is_floating_point() else each for name, each in tree["model"].items()}
    torch.save({**tree, "model": doubled}, tmp_path / "double.pt")
    assert dict(look_at(tmp_path / "double.pt", torch.device("cpu"))).keys() == rows.keys()
    cut = {name: each[:0] if each.dim() else each for name, each in tree["model"].items()}
    whole = {name: each.long() for name, each in tree["model"].items()}
    for name, wrong in {"cut": cut, "whole": whole}.items():
        torch.save({**tree, "model": wrong}, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match=f"{name}.pt: "):
            look_at(tmp_path / f"{name}.pt", torch.device("cpu"))

    broken = set(range(10_000))
    with pytest.raises(M2FError, match="5 steps in a row were not finite.*loss_dice is nan"):
        run.start(settings("train.iterations=50"), tmp_path / "always", OPTIONS)


@pytest.mark.slow
def test_gloo_processes_train_as_one(tmp_path):
    """`torchrun` with two processes: both end with the same weights, and the run is written once."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "import torch; torch.set_num_threads(1)\n"
        "from training.tiny import settings\n"
        "from m2f_cli.training import run\n"
        "from pathlib import Path\n"
        "seen = []\n"
        "class L(run.Listener):\n    pass\n"
        "listener = run.Listener(on_start=lambda r: seen.append(r))\n"
        "options = run.TrainOptions(init='random', device='cpu')\n"
        f"run.start(settings(), Path({str(tmp_path / 'run')!r}), options, listener)\n"
        "import os\n"
        f"torch.save(seen[0].parts.model.state_dict(), {str(tmp_path)!r} + '/rank' + os.environ['RANK'] + '.pt')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "strides" not in done.stderr, "gradients are laid out as the buffers in which they are exchanged"
    one, other = (torch.load(tmp_path / f"rank{i}.pt") for i in range(2))
    assert_equal(one, other)
    assert_equal(one, weights(tmp_path / "run"))


def test_fp16_on_a_cpu_is_fp32_and_says_so(tmp_path):
    prepared = run.prepare(settings("train.precision=fp16"), tmp_path, OPTIONS, torch.device("cpu"), Listener())
    assert prepared.settings.train.precision == "fp32" and "fp16 is for GPUs" in " ".join(prepared.notes)


def test_a_signal_that_also_ends_the_workers_is_no_bug(tmp_path):
    """`timeout` and cluster schedulers send SIGTERM to the whole group."""
    prepared = run.prepare(settings(), tmp_path, OPTIONS, torch.device("cpu"), Listener())
    asked = []

    def killed():
        asked.append(True)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
        yield

    nobody = {"on_step": lambda s: None, "on_non_finite_step": lambda t: None, "on_due": lambda n: None}
    assert loop.train(prepared.parts, killed(), prepared.state, should_stop=lambda: bool(asked), **nobody) is False
    with pytest.raises(M2FError, match="has died.*pid 7.*smaller --workers"):
        loop.train(prepared.parts, killed(), prepared.state, should_stop=lambda: False, **nobody)


def test_a_further_process_draws_what_it_drew_in_a_run_that_went_on(tmp_path, monkeypatch):
    """Only the first one's random state is saved."""

    def drawn(begin):
        short = settings("train.iterations=3", "train.batch=2")
        prepared = run.prepare(short, tmp_path, OPTIONS, torch.device("cpu"), Listener())
        monkeypatch.setattr(loop.distributed, "rank", lambda: 1)
        prepared.state.iteration, found = begin, {}
        real = loop.losses_of

        def losses_of(*arguments):
            found.setdefault(prepared.state.iteration, torch.rand(4))
            return real(*arguments)

        monkeypatch.setattr(loop, "losses_of", losses_of)
        nobody = {"on_step": lambda s: None, "on_non_finite_step": lambda t: None, "on_due": lambda n: None}
        loop.train(prepared.parts, iter(prepared.loader), prepared.state, **nobody)
        monkeypatch.undo()
        return found

    whole, resumed = drawn(0), drawn(2)
    assert list(resumed) == [2] and torch.equal(resumed[2], whole[2])
    assert len({tuple(values.tolist()) for values in whole.values()}) == 3


def test_frozen_batch_norms_stand_still_from_the_first_step(tmp_path):
    tiny = config.load("tiny", ["train.iterations=2", "train.batch=2", "train.loss.num_points=32", "data.scenes.val=2"])
    before = {}
    listener = Listener(on_start=lambda r: before.update({k: v.clone() for k, v in r.parts.model.state_dict().items()}))
    run.start(tiny, tmp_path / "run", TrainOptions(init="random", device="cpu", freeze=("backbone",)), listener)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_compiled_network_accumulates(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: _Compiled(network))
    options = TrainOptions(init="random", device="cpu", compile=True, micro_batch=1)
    assert run.start(settings("train.iterations=1"), tmp_path / "run", options).iteration == 1


class _Compiled(torch.nn.Module):
    """As torch.compile's wrapper: another module than the one inside, and no wrapper for several processes."""

    def __init__(self, network):
        super().__init__()
        self.inside = network

    def forward(self, *args):
        return self.inside(*args)


def test_existing_runs_are_kept(tmp_path):
    run.start(settings("train.iterations=1"), tmp_path / "run", OPTIONS)
    with pytest.raises(ConfigError, match="exists already.*--resume"):
        run.start(settings(), tmp_path / "run", OPTIONS)
    with pytest.raises(ConfigError, match="no run that could be resumed"):
        run.start(settings(), tmp_path / "none", TrainOptions(resume=True, device="cpu"))


def test_presets_need_data(tmp_path):
    with pytest.raises(ConfigError, match="trains on coco.*--data DIR"):
        run.start(config.load("coco-panoptic-r50"), tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_average_of_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = EMA(model, 0.9)
    torch.nn.init.ones_(model.weight)
    expected = 0.0
    for update in range(1, 200):
        ema.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay)
        assert float(ema.average["weight"]) == pytest.approx(expected, abs=1e-6)
    with ema.applied(model):
        assert model.weight.item() == pytest.approx(expected, abs=1e-6)
    assert model.weight.item() == 1.0


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "train", "iteration": 1},
        {"kind": "train", "iteration": 1, "loss": "x"},
        {"kind": "train", "iteration": None, "loss": 1},
        {"kind": "train", "iteration": 1, "loss": 1e308},
        {"kind": "train", "iteration": 1, "loss": math.nan},
        {"kind": "train", "iteration": 2**64, "loss": 1},
        {"kind": "val", "iteration": 1, "pq": "x", "sq": {}, "rq": math.inf},
        {},
        [],
        5,
    ],
    ids=str,
)
def test_curves_of_somebody(line, tmp_path):
    good = {"kind": "train", "iteration": 2, "loss": 0.5}
    write_text(tmp_path / "metrics.jsonl", "".join(f"{json.dumps(each)}\n" for each in (line, good, line)))
    assert draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png").is_file()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_one_sentence(tmp_path, monkeypatch, error):
    def ends(*_):
        raise error

    monkeypatch.setattr(loop, "train_step", ends)
    with pytest.raises(M2FError, match=r"Not enough memory for step 0 of the training\. Use --micro-batch 1"):
        run.start(settings(), tmp_path / "run", OPTIONS)
