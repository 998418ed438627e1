"""Costs, assignments, points, losses and gradients of the published criterion, from recorded random draws."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import for_files, has, params, read
from helpers.pilots import loss_config, padded_size
from loss.cases import by_image, our_order, prediction_of
from torch.testing import assert_close

from m2f_cli.config.schema import LossConfig
from m2f_cli.loss import Criterion, Pairs, Piloted
from m2f_cli.loss.mask_sampling import RandomPoints
from m2f_cli.structures.targets import Target


def sets_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The prefixes of the sets of predictions, first to last, as our layers."""
    aux = sum(name.startswith("in/aux.") and name.endswith("pred_logits") for name in tensors)
    return [*(f"aux.{i}." for i in range(aux)), ""]


class Case:
    """One case of a file 07 as a prediction (of leaves), targets, and the criterion with the recorded draws."""

    def __init__(self, file):
        start, config = f"{file.part}/", file.info["config"]
        self.tensors = {key[len(start) :]: value for key, value in file.tensors.items() if key.startswith(start)}
        self.sets = sets_of(self.tensors)
        self.class_logits = [self[f"in/{s}pred_logits"].requires_grad_() for s in self.sets]
        self.mask_logits = [self[f"in/{s}pred_masks"].requires_grad_() for s in self.sets]
        self.prediction = prediction_of(self.class_logits, self.mask_logits)
        self.targets = targets_of(self.tensors)
        self.padded = tuple(map(max, zip(*(target.size for target in self.targets), strict=True)))
        self.pairs = [min(self.class_logits[0].shape[1], len(target)) for target in self.targets]
        match_points = [
            [self[f"match/{s}points.{b}"] for s in self.sets] if n else [] for b, n in enumerate(self.pairs)
        ]
        refined = [
            by_image([self[f"points/{s}{kind}"] for s in self.sets], self.pairs) for kind in ("candidates", "random")
        ]
        self.rand = our_order(match_points, [refined])
        self.weights = config["loss weights"]
        assert [self.weights[name] for name in ("ce", "mask", "dice")] == [
            config[f"cost_{name}"] for name in ("class", "mask", "dice")
        ], "m2f weighs costs as it weighs losses"
        settings = LossConfig(
            class_weight=self.weights["ce"],
            mask_weight=self.weights["mask"],
            dice_weight=self.weights["dice"],
            no_object_weight=config["eos_coef"],
            num_points=config["num_points"],
            oversample_ratio=config["oversample_ratio"],
            importance_ratio=config["importance_sample_ratio"],
        )
        self.criterion = Criterion(config["num_classes"], settings, rand=self.rand)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]


def targets_of(tensors: dict[str, torch.Tensor]) -> list[Target]:
    count = sum(name.startswith("in/target.") and name.endswith(".labels") for name in tensors)
    return [Target(tensors[f"in/target.{b}.labels"], tensors[f"in/target.{b}.masks"]) for b in range(count)]


@pytest.fixture(params=params("07", each=lambda info: list(info["cases"])))
def case(request):
    return Case(read(*request.param))


def test_costs_and_assignments(case):
    costs = case.criterion.matcher.costs(case.prediction, case.targets, case.padded)
    for b, costs_LQN in enumerate(costs):
        for s, cost_QN in zip(case.sets, costs_LQN, strict=True):
            assert_close(cost_QN, case[f"match/{s}cost.{b}"], atol=5e-6, rtol=2e-6)  # sums of 112 terms up to 10


def test_pairs_are_the_published_ones(case):
    matching = case.criterion.matcher(case.prediction, case.targets, case.padded)
    assert matching.non_finite == 0
    for b, pairs in enumerate(matching.pairs):
        for i, s in enumerate(case.sets):
            assert pairs.queries_LM[i].tolist() == case[f"match/{s}query_index.{b}"].tolist()
            assert pairs.targets_LM[i].tolist() == case[f"match/{s}target_index.{b}"].tolist()


def test_chosen_points_are_the_published_ones(case, monkeypatch):
    """The chosen points as sets: their order means nothing."""
    found = []
    choose = RandomPoints.choose
    monkeypatch.setattr(RandomPoints, "choose", lambda *args: found.append(choose(*args)) or found[-1])
    case.criterion(case.prediction, case.targets, case.padded)
    published = by_image([case[f"points/{s}final"] for s in case.sets], case.pairs)
    expected = torch.cat([points for layers in published for points in layers])
    for points_P2, expected_P2 in zip(torch.cat(found) if found else expected[:0], expected, strict=True):
        assert sorted(points_P2.tolist()) == sorted(expected_P2.tolist())


def test_losses_and_gradients(case):
    losses = case.criterion(case.prediction, case.targets, case.padded)
    assert case.rand.used_up, "random points were left over"
    assert set(losses) == {name.removeprefix("loss/") for name in case.tensors if name.startswith("loss/")}
    for name, loss in losses.items():
        expected = case.weights[name.split("_")[1]] * case[f"loss/{name}"]
        assert_close(loss, expected, atol=2e-6, rtol=2e-6)  # a few ulp of a float32 sum
    sum(losses.values()).backward()
    for s, class_logits, mask_logits in zip(case.sets, case.class_logits, case.mask_logits, strict=True):
        assert_close(class_logits.grad, case[f"grad/{s}pred_logits"], atol=1e-7, rtol=1e-5)
        assert_close(mask_logits.grad, case[f"grad/{s}pred_masks"], atol=1e-7, rtol=1e-4)


def has_all_sets(info: dict) -> bool:
    """Whether a file of MP-Former has pilots, their predictions of all layers, and the random points."""
    layers = range(info["config"]["decoder_layers"])
    names = [f"out/{part}aux.{i}.pred_masks" for part in ("", "mp.") for i in layers]
    points = [f"rng/{entry['index']:03}" for entry in info["rng"] if "points" in entry["use"]]
    return info["groups"] > 0 and all(has(info, name) for name in names + points)


@for_files("09", where=has_all_sets)
def test_pilot_losses_are_the_published_ones(golden_file):
    """MP-Former: pilot slot t + g·(largest count) answers for target t, whatever it looks like."""
    file, config = golden_file, golden_file.info["config"]
    tensors, targets = file.tensors, targets_of(file.tensors)
    sets = [*(f"aux.{i}." for i in range(config["decoder_layers"])), ""]
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
    criterion = Criterion(config["num_classes"], loss_config(config), rand=rand)
    losses = criterion(ordinary, targets, padded_size(file), pilots=Piloted(piloted, pairs, groups))
    assert rand.used_up
    weights = {"ce": config["cost/loss weights"]["class"], **config["cost/loss weights"]}
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
        [by_image([layer[len(counts) + k] for layer in per_layer], pairs) for k in kinds]
        for kinds, pairs in (((0, 1), counts), ((2, 3), [n * groups for n in counts]))
    )
    return our_order(match_points, [ordinary, piloted])
