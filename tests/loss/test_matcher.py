"""The matcher: optimal, independent of the batch and of the order of targets, and never stopped by a NaN."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss.cases import random_case, same_for_all
from torch.testing import assert_close

from m2f_cli.loss.mask_sampling import RandomPoints
from m2f_cli.loss.matcher import UNUSABLE, Matcher, assign
from m2f_cli.structures.predictions import LayerOutput, Prediction
from m2f_cli.structures.targets import Target

MATCHER = Matcher(2.0, 5.0, 5.0, RandomPoints(50, 3.0, 0.75, same_for_all))
PADDED = (28, 36)
COUNTS = st.lists(st.integers(0, 8), min_size=1, max_size=3)


def image_of(prediction: Prediction, b: int) -> Prediction:
    layers = [LayerOutput(x.class_logits_BQK[b : b + 1], x.mask_embeds_BQC[b : b + 1]) for x in prediction.layers]
    return Prediction(prediction.mask_features_BCHW[b : b + 1], layers)


@settings(max_examples=20, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**31))
def test_a_image_is_matched_as_if_alone(counts, seed):
    """Six queries: images without targets and with more targets than queries are among them."""
    prediction, targets = random_case(counts, seed)
    together = MATCHER(prediction, targets, PADDED)
    for b, target in enumerate(targets):
        (alone,) = MATCHER(image_of(prediction, b), [target], PADDED).pairs
        assert together.pairs[b].queries_LM.shape == (2, min(6, counts[b]))
        for ours, theirs in zip(together.pairs[b], alone, strict=True):
            assert ours.tolist() == theirs.tolist()


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 2**31), data=st.data())
def test_the_order_of_targets_does_not_matter(count, seed, data):
    prediction, (target,) = random_case([count], seed)
    order = torch.tensor(data.draw(st.permutations(range(count))))
    shuffled = Target(target.labels_N[order], target.masks_NHW[order])
    (before,) = MATCHER(prediction, [target], PADDED).pairs
    (after,) = MATCHER(prediction, [shuffled], PADDED).pairs
    assert after.queries_LM.tolist() == before.queries_LM.tolist()
    assert order[after.targets_LM].tolist() == before.targets_LM.tolist()


@settings(max_examples=40, deadline=None)
@given(queries=st.integers(1, 5), count=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_no_assignment_is_cheaper(queries, count, seed):
    costs_LQN = torch.randn(2, queries, count, generator=torch.Generator().manual_seed(seed))
    (pairs,) = assign([costs_LQN]).pairs
    for cost_QN, rows, columns in zip(costs_LQN, *pairs, strict=True):
        assert rows.tolist() == sorted(set(rows.tolist()))
        wide = cost_QN if queries <= count else cost_QN.T
        best = min(
            sum(wide[i, j].item() for i, j in enumerate(order))
            for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert_close(cost_QN[rows, columns].sum().item(), best, atol=1e-5, rtol=0)


def test_both_forms_of_a_target_give_the_same_costs():
    prediction, _ = random_case([0])
    owner_HW = torch.randint(-1, 4, (25, 30), generator=torch.Generator().manual_seed(3)).to(torch.int16)
    as_map = Target(torch.tensor([0, 3, 3, 1]), owner_HW=owner_HW)
    as_masks = Target(as_map.labels_N, as_map.masks())
    ours, theirs = (MATCHER.costs(prediction, [target], PADDED)[0] for target in (as_map, as_masks))
    assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_costs_that_are_no_numbers_are_the_last_choice(broken):
    costs_LQN = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0))
    costs_LQN[0, 0] = broken  # a query that answers nothing sensible
    costs_LQN[0, 1, 0] = broken
    matching = assign([costs_LQN])
    assert matching.non_finite == 4
    assert matching.pairs[0].queries_LM.tolist() == [[1, 2, 3]]
    sound = costs_LQN.clone()
    sound[0, 0], sound[0, 1, 0] = 50, 50
    assert matching.pairs[0].targets_LM.tolist() == assign([sound]).pairs[0].targets_LM.tolist()
    (all_broken,) = assign([torch.full((1, 4, 3), broken)]).pairs
    assert all_broken.targets_LM.shape == (1, 3)


def test_broken_costs_do_not_blur_the_others():
    """The stand-in is small enough for float64 to tell apart costs that differ in the sixth decimal."""
    costs_QN = torch.tensor([[1.0, 1.0], [float("nan"), 1.0], [1.0, 1.0 + 1e-6]])
    costs_QN[0, 1] = 1.0 - 1e-6
    assert UNUSABLE + 1e-6 > UNUSABLE
    pairs = assign([costs_QN[None]]).pairs[0]
    assert list(zip(*(x[0].tolist() for x in pairs), strict=True)) == [(0, 1), (2, 0)]


def test_nan_in_the_network_reaches_the_count():
    prediction, targets = random_case([3, 2])
    with torch.no_grad():
        prediction.layers[1].mask_embeds_BQC[0, 4] = float("nan")
        prediction.layers[0].class_logits_BQK[1, 2, 0] = float("inf")
    matching = MATCHER(prediction, targets, PADDED)
    assert matching.non_finite == 3 + 2
    assert 4 not in matching.pairs[0].queries_LM[1].tolist()
    assert 2 not in matching.pairs[1].queries_LM[0].tolist()


def test_costs_are_float32_under_autocast():
    prediction, targets = random_case([3])
    expected = MATCHER.costs(prediction, targets, PADDED)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = MATCHER.costs(prediction, targets, PADDED)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_all_layers_and_images_come_to_the_host_at_once(monkeypatch):
    transfers = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.numel()) or to_host(tensor))
    prediction, targets = random_case([3, 0, 5], layers=4)
    MATCHER(prediction, targets, PADDED)
    assert transfers == [4 * 6 * (3 + 0 + 5)]
