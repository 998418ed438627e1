"""The criterion where the published files do not reach: odd targets, options, autocast, its own invariants."""

from __future__ import annotations

import pytest
import torch
from loss.cases import CONFIG, leaves, random_case, same_for_all
from torch.nn.functional import cross_entropy, grid_sample
from torch.testing import assert_close

from m2f_cli.errors import ConfigError
from m2f_cli.loss import Criterion, make_criterion, mask_sampling, normaliser
from m2f_cli.structures.predictions import LayerOutput, Prediction
from m2f_cli.structures.targets import Target

PADDED = (28, 36)


def losses_and_gradients(prediction, targets, **options):
    module = Criterion(4, options.pop("config", CONFIG), rand=same_for_all, **options)
    losses = module(prediction, targets, PADDED)
    return losses, torch.autograd.grad(sum(losses.values()), leaves(prediction)), module


def one_pixel(y: int, x: int) -> torch.Tensor:
    mask = torch.zeros(1, *PADDED, dtype=torch.bool)
    mask[0, y, x] = True
    return mask


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(1, *PADDED, dtype=torch.bool),
        torch.ones(1, *PADDED, dtype=torch.bool),
        one_pixel(0, 0),
        one_pixel(13, 17),
        torch.zeros(0, *PADDED, dtype=torch.bool),
        torch.ones(9, *PADDED, dtype=torch.bool),
        torch.ones(1, 1, 1, dtype=torch.bool),
    ],
    ids=["no pixel", "all pixels", "corner", "one pixel", "no target", "more than queries", "tiny image"],
)
def test_odd_targets_give_finite_losses_and_gradients(masks):
    """Beside an ordinary image: everything finite, a gradient for every leaf, all that can be matched is."""
    prediction, targets = random_case([2, 1])
    targets[1] = Target(torch.zeros(len(masks), dtype=torch.long), masks)
    losses, gradients, module = losses_and_gradients(prediction, targets)
    assert list(losses) == [f"loss_{kind}{n}" for kind in ("ce", "mask", "dice") for n in ("_0", "")]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    matched = 2 + min(6, len(masks))
    unmatched = len(masks) - min(6, len(masks))
    assert module.stats == {"matched": matched, "unmatched_targets": unmatched, "non_finite_costs": 0}


def test_a_batch_without_targets_has_gradients_of_zero_for_masks():
    """Every parameter takes part, as DistributedDataParallel wants; classes learn "no object"."""
    prediction, targets = random_case([0, 0])
    losses, (features, *others), _ = losses_and_gradients(prediction, targets)
    assert losses["loss_mask"] == losses["loss_dice_0"] == 0
    assert not features.any()
    assert [gradient.any().item() for gradient in others] == [True, True, False, False]
    expected = cross_entropy(prediction.last.class_logits_BQK.flatten(0, 1), torch.full((12,), 4))
    assert_close(losses["loss_ce"], 2 * expected)


def test_class_loss_by_hand():
    """Weights of one class and of "no object"; the mean divides by the sum of weights, not by the targets."""
    prediction, targets = random_case([2], queries=3)
    targets[0].labels_N[:] = torch.tensor([1, 3])
    losses, _, module = losses_and_gradients(prediction, targets, class_weights=[1.0, 4.0, 1.0, 0.5])
    (pairs,) = module.matcher(prediction, targets, PADDED).pairs
    for layer, name in ((0, "loss_ce_0"), (1, "loss_ce")):
        log_probs_QK = prediction.layers[layer].class_logits_BQK[0].log_softmax(-1)
        classes = torch.full((3,), 4)
        classes[pairs.queries_LM[layer]] = targets[0].labels_N[pairs.targets_LM[layer]]
        weights = torch.tensor([{1: 4.0, 3: 0.5, 4: 0.1}[c] for c in classes.tolist()])
        assert_close(losses[name], 2 * -(log_probs_QK[range(3), classes] * weights).sum() / weights.sum())


def test_class_weights_must_be_as_many_as_classes():
    with pytest.raises(ConfigError, match="3 numbers for 4 classes"):
        make_criterion(4, CONFIG, [1, 1, 1])


def test_both_forms_of_a_target_give_the_same_losses():
    prediction, _ = random_case([0])
    owner_HW = torch.randint(-1, 8, (25, 30), generator=torch.Generator().manual_seed(3)).to(torch.int16)
    as_map = Target(torch.arange(8) % 4, owner_HW=owner_HW)
    as_masks = Target(as_map.labels_N, as_map.masks())
    (ours, our_gradients, _), (theirs, their_gradients, _) = (
        losses_and_gradients(prediction, [target]) for target in (as_map, as_masks)
    )
    for name in theirs:
        assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["masks", "id map"])
@pytest.mark.parametrize("numbers", [1, 300, 2000])
def test_images_layers_and_pairs_in_portions_are_the_same(numbers, form, monkeypatch):
    """From one image, layer and pair at a time to several; one image has no targets."""
    prediction, targets = random_case([5, 0, 3])
    if form == "id map":
        owners = [torch.where(t.masks_NHW.any(0), t.masks_NHW.int().argmax(0), -1) for t in targets if len(t)]
        owners.insert(1, torch.full(targets[1].size, -1))
        targets = [Target(t.labels_N, owner_HW=owner) for t, owner in zip(targets, owners, strict=True)]
    expected, expected_gradients, _ = losses_and_gradients(prediction, targets)
    monkeypatch.setattr(mask_sampling, "NUMBERS_AT_ONCE", numbers)
    found, gradients, _ = losses_and_gradients(prediction, targets)
    for name, loss in expected.items():
        assert_close(found[name], loss, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_points_are_where_masks_are_undecided():
    """With every point an important one, those taken have the smallest |logits| of all candidates."""
    config = CONFIG.model_copy(update={"importance_ratio": 1.0})
    logits_RHW = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
    points_RP2 = Criterion(4, config, rand=same_for_all).sampling.choose(logits_RHW)
    candidates_RP2 = same_for_all((2, 336, 2), logits_RHW.device)
    taken_RP, all_RP = (
        grid_sample(logits_RHW[:, None], 2 * x[:, None] - 1, align_corners=False)[:, 0, 0].abs().sort(-1).values
        for x in (points_RP2, candidates_RP2)
    )
    assert torch.equal(taken_RP, all_RP[:, :112])


def test_float32_under_autocast():
    """Half-precision outputs are accepted; the losses are computed as if they were float32 from the start."""
    prediction, targets = random_case([3, 2])
    half = Prediction(
        prediction.mask_features_BCHW,
        [LayerOutput(x.class_logits_BQK.bfloat16(), x.mask_embeds_BQC.bfloat16()) for x in prediction.layers],
    )
    full = Prediction(
        half.mask_features_BCHW,
        [LayerOutput(x.class_logits_BQK.float(), x.mask_embeds_BQC.float()) for x in half.layers],
    )
    expected = Criterion(4, CONFIG, rand=same_for_all)(full, targets, PADDED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Criterion(4, CONFIG, rand=same_for_all)(half, targets, PADDED)
    assert found == expected
    assert {loss.dtype for loss in found.values()} == {torch.float32}


def test_nan_in_one_query_does_not_stop_training_data_from_being_matched():
    prediction, targets = random_case([3])
    with torch.no_grad():
        prediction.layers[0].mask_embeds_BQC[0, 2] = float("nan")
    module = Criterion(4, CONFIG, rand=same_for_all)
    losses = module(prediction, targets, PADDED)
    assert module.stats["non_finite_costs"] == 3
    assert all(losses[name].isfinite() for name in losses), "the broken query was not needed and should not be matched"


def test_the_normaliser_is_the_mean_number_of_masks():
    targets = [Target(torch.zeros(n), torch.zeros(n, 1, 1)) for n in (3, 0, 4)]
    assert normaliser(targets).item() == 7
    assert normaliser(targets, parts=2).item() == 3.5
    assert normaliser(targets[1:2]).item() == 1


def test_num_masks_divides_mask_losses_only():
    prediction, targets = random_case([3, 2])
    module = Criterion(4, CONFIG, rand=same_for_all)
    usual, given = module(prediction, targets, PADDED), module(prediction, targets, PADDED, num_masks=10.0)
    assert given["loss_ce"] == usual["loss_ce"]
    for name in ("loss_mask", "loss_dice_0"):
        assert_close(given[name], usual[name] * 5 / 10)


def test_nothing_of_the_criterion_is_in_a_checkpoint():
    assert not Criterion(4, CONFIG).state_dict()
