"""MaskFormer's criterion against published numbers (golden fixture 08d), and the loss of the per-pixel baselines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import params, read
from loss.cases import CONFIG, leaves, prediction_of, random_case
from loss.test_golden import sets_of, targets_of
from torch.testing import assert_close

from m2f_cli.config.schema import LossConfig
from m2f_cli.errors import ConfigError
from m2f_cli.loss import Criterion, PerPixelCriterion, make_criterion
from m2f_cli.loss.mask_sampling import AllPixels
from m2f_cli.loss.per_pixel import class_map
from m2f_cli.structures.predictions import LayerOutput, Prediction
from m2f_cli.structures.targets import Target

FULL = LossConfig(
    masks="full", mask_loss="focal", class_weight=1.0, mask_weight=20.0, dice_weight=1.0, no_object_weight=0.1
)
PER_PIXEL = LossConfig(masks="per_pixel", class_weight=1.0, mask_weight=0.0, dice_weight=0.0, no_object_weight=0.0)


class Case:
    """One case of a file 08d as a prediction (of leaves) and targets."""

    def __init__(self, file):
        start, config = f"{file.part}/", file.info["config"]
        self.tensors = {key[len(start) :]: value for key, value in file.tensors.items() if key.startswith(start)}
        self.sets = sets_of(self.tensors)
        self.class_logits = [self[f"in/{s}pred_logits"].requires_grad_() for s in self.sets]
        self.mask_logits = [self[f"in/{s}pred_masks"].requires_grad_() for s in self.sets]
        self.prediction = prediction_of(self.class_logits, self.mask_logits)
        self.targets = targets_of(self.tensors)
        self.padded_size = tuple(map(max, zip(*(target.size for target in self.targets), strict=True)))
        self.weights = config["loss weights"]
        assert [self.weights[name] for name in ("ce", "mask", "dice")] == [
            config[f"cost_{name}"] for name in ("class", "mask", "dice")
        ], "m2f weighs costs as it weighs losses"
        assert (config["focal alpha"], config["focal gamma"]) == (0.25, 2), "m2f's are constants"
        changes = {
            f"{ours}_weight": float(self.weights[theirs])
            for ours, theirs in (("class", "ce"), ("mask", "mask"), ("dice", "dice"))
        }
        settings = FULL.model_copy(update={**changes, "no_object_weight": config["eos_coef"]})
        self.criterion = Criterion(config["num_classes"], settings)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]


@pytest.fixture(params=params("08d", each=lambda info: list(info["cases"])))
def case(request):
    return Case(read(*request.param))


def test_published_costs_and_assignments(case):
    costs = case.criterion.matcher.costs(case.prediction, case.targets, case.padded_size)
    matching = case.criterion.matcher(case.prediction, case.targets, case.padded_size)
    for b, (costs_LQN, pairs) in enumerate(zip(costs, matching.pairs, strict=True)):
        for i, s in enumerate(case.sets):
            assert_close(costs_LQN[i], case[f"match/{s}cost.{b}"], atol=2e-5, rtol=1e-5)  # up to 20, sums of 520
            assert pairs.queries_LM[i].tolist() == case[f"match/{s}query_index.{b}"].tolist()
            assert pairs.targets_LM[i].tolist() == case[f"match/{s}target_index.{b}"].tolist()


def test_published_losses_and_gradients(case):
    losses = case.criterion(case.prediction, case.targets, case.padded_size)
    assert set(losses) == {name.removeprefix("loss/") for name in case.tensors if name.startswith("loss/")}
    for name, loss in losses.items():
        assert_close(loss, case.weights[name.split("_")[1]] * case[f"loss/{name}"], atol=2e-6, rtol=5e-6)
    sum(losses.values()).backward()
    for s, classes, masks in zip(case.sets, case.class_logits, case.mask_logits, strict=True):
        assert_close(classes.grad, case[f"grad/{s}pred_logits"], atol=1e-7, rtol=1e-5)
        assert_close(masks.grad, case[f"grad/{s}pred_masks"], atol=2e-7, rtol=2e-5)


# --- whole masks ------------------------------------------------------------------------------------------------------

PADDED = (28, 36)


def losses_and_gradients(prediction, targets, criterion=None):
    losses = (criterion or Criterion(4, FULL))(prediction, targets, PADDED)
    return losses, torch.autograd.grad(sum(losses.values()), leaves(prediction), allow_unused=True)


def disjoint(target: Target) -> tuple[Target, Target]:
    """The same target as masks that do not overlap and as an id map."""
    numbers = torch.arange(len(target))[:, None, None]
    nobody_1HW = torch.zeros(1, *target.size, dtype=torch.long)
    owner_HW = torch.cat([nobody_1HW, target.masks_NHW * (numbers + 1)]).amax(0) - 1
    return Target(target.labels_N, owner_HW[None] == numbers), Target(target.labels_N, owner_HW=owner_HW.short())


def test_both_forms_of_a_target_give_the_same():
    prediction, targets = random_case([5, 3, 0])
    masks, maps = zip(*map(disjoint, targets), strict=True)
    expected, expected_gradients = losses_and_gradients(prediction, list(masks))
    found, gradients = losses_and_gradients(prediction, list(maps))
    assert found == expected
    assert all(map(torch.equal, gradients, expected_gradients))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_pairs_in_portions_are_the_same(monkeypatch, chunk):
    prediction, targets = random_case([5, 3])
    expected, expected_gradients = losses_and_gradients(prediction, targets)
    monkeypatch.setattr(AllPixels, "chunk", chunk)
    found, gradients = losses_and_gradients(prediction, targets)
    for name in expected:
        assert_close(found[name], expected[name], atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("padded", [(28, 36), (27, 33), (31, 50), (7, 9)])
def test_targets_are_resized_as_the_published_code_resizes_them(padded):
    """Nearest on the padded masks, for sizes that are no multiple of 4 too."""
    generator = torch.Generator().manual_seed(0)
    size = (max(1, padded[0] - 3), max(1, padded[1] - 2))
    target = Target(torch.zeros(3, dtype=torch.long), torch.rand(3, *size, generator=generator) < 0.5)
    features_CHW = torch.randn(2, -(-padded[0] // 4), -(-padded[1] // 4), generator=generator)
    [(_, target_11NS)] = AllPixels().for_matching(features_CHW[None], torch.randn(1, 1, 4, 2), [target], padded)
    whole = F.pad(target.masks_NHW.float(), (0, padded[1] - size[1], 0, padded[0] - size[0]))
    expected = F.interpolate(whole[None], size=features_CHW.shape[1:], mode="nearest")[0]
    assert expected.any() and torch.equal(target_11NS[0, 0], expected.flatten(1))


def test_a_batch_without_targets_has_gradients_of_zero_for_masks():
    prediction, targets = random_case([0, 0])
    losses, (features, *_) = losses_and_gradients(prediction, targets)
    assert losses["loss_mask"] == losses["loss_dice_0"] == 0 and not features.any()


@pytest.mark.parametrize("change", [{"masks": "full"}, {"num_points": None}, {"masks": "per_pixel"}])
def test_numbers_of_points_belong_to_points(change):
    with pytest.raises(ValueError, match=r"belongs to masks: points"):
        LossConfig(**{**CONFIG.model_dump(), **change})


# --- per pixel --------------------------------------------------------------------------------------------------------


def per_pixel_case() -> tuple[Prediction, list[Target], torch.Tensor]:
    """Two layers of four classes; the first image is smaller than the batch, some of it belongs to nobody."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        LayerOutput(torch.zeros(2, 4, 5), torch.randn(2, 4, 6, generator=generator).requires_grad_()) for _ in range(2)
    ]
    prediction = Prediction(torch.randn(2, 6, 7, 9, generator=generator).requires_grad_(), layers)
    owner = torch.randint(-1, 2, (20, 30), generator=generator)
    labels_HW = torch.full(PADDED, -1)
    labels_HW[:20, :30] = torch.tensor([3, 1, -1])[owner]
    masks = torch.zeros(1, *PADDED, dtype=torch.bool)
    masks[0, 5:] = True
    targets = [Target(torch.tensor([3, 1]), owner_HW=owner.short()), Target(torch.tensor([2]), masks)]
    return prediction, targets, torch.stack([labels_HW, torch.where(masks[0], 2, -1)])


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 3.0)])
def test_per_pixel_loss_is_the_cross_entropy_of_all_pixels(weights):
    prediction, targets, labels_BHW = per_pixel_case()
    losses = make_criterion(4, PER_PIXEL, weights)(prediction, targets, PADDED)
    assert list(losses) == ["loss_ce_0", "loss_ce"]
    for layer, loss in enumerate(losses.values()):
        logits = prediction.render(PADDED, layer=layer)
        expected = F.cross_entropy(logits, labels_BHW, torch.tensor(weights) if weights else None, ignore_index=-1)
        assert_close(loss, expected)
        ours, theirs = (
            torch.autograd.grad(x, prediction.mask_features_BCHW, retain_graph=True)[0] for x in (loss, expected)
        )
        assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_a_image_without_a_label_costs_nothing():
    prediction, _, _ = per_pixel_case()
    nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, *PADDED, dtype=torch.bool))
    losses = PerPixelCriterion(4, 1.0)(prediction, [nothing, nothing], PADDED)
    assert losses["loss_ce"] == 0
    losses["loss_ce"].backward()
    assert not prediction.mask_features_BCHW.grad.any()


def test_where_masks_overlap_the_first_counts():
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], dtype=torch.bool)
    assert class_map(Target(torch.tensor([7, 5]), masks), (2, 5)).tolist() == [[7, 7, 5, -1, -1], [-1] * 5]


def test_class_weights_must_be_as_many_as_classes():
    with pytest.raises(ConfigError, match="3 numbers for 4 classes"):
        make_criterion(4, PER_PIXEL, [1, 1, 1])


def test_per_pixel_loss_needs_a_query_per_class():
    prediction, targets, labels_BHW = per_pixel_case()
    criterion = PerPixelCriterion(prediction.last.mask_embeds_BQC.shape[1] + 3, 1.0)
    with pytest.raises(ConfigError, match=r"per_pixel, which needs one query per class, but \d+ queries answer for"):
        criterion(prediction, targets, tuple(labels_BHW.shape[-2:]))
