"""A run's state, or a step to repeat, that is damaged or made up is refused in one sentence, before any training."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from training.tiny import settings

from m2f_cli import cli
from m2f_cli.errors import ConfigError, WeightsError
from m2f_cli.training import resume as state
from m2f_cli.training.data import refuse_other_data
from m2f_cli.training.ema import EMA
from m2f_cli.training.optimizer import make_optimizer

IDENTITY = {
    "format": "x",
    "task": "panoptic",
    "classes": ["a", "b"],
    "things": [True, False],
    "images": 3,
    "fingerprint": "0",
}
BEST = {"metric": "pq", "value": 1.0, "iteration": 2}


@pytest.mark.parametrize("content", [None, b"", b"x", "folder"])
def test_replay_of_what_is_no_file_of_a_step(tmp_path, content, capsys):
    path = tmp_path / "step.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    assert cli.run(["train", "--replay", str(path), "--device", "cpu"]) == 4
    error = capsys.readouterr().err
    assert "step.pt" in error and not re.search("bug|resume", error)
    assert content != b"" or "it is empty" in error


def test_an_empty_state_is_one_sentence(tmp_path):
    (tmp_path / "resume.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="resume.pt cannot be read: it is empty"):
        state.read_run(tmp_path / "resume.pt", 6)


@pytest.mark.parametrize(
    "before",
    [
        5,
        "x",
        [],
        {},
        *(
            IDENTITY | more
            for more in (
                {"classes": 5},
                {"classes": [5, 6]},
                {"things": None},
                {"images": "3"},
                {"format": []},
                {"fingerprint": None},
            )
        ),
    ],
)
def test_data_that_make_no_sense(tmp_path, before):
    with pytest.raises(ConfigError, match="of the data it was trained on makes no sense"):
        refuse_other_data(before, IDENTITY, tmp_path)
    refuse_other_data(IDENTITY, IDENTITY, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"iteration": value} for value in (-3, 7, 10**12, 2**70, True, 1.0, "x", None)),
        *(
            {"best": value}
            for value in (None, {"value": 1.0}, *(BEST | {"value": value} for value in ("x", None, float("nan"))))
        ),
        {"best": BEST | {"iteration": 2**70}},
        {"best": BEST | {"metric": 5}},
        *({"best": BEST | {"per_class": value}} for value in (5, {"pq": 5}, {"pq": {"a": {"pq": "x"}}})),
        {"skipped": -1},
        {"skipped": 5},
        {"in_a_row": "x"},
        {"evaluated": 2**70},
        {"model": []},
        {"optimizer": 5},
    ],
)
def test_numbers_that_make_no_sense(tmp_path, wrong):
    tree = {"model": {}, "optimizer": {}, "scaler": {}, "random": {}, "best": BEST, "iteration": 4, "skipped": 1}
    state.write(tmp_path / "resume.pt", tree)
    assert state.read_run(tmp_path / "resume.pt", 6)["iteration"] == 4
    state.write(tmp_path / "resume.pt", tree | wrong)
    with pytest.raises(WeightsError, match=next(iter(wrong)) if "iteration" not in wrong else "of 6 iterations are"):
        state.read_run(tmp_path / "resume.pt", 6)


def parts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    optimizer = make_optimizer(model, settings().train.optimizer)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    ema, device = EMA(model, 0.9), torch.device("cpu")
    return SimpleNamespace(model=model, optimizer=optimizer, scaler=scaler, ema=ema, device=device)


@pytest.fixture
def saved(tmp_path):
    """What is in a file of the state of `parts`."""
    state.write(tmp_path / "resume.pt", state.snapshot(parts()))
    return state.read(tmp_path / "resume.pt")


def moments(**changed):
    def change(tree):
        tree["optimizer"]["state"][0] |= changed

    return change


def without(*keys):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return change


def replaced(value, *keys):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        moments(exp_avg=torch.zeros(3)),
        moments(exp_avg_sq="x"),
        moments(step="x"),
        moments(step=torch.tensor(-1.0)),
        moments(step=torch.zeros(2)),
        without("optimizer", "state", 0, "exp_avg"),
        without("optimizer", "state", 1, "step"),
        replaced(5, "optimizer", "state", 0),
        replaced({}, "optimizer", "state", 77),
        replaced(5, "optimizer", "state"),
        replaced("x", "optimizer", "param_groups", 0, "lr"),
        replaced(5, "optimizer", "param_groups", 0),
        replaced([], "optimizer", "param_groups"),
        without("optimizer", "param_groups", 0, "params"),
        replaced("x", "scaler", "scale"),
        replaced("x", "model", "0.bias"),
        replaced(torch.zeros(1), "model", "0.bias"),
        replaced("x", "ema", "updates"),
        replaced(torch.zeros(1), "ema", "average", "0.bias"),
        replaced({}, "ema", "average"),
        replaced(5, "ema"),
    ],
)
def test_a_state_that_does_not_fit_is_found_before_a_step(saved, change):
    state.restore(parts(), copy.deepcopy(saved))
    change(saved)
    with pytest.raises(WeightsError, match="does not fit its network and optimizer"):
        state.restore(parts(), saved)


@pytest.mark.parametrize(
    "change",
    [
        replaced(5, "optimizer", "param_groups", 0, "betas"),
        without("optimizer", "param_groups", 0, "betas"),
        replaced("x", "optimizer", "param_groups", 1, "eps"),
        replaced(True, "optimizer", "param_groups", 0, "maximize"),
    ],
)
def test_the_options_of_the_optimizer_are_those_of_the_configuration(saved, change):
    change(saved)
    restored, whole = parts(), parts()
    state.restore(restored, saved)
    assert restored.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for each in (restored, whole):
        each.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(restored.model.parameters(), whole.model.parameters(), strict=True))
