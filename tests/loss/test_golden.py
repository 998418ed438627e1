"""Costs, assignments, points, losses and gradients of the published criterion, from recorded random draws."""

from __future__ import annotations

import pytest
import torch
from loss.cases import CONFIG, by_picture, our_order, prediction_of
from torch.testing import assert_close

from m2f_cli.loss import Criterion, Pairs, Piloted
from m2f_cli.loss.places import RandomPoints
from m2f_cli.types import Target

CASES = ["A_3_and_0", "B_5", "C_3_0_5", "D_none", "E_more_targets_than_queries"]
PADDED = (96, 128)
SETS = ["aux.0.", "aux.1.", "aux.2.", ""]  # first to last, as our layers


class Case:
    """One case of file 07 as a prediction (of leaves), targets, and the criterion with the recorded draws."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str):
        self.tensors = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}
        self.class_logits = [self[f"in/{s}pred_logits"].requires_grad_() for s in SETS]
        self.mask_logits = [self[f"in/{s}pred_masks"].requires_grad_() for s in SETS]
        self.prediction = prediction_of(self.class_logits, self.mask_logits)
        self.targets = targets_of(self.tensors)
        pairs = [min(12, len(target)) for target in self.targets]
        match_points = [
            [self[f"match/{s}points.{b}"] for s in SETS] if pairs[b] else [] for b in range(len(self.targets))
        ]
        refined = [by_picture([self[f"points/{s}{kind}"] for s in SETS], pairs) for kind in ("candidates", "random")]
        self.rand = our_order(match_points, [refined])
        self.criterion = Criterion(7, CONFIG, rand=self.rand)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]


def targets_of(tensors: dict[str, torch.Tensor]) -> list[Target]:
    count = sum(name.startswith("in/target.") and name.endswith(".labels") for name in tensors)
    return [Target(tensors[f"in/target.{b}.labels"], tensors[f"in/target.{b}.masks"]) for b in range(count)]


@pytest.fixture(params=CASES)
def case(golden, request):
    return Case(golden("07_m2f_criterion").tensors, request.param)


def test_costs_and_assignments(case):
    costs = case.criterion.matcher.costs(case.prediction, case.targets, PADDED)
    for b, costs_LQN in enumerate(costs):
        for s, cost_QN in zip(SETS, costs_LQN, strict=True):
            assert_close(cost_QN, case[f"match/{s}cost.{b}"], atol=5e-6, rtol=2e-6)  # sums of 112 terms up to 10


def test_pairs(case):
    matching = case.criterion.matcher(case.prediction, case.targets, PADDED)
    assert matching.non_finite == 0
    for b, pairs in enumerate(matching.pairs):
        for i, s in enumerate(SETS):
            assert pairs.queries_LM[i].tolist() == case[f"match/{s}query_index.{b}"].tolist()
            assert pairs.targets_LM[i].tolist() == case[f"match/{s}target_index.{b}"].tolist()


def test_points(case, monkeypatch):
    """The chosen points as sets: their order means nothing."""
    found = []
    choose = RandomPoints.choose
    monkeypatch.setattr(RandomPoints, "choose", lambda *args: found.append(choose(*args)) or found[-1])
    case.criterion(case.prediction, case.targets, PADDED)
    pairs = [min(12, len(target)) for target in case.targets]
    published = by_picture([case[f"points/{s}final"] for s in SETS], pairs)
    for ours, theirs in zip(found, published, strict=True):
        for points_P2, expected_P2 in zip(ours, torch.cat(theirs), strict=True):
            assert sorted(points_P2.tolist()) == sorted(expected_P2.tolist())


def test_losses_and_gradients(case):
    losses = case.criterion(case.prediction, case.targets, PADDED)
    assert not case.rand.draws, "random points were left over"
    weights = {"ce": 2.0, "mask": 5.0, "dice": 5.0}
    assert set(losses) == {name.removeprefix("loss/") for name in case.tensors if name.startswith("loss/")}
    for name, loss in losses.items():
        expected = weights[name.split("_")[1]] * case[f"loss/{name}"]
        assert_close(loss, expected, atol=2e-6, rtol=2e-6)  # a few ulp of a float32 sum
    sum(losses.values()).backward()
    for s, class_logits, mask_logits in zip(SETS, case.class_logits, case.mask_logits, strict=True):
        assert_close(class_logits.grad, case[f"grad/{s}pred_logits"], atol=1e-7, rtol=1e-5)
        assert_close(mask_logits.grad, case[f"grad/{s}pred_masks"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", [
    "09a_mpformer_published_no_noise", "09b_mpformer_point_noise_two_groups",
    "09c_mpformer_first_three_layers_empty_image",
])
def test_pilots(golden, name):
    """MP-Former: pilot slot t + g·(largest count) answers for target t, whatever it looks like."""
    file = golden(name)
    tensors, targets = file.tensors, targets_of(file.tensors)
    sets = [*(f"aux.{i}." for i in range(file.info["config"]["decoder_layers"])), ""]
    counts = [len(target) for target in targets]
    groups, most = file.info["groups"], max(counts)
    ordinary, piloted = (
        prediction_of(*([tensors[f"out/{part}{s}{kind}"] for s in sets] for kind in ("pred_logits", "pred_masks")))
        for part in ("", "mp.")
    )
    pairs = []
    for n in counts:
        slots = torch.cat([torch.arange(n) + g * most for g in range(groups)])
        numbers = torch.arange(n).repeat(groups)
        pairs.append(Pairs(*(x.expand(len(sets), -1) for x in (slots, numbers))))
    rand = recorded_draws(file, counts, groups, len(sets))
    losses = Criterion(7, CONFIG, rand=rand)(ordinary, targets, PADDED, pilots=Piloted(piloted, pairs, groups))
    assert not rand.draws
    weights = {"ce": 2.0, "mask": 5.0, "dice": 5.0}
    for key, loss in losses.items():
        expected = weights[key.split("_")[1]] * file.info["losses"][key]
        assert_close(loss.item(), expected, atol=5e-6, rtol=5e-6, msg=lambda m, k=key: f"{k}: {m}")
    total = sum(losses.values()).item()
    assert_close(total, file.info["weighted_total"], atol=1e-4, rtol=2e-6)




def recorded_draws(file, counts: list[int], groups: int, layers: int):
    """The draws of a file of MP-Former: per layer (last first) matcher points, then two of each refinement."""
    names = [entry["use"] for entry in file.info["rng"]]
    first = next(i for i, use in enumerate(names) if use.startswith("matcher points"))
    draws = [file.tensors[f"rng/{i:03}"] for i in range(first, len(names))]
    step = len(counts) + 4
    per_layer = [draws[i * step : (i + 1) * step] for i in range(layers)]
    per_layer = [*per_layer[1:], per_layer[0]]
    match_points = [[layer[b] for layer in per_layer] if n else [] for b, n in enumerate(counts)]
    ordinary, piloted = (
        [by_picture([layer[len(counts) + k] for layer in per_layer], pairs) for k in kinds]
        for kinds, pairs in (((0, 1), counts), ((2, 3), [n * groups for n in counts]))
    )
    return our_order(match_points, [ordinary, piloted])
