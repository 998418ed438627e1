"""Points against grid_sample: maps with gradients, targets in both forms, padding, edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from m2f_cli.ops import point_sampling as points
from m2f_cli.ops import target_sampling
from m2f_cli.ops.point_sampling import sample_points
from m2f_cli.ops.target_sampling import sample_matched, sample_pairs, sample_target, sample_targets
from m2f_cli.structures.targets import Target

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def some_points(*shape: int, seed: int = 0) -> torch.Tensor:
    """Mostly inside, some outside, and the borders and corners themselves."""
    found = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    found.flatten(0, -2)[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.5], [1.0, 0.0]])[: found[..., 0].numel()]
    return found


def values_and_gradient(sample, maps, where):
    maps = maps.clone().requires_grad_()
    samples = sample(maps, where)
    (samples * torch.linspace(-1, 1, samples.numel()).view_as(samples)).sum().backward()
    return samples.detach(), maps.grad


@settings(max_examples=30, deadline=None)
@given(size=SIZES, batch=st.integers(1, 3), channels=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_maps_at_points(size, batch, channels, seed):
    maps = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    where = some_points(batch, 13, seed=seed)
    expected = values_and_gradient(points.sample_reference, maps, where)
    for sample in (sample_points, points.sample_rows):
        for ours, theirs in zip(values_and_gradient(sample, maps, where), expected, strict=True):
            assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # coordinates are rounded differently, times slopes of ~3


@pytest.mark.parametrize("channels", [1, points.MANY_CHANNELS])
def test_a_point_by_hand(channels):
    """Half way between two columns, on the centre of a row; the outer border is half a pixel from the centres."""
    maps = torch.tensor([[1.0, 3.0], [10.0, 20.0]]).expand(1, channels, 2, 2)
    where = torch.tensor([[[0.5, 0.25], [0.25, 0.25], [0.0, 0.25], [1.0, 1.0], [1.3, 0.5]]])
    assert sample_points(maps, where)[0, -1].tolist() == [2.0, 1.0, 0.5, 5.0, 0.0]


def test_points_have_no_gradient():
    where = some_points(1, 5).requires_grad_()
    for channels in (1, 32):
        sample_points(torch.randn(1, channels, 4, 4).requires_grad_(), where).sum().backward()
    assert where.grad is None


def test_both_layouts_of_many_channels_agree():
    maps = torch.randn(2, 32, 5, 6)
    where = some_points(2, 9)
    assert torch.equal(
        sample_points(maps, where), sample_points(maps.contiguous(memory_format=torch.channels_last), where)
    )


def make_target(size, count: int, seed: int, owner_dtype=torch.int16) -> tuple[Target, Target]:
    """The same targets as an id map and as masks; the last one has no pixel, some pixels are nobody's."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(-1, max(count - 1, 0), size, generator=generator).to(owner_dtype)
    labels = torch.arange(count)
    return Target(labels, owner_HW=owner), Target(labels, (owner[None] == labels[:, None, None]).to(torch.uint8))


@settings(max_examples=30, deadline=None)
@given(
    size=SIZES,
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    count=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    owner_dtype=st.sampled_from([torch.int16, torch.int32]),
)
def test_targets_at_points(size, padding, count, seed, owner_dtype):
    """Both forms read like grid_sample of the padded masks in floating point."""
    as_map, as_masks = make_target(size, count, seed, owner_dtype)
    padded_size = (size[0] + padding[0], size[1] + padding[1])
    where = some_points(11, seed=seed)
    full = torch.zeros(1, count, *padded_size)
    full[:, :, : size[0], : size[1]] = as_masks.masks_NHW
    expected = points.sample_reference(full, where[None])[0]
    for target in (as_map, as_masks, Target(as_map.labels_N, as_masks.masks_NHW.bool())):
        found = sample_target(target, where, padded_size)
        assert found.dtype == torch.float32
        assert_close(found, expected, atol=5e-6, rtol=0)  # a rounded coordinate of up to 14, on each axis
    assert_close(sample_target(as_map, where, padded_size), sample_target(as_masks, where, padded_size))


@settings(max_examples=20, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**31), chosen=st.lists(st.integers(0, 3), max_size=6))
def test_each_at_points_of_its_own(size, seed, chosen):
    """Row m of `sample_matched` is that row of `sample_target` at m's points; numbers may repeat."""
    padded_size = (size[0] + 2, size[1] + 3)
    where = some_points(len(chosen), 7, seed=seed) if chosen else torch.zeros(0, 7, 2)
    numbers = torch.tensor(chosen, dtype=torch.long)
    for target, impl in itertools.product(make_target(size, 4, seed), ("masks", "pixels")):
        found = sample_matched(target, numbers, where, padded_size, impl=impl)
        assert found.shape == (len(chosen), 7)
        for number, row, found_P in zip(chosen, where, found, strict=True):
            # A coordinate of up to 12 is rounded twice on one of the ways.
            assert_close(found_P, sample_target(target, row, padded_size)[number], atol=5e-6, rtol=1e-5)


def test_more_pairs_than_are_read_together(monkeypatch: pytest.MonkeyPatch):
    target, numbers, where = make_target((9, 7), 4, 0)[0], torch.arange(10) % 4, some_points(10, 7, seed=0)
    expected = sample_matched(target, numbers, where, (9, 7), impl="pixels")
    monkeypatch.setattr(target_sampling, "PAIRS_AT_ONCE", 3)
    assert torch.equal(sample_matched(target, numbers, where, (9, 7), impl="pixels"), expected)


@pytest.mark.parametrize("few", [0, 10**9])
def test_masks_in_another_order_read_the_same(few, monkeypatch: pytest.MonkeyPatch):
    target, where = make_target((9, 7), 4, 0)[1], some_points(6)
    expected = sum(target.masks_NHW[:, y, x] * weight for y, x, weight in points.corner_weights(where, (11, 8), (9, 7)))
    monkeypatch.setattr(target_sampling, "PIXELS_PER_POINT", few)
    assert torch.equal(sample_target(target, where, (11, 8)), expected)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), seed=st.integers(0, 2**31), data=st.data())
def test_several_images_read_as_each_alone(sizes, seed, data):
    """Images of different sizes and numbers of targets, as id maps (read together) and as masks (read one by one)."""
    padded_size = tuple(max(edges) + 2 for edges in zip(*sizes, strict=True))
    counts = data.draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)))
    numbers = [torch.tensor(data.draw(st.lists(st.integers(0, max(n - 1, 0)), max_size=5 if n else 0))) for n in counts]
    numbers = [each.long() for each in numbers]
    forms = [make_target(size, count, seed) for size, count in zip(sizes, counts, strict=True)]
    together = some_points(len(sizes), 6, seed=seed)
    own = some_points(sum(map(len, numbers)), 7, seed=seed) if any(map(len, numbers)) else torch.zeros(0, 7, 2)
    for targets in zip(*forms, strict=True):
        found_BNX = sample_targets(targets, together, padded_size)
        assert found_BNX.shape == (len(sizes), max(counts), 6)
        for found_NX, target, where in zip(found_BNX, targets, together, strict=True):
            assert_close(found_NX[: len(target)], sample_target(target, where, padded_size), atol=5e-6, rtol=0)
            assert not found_NX[len(target) :].any()
        found_RP = sample_pairs(targets, numbers, own, padded_size)
        parts = zip(targets, numbers, own.split([len(each) for each in numbers]), strict=True)
        expected_RP = torch.cat([sample_matched(*part, padded_size, impl="pixels") for part in parts])
        assert_close(found_RP, expected_RP, atol=5e-6, rtol=0)  # a rounded coordinate of up to 11, on each axis


def test_no_targets_give_no_samples():
    for target in make_target((4, 5), 0, 0):
        assert sample_target(target, some_points(6), (4, 5)).shape == (0, 6)
        assert sample_matched(target, torch.empty(0, dtype=torch.long), torch.zeros(0, 6, 2), (4, 5)).shape == (0, 6)


def test_overlapping_masks_count_twice():
    masks = torch.ones(2, 2, 2, dtype=torch.bool)
    assert sample_target(Target(torch.zeros(2), masks), torch.tensor([[0.5, 0.5]]), (2, 2)).tolist() == [[1.0], [1.0]]


def test_target_larger_than_its_batch():
    with pytest.raises(ValueError, match="4 x 9 pixels.* 8 x 8"):
        sample_target(make_target((4, 9), 1, 0)[0], some_points(1), (8, 8))
    with pytest.raises(ValueError, match="4 x 9 pixels.* 8 x 8"):
        sample_targets([make_target((4, 9), 1, 0)[0]] * 2, some_points(2, 1), (8, 8))
