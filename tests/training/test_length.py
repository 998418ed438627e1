"""Epochs, the best checkpoint, early stopping and the time budget of a run."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.tiny import settings

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config, TrainConfig
from m2f_cli.errors import ConfigError
from m2f_cli.evaluation.evaluate import EvalResult
from m2f_cli.inference.load_network import load_model
from m2f_cli.training import resume as state
from m2f_cli.training import run
from m2f_cli.training.data import open_splits
from m2f_cli.training.length import TimeBudget, evaluations, evaluations_since_best, with_iterations
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.prepare import Run
from m2f_cli.training.resume import RunState
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")
SMALL = ("train.batch=2", "train.checkpoint_every=100", "data.scenes.val=1")


def changed(*changes: str) -> Config:
    """The tiny settings, as a preset whose user changes something."""
    return config.overridden(settings(), changes)


def start(folder: Path, *changes: str, notes: list[str] | None = None, clock=None, data=None, **options):
    listener = Listener(on_note=[].append if notes is None else notes.append)
    listener.on_start = lambda made: listener.on_note(" ".join(made.notes))
    clocked = {} if clock is None else {"clock": clock}
    return run.start(changed(*SMALL, *changes), folder, replace(OPTIONS, **options), listener, data=data, **clocked)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_model(folder / "checkpoints" / f"{name}.safetensors").model.state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def figures(monkeypatch):
    """Set the figures that the evaluations of a run give, one after another: `figures(pq=[…], rq=[…])`."""

    def give(**values: list[float]) -> None:
        rows = iter([dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)])
        monkeypatch.setattr(Run, "evaluate", lambda self, on_progress=None: EvalResult({"pq": next(rows)}, 0.0, 3))

    return give


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "batch", "iterations"), [(1, 4, 3), (1, 5, 3), (2.5, 4, 8), (0.1, 3, 1), (7, 12, 7), (1.1, 10, 2)]
)
def test_epochs_are_iterations_rounded_up(epochs, batch, iterations):
    notes = []
    made = with_iterations(changed(f"train.epochs={epochs}", f"train.batch={batch}"), 12, notes)
    assert (made.train.iterations, made.train.epochs) == (iterations, None)
    unit = "epoch" if epochs == 1 else "epochs"
    assert notes[0].startswith(f"{epochs:g} {unit} of 12 images in batches of {batch} are {iterations} iterations.")


def test_without_epochs_the_configuration_is_the_same_object():
    as_it_is = changed()
    assert with_iterations(as_it_is, 12, []) is as_it_is


def test_steps_of_the_schedule_keep_their_shares():
    notes = []
    of_coco = config.load("coco-panoptic-r50", ["train.epochs=5"])
    train = with_iterations(of_coco, 118_287, notes).train
    assert train.iterations == 36965 and train.schedule.steps == (32858, 35596)  # of 368750: 327778, 355092
    assert "from 327778, 355092 (of 368750) to 32858, 35596" in notes[0]


def test_a_warm_up_that_does_not_end_is_said():
    notes = []
    with_iterations(changed("train.epochs=1", "train.schedule.warmup_iterations=3"), 12, notes)
    assert "The warm-up takes 3 iterations, and so all of them." in notes[0]


def test_too_many_iterations_are_refused():
    with pytest.raises(ConfigError, match=r"are 1,000,000,000,000 iterations for 1000 images"):
        with_iterations(changed("train.epochs=1000000000", "train.batch=1"), 1000, [])


def test_a_run_by_epochs_is_the_run_by_iterations(tmp_path):
    notes = []
    assert start(tmp_path / "epochs", "train.epochs=0.5", notes=notes).iteration == 3
    start(tmp_path / "iterations", "train.iterations=3")
    assert_same_weights(tmp_path / "epochs", tmp_path / "iterations")
    assert sum("epochs of 12 images" in note for note in notes) == 1
    written = [(tmp_path / name / "config.yaml").read_text() for name in ("epochs", "iterations")]
    assert written[0] == written[1] and "epochs" not in written[0]


# --- the best figure --------------------------------------------------------------------------------------------------


def test_best_follows_the_chosen_figure(tmp_path, figures):
    figures(pq=[1.0, 2.0, 3.0], rq=[5.0, 9.0, 7.0])
    changes = ("train.iterations=3", "train.eval_every=1")
    assert start(tmp_path / "pq", *changes).best == {"metric": "pq", "value": 3.0, "iteration": 3, "per_class": {}}
    figures(pq=[1.0, 2.0, 3.0], rq=[5.0, 9.0, 7.0])
    outcome = start(tmp_path / "rq", *changes, "train.best_metric=rq")
    assert outcome.best == {"metric": "rq", "value": 9.0, "iteration": 2, "per_class": {}}
    last, best = (weights(tmp_path / "rq", name) for name in ("last", "best"))
    assert any(not torch.equal(last[name], best[name]) for name in last)


def test_an_unknown_figure_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"train.best_metric\) named 'pq_thing'. Did you mean pq_things"):
        start(tmp_path / "run", "train.best_metric=pq_thing")
    assert not (tmp_path / "run" / "config.yaml").exists()


# --- patience ---------------------------------------------------------------------------------------------------------


def early(every: int = 1) -> tuple[str, ...]:
    return ("train.iterations=6", f"train.eval_every={every}", "train.patience=2")


def test_a_run_without_improvement_ends_early_and_resuming_it_says_so(tmp_path, figures):
    notes = []
    figures(pq=[1.0, 3.0, 3.0, 2.0, 9.0])
    outcome = start(tmp_path / "run", *early(), notes=notes, keep=3)
    assert (outcome.ended, outcome.stopped, outcome.iteration, outcome.iterations) == ("early", None, 4, 6)
    assert outcome.best == {"metric": "pq", "value": 3.0, "iteration": 2, "per_class": {}}
    assert notes[-1] == "Stopped early after 4 of 6 iterations: pq was not better in the last 2 evaluations."
    names = {path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"best", "last", "resume", "iteration_0000004"}
    assert state.read(tmp_path / "run" / "checkpoints" / "resume.pt")["iteration"] == 4
    assert json.loads((tmp_path / "run" / "results.json").read_text())["ended"] == "early"

    before = (tmp_path / "run" / "checkpoints" / "resume.pt").read_bytes()
    again = start(tmp_path / "run", notes=notes, resume=True)
    assert (again.ended, again.iteration, again.best) == ("early", 4, outcome.best)
    assert f"This run is over. To train its weights on: m2f train --init {tmp_path / 'run'} --out NEW_RUN" in notes[-1]
    assert (tmp_path / "run" / "checkpoints" / "resume.pt").read_bytes() == before


def test_patience_changes_nothing_before_it_is_used_up(tmp_path):
    start(tmp_path / "patient", "train.iterations=3", "train.eval_every=1", "train.patience=3")
    start(tmp_path / "plain", "train.iterations=3", "train.eval_every=1")
    assert_same_weights(tmp_path / "patient", tmp_path / "plain")


def test_an_evaluation_without_a_figure_is_no_improvement(tmp_path, figures):
    figures(pq=[float("nan")] * 3)
    outcome = start(tmp_path / "run", *early())
    assert (outcome.ended, outcome.iteration, outcome.best) == ("early", 2, {})


def test_the_last_evaluation_finishes_a_run(tmp_path, figures):
    figures(pq=[3.0, 2.0, 1.0])
    assert start(tmp_path / "run", *early(2)).ended == "finished"


@pytest.mark.parametrize(
    ("every", "best", "evaluated", "count"), [(2, 4, 8, 2), (2, 0, 8, 4), (5, 5, 12, 1), (0, 0, 9, 0), (3, 9, 9, 0)]
)
def test_evaluations_since_the_best_are_counted_from_the_state_alone(every, best, evaluated, count):
    train = TrainConfig.model_validate({**changed().train.model_dump(), "eval_every": every})
    at = RunState(evaluated, best={"iteration": best} if best else {}, evaluated=evaluated)
    assert evaluations_since_best(at, train) == count


def test_patience_needs_evaluations(tmp_path):
    with pytest.raises(ConfigError, match=r"patience counts evaluations, and eval_every is 0"):
        changed("train.patience=2")
    train, _ = open_splits(changed(), None, None, [])
    with pytest.raises(ConfigError, match=r"there are no images to evaluate on\. Add a val split"):
        start(tmp_path / "run", *early(), data=(train, None))


@pytest.mark.parametrize(("iterations", "every", "count"), [(6, 2, 3), (7, 2, 4), (5, 0, 1), (5, 9, 1)])
def test_the_evaluations_of_a_training(iterations, every, count):
    assert evaluations(changed(f"train.iterations={iterations}", f"train.eval_every={every}").train) == count


def test_patience_that_cannot_be_used_up_is_said(tmp_path, figures):
    notes = []
    figures(pq=[1.0, 1.0])
    start(tmp_path / "run", "train.iterations=2", "train.eval_every=1", "train.patience=2", notes=notes)
    says = "train.patience = 2 has no effect: train.eval_every = 1 means 2 evaluations in 2 iterations."
    assert says in notes[0]


# --- the time budget --------------------------------------------------------------------------------------------------


def ticking(seconds: float = 1.0):
    """A clock that goes on whenever somebody looks at it."""
    times = itertools.count(0.0, seconds)
    return lambda: next(times)


def test_a_run_ends_with_its_time_and_goes_on_to_the_same_weights(tmp_path):
    notes, changes = [], ("train.iterations=5", "train.eval_every=2")
    start(tmp_path / "whole", *changes)
    outcome = start(tmp_path / "run", *changes, notes=notes, clock=ticking(), time_budget=2.5)
    assert (outcome.ended, outcome.stopped, outcome.iteration) == ("time", None, 2)
    assert notes[-1] == "The time budget is used up after 2 of 5 iterations. Everything is saved."
    assert start(tmp_path / "run", resume=True).ended == "finished"
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_run_within_its_time_is_finished(tmp_path):
    assert start(tmp_path / "run", "train.iterations=2", clock=ticking(), time_budget=1000.0).ended == "finished"


def test_time_for_an_evaluation_is_kept_free():
    now = [0.0]
    budget = TimeBudget(100.0, lambda: now[0], evaluation=30.0)
    now[0] = 69.0
    assert not budget.is_used_up(evaluates=True)
    now[0] = 70.0
    assert budget.is_used_up(evaluates=True) and not budget.is_used_up(evaluates=False)
    now[0] = 100.0
    assert budget.is_used_up(evaluates=False)
    assert not TimeBudget(None, lambda: now[0]).is_used_up(evaluates=True)
