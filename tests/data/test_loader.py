"""Batches: the same whatever the number of workers, continued bit by bit, shared out among processes."""

from __future__ import annotations

import itertools
import math
from multiprocessing import connection

import numpy as np
import pytest
import torch

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import InputConfig
from m2f_cli.data import loader as loading
from m2f_cli.data.loader import (
    Batch,
    Loader,
    SampleStream,
    batches,
    collate,
    repeat_factors,
    training_loader,
)
from m2f_cli.data.records import DataSet, Record
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.data.synthetic.scenes import CATEGORIES
from m2f_cli.data.training_set import SampleIndex, TrainingSample, TrainingSet
from m2f_cli.data.transforms.color import ColorJitter
from m2f_cli.data.transforms.crop import RandomCrop
from m2f_cli.data.transforms.resize import Flip
from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.structures.annotations import SemanticAnnotation
from m2f_cli.structures.targets import Target

NORMALISE = InputConfig(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
STEPS = [RandomCrop(32, 40, 1.0), ColorJitter(32, (0.5, 1.5), (0.5, 1.5), 18), Flip(0.5)]


def scenes(count=5, on_error="raise"):
    data = synthetic_dataset(count=count, size=(40, 56))
    return TrainingSet(data, STEPS, "panoptic", seed=3, on_error=on_error)


def loader(samples=None, *, seed=3, rank=0, world=1, batch=2, **options):
    samples = samples or scenes()
    return Loader(samples, SampleStream(len(samples), seed, rank, world), NORMALISE, batch=batch, **options)


def take(batches, count):
    return list(itertools.islice(batches, count))


def equal(one: Batch, other: Batch):
    return (
        torch.equal(one.images_BCHW, other.images_BCHW)
        and (one.names, one.position) == (other.names, other.position)
        and all(
            torch.equal(a.owner_HW, b.owner_HW) and torch.equal(a.labels_N, b.labels_N)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


# --- batches ----------------------------------------------------------------------------------------------------------


def sample(height, width, canvas=(0, 0), value=200):
    target = Target(torch.zeros(0, dtype=torch.int64), owner_HW=torch.full((height, width), -1, dtype=torch.int16))
    return TrainingSample(torch.full((3, height, width), value, dtype=torch.uint8), target, "a", 0, canvas)


@pytest.mark.parametrize(
    ("samples", "divisor", "size"),
    [
        ([sample(5, 9), sample(7, 4)], 0, (7, 9)),
        ([sample(5, 9), sample(7, 4)], 4, (8, 12)),
        ([sample(5, 9, canvas=(16, 6)), sample(7, 4)], 0, (16, 9)),
        ([sample(32, 64)], 32, (32, 64)),
    ],
)
def test_padding_is_zero_after_normalisation(samples, divisor, size):
    batch = collate(samples, NORMALISE, divisor)
    assert batch.padded_size == size and batch.images_BCHW.dtype == torch.float32
    for image, made in zip(batch.images_BCHW, samples, strict=True):
        height, width = made.image_CHW.shape[1:]
        for channel, mean, std in zip(image, NORMALISE.mean, NORMALISE.std, strict=True):
            np.testing.assert_allclose(channel[:height, :width].numpy(), (200 - mean) / std, rtol=1e-6)
            assert not channel[height:].any() and not channel[:, width:].any()
    assert [target.size for target in batch.targets] == [tuple(s.image_CHW.shape[1:]) for s in samples]


def test_a_batch_moves_as_a_whole():
    moved = collate([sample(5, 9)], NORMALISE, 0).to("meta")
    assert moved.images_BCHW.is_meta and moved.targets[0].owner_HW.is_meta and moved.names == ["a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_pinned_batches_are_the_plain_ones():
    pinned, plain = (take(loader(pin=pin, workers=1), 2) for pin in (True, False))
    assert all(map(equal, pinned, plain))
    assert all(b.images_BCHW.is_pinned() and b.targets[0].owner_HW.is_pinned() for b in pinned)


def test_batches_of_wide_and_of_other_images():
    wide = [True, False, True, True, False, False, True]
    draws = [SampleIndex(i, i) for i in range(7)]
    found = [[draw.index for draw in group] for group in batches(draws, 2, wide)]
    assert found == [[0, 2], [1, 4], [3, 6]]
    assert [[d.index for d in group] for group in batches(draws, 3)] == [[0, 1, 2], [3, 4, 5]]


# --- the stream -------------------------------------------------------------------------------------------------------


def test_every_epoch_holds_every_record_once():
    draws = take(SampleStream(7, seed=0), 35)
    assert [draw.position for draw in draws] == list(range(35))
    epochs = [tuple(draw.index for draw in draws[i : i + 7]) for i in range(0, 35, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 5
    assert epochs[0] != tuple(draw.index for draw in take(SampleStream(7, seed=1), 7))


@pytest.mark.parametrize("world", [2, 3, 4, 10])
def test_processes_share_the_stream_of_one(world):
    alone = take(SampleStream(7, seed=0), 60)
    shares = [take(SampleStream(7, seed=0, rank=rank, world=world), 60 // world) for rank in range(world)]
    assert sorted(itertools.chain(*shares)) == alone[: 60 // world * world]
    for rank, share in enumerate(shares):
        assert {draw.position % world for draw in share} == {rank}


def test_records_are_repeated_as_often_as_asked():
    stream = SampleStream(3, seed=0, repeats=np.array([1.0, 2.0, 1.25]))
    counts = np.array([np.bincount(stream.epoch(number), minlength=3) for number in range(400)])
    assert (counts[:, 0] == 1).all() and (counts[:, 1] == 2).all()
    assert set(counts[:, 2]) == {1, 2}
    assert abs(counts[:, 2].mean() - 1.25) < 0.08
    draws = take(stream, 200)
    assert [draw.position for draw in draws] == list(range(200))  # epochs of 4 and of 5


def test_repeat_factors_are_those_of_lvis():
    labels = [(0,), (0, 1), (0,), (), (0, 1, 2), (0,), (0,), (0,), (0,), (0,)]
    factors = repeat_factors(labels, threshold=0.4)
    assert factors[0] == 1.0 and factors[3] == 1.0  # f = 0.9; no class
    assert math.isclose(factors[1], math.sqrt(0.4 / 0.2))
    assert math.isclose(factors[4], math.sqrt(0.4 / 0.1))


def test_a_stream_of_nothing():
    for wrong in ({"count": 0}, {"rank": 2, "world": 2}, {"rank": -1}):
        with pytest.raises(ConfigError, match="records for process"):
            SampleStream(**{"count": 3, "seed": 0, **wrong})


# --- the loader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    expected, found = take(loader(), 7), take(loader(workers=workers), 7)
    assert all(map(equal, expected, found))
    assert [batch.position for batch in found] == list(range(7))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(loader(), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wide", [None, [True, False, True, False, False]])
def test_it_continues_bit_by_bit(wide):
    whole = take(loader(wide=wide), 9)
    first = loader(wide=wide)
    take(first, 4)
    assert first.state() == 4
    for later in (loader(wide=wide, start=first.state()), loader(wide=wide, start=4, workers=2), first):
        assert all(map(equal, take(later, 5), whole[4:]))


def test_what_was_prefetched_and_not_taken_is_not_counted():
    ahead = loader(workers=2)
    iterator = iter(ahead)
    next(iterator)
    assert ahead.state() == 1
    del iterator
    assert equal(take(ahead, 1)[0], take(loader(start=1), 1)[0])


def test_processes_together_see_what_one_sees():
    alone = take(loader(batch=6), 3)
    shares = [take(loader(batch=2, rank=rank, world=3), 3) for rank in range(3)]
    for number, whole in enumerate(alone):
        parts = [share[number] for share in shares]
        assert sorted(whole.names) == sorted(itertools.chain(*(part.names for part in parts)))
        images = torch.stack([p.images_BCHW for p in parts], dim=1).flatten(0, 1)  # they take turns
        assert torch.equal(images, whole.images_BCHW)


class Broken:
    def __call__(self):
        raise DataError("It is damaged.", hint="Copy it again.")


class Fine:
    def __call__(self):
        return np.zeros((40, 56, 3), np.uint8)


class Annotation:
    def __call__(self):
        return SemanticAnnotation(np.zeros((40, 56), np.uint8))


def partly_broken(on_error):
    records = [Record(f"r{i}", None, Annotation(), read_image=Broken() if i == 2 else Fine()) for i in range(4)]
    return TrainingSet(
        DataSet("fake", "fake", "train", "semantic", CATEGORIES, records), STEPS, "semantic", on_error=on_error
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_one_sentence_also_from_a_worker(workers):
    with pytest.raises(DataError) as caught:
        take(loader(partly_broken("raise"), workers=workers), 4)
    assert str(caught.value) == "r2: It is damaged. Copy it again."


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_records_are_reported(workers):
    found = take(loader(partly_broken("skip"), workers=workers, batch=4), 3)
    assert [batch.skipped for batch in found] == [("r2: It is damaged. Copy it again.",)] * 3
    assert all(len(batch) == 4 and batch.names.count("r3") == 2 for batch in found)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": -1}, {"start": -1}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match="should be"):
        loader(**wrong)


# --- from a configuration ---------------------------------------------------------------------------------------------


def test_the_tiny_preset_gives_batches():
    tiny = configuration.load("tiny")
    data = synthetic_dataset(count=6, size=tiny.data.scenes.size, objects=tiny.data.scenes.objects)
    made = training_loader(tiny, data, batch=2)
    first, second = take(made, 2)
    assert first.images_BCHW.shape[1] == 3 and all(edge % 32 == 0 for edge in first.padded_size)
    assert all(len(target) and target.size == tiny.data.scenes.size for target in first.targets)
    again = take(training_loader(tiny, data, batch=2, start=1), 1)[0]
    assert equal(second, again)


def test_the_configuration_decides():
    tiny = configuration.load(
        "tiny",
        [
            "task=instance",
            "train.drop_empty=true",
            "train.group_by_aspect=true",
            "train.seed=4",
            "train.repeat_factor_threshold=1.0",
        ],
    )
    data = synthetic_dataset(count=8, task="instance")
    empty = [Record("empty", None, Broken(), 160, 240, labels=(4,), read_image=Broken())] * 3
    data = DataSet(data.name, data.format, data.split, data.task, data.categories, [*data.records, *empty])
    made = training_loader(tiny, data, batch=2)
    assert made.stream.count == len(made.wide) == 8 and all(made.wide)
    assert made.stream.seed == 4 and made.stream.repeats.max() > 1.0
    batch = take(made, 1)[0]
    assert batch.targets[0].masks_NHW is not None and "empty" not in batch.names


def test_a_configuration_without_training():
    tiny = configuration.load("tiny")
    with pytest.raises(ConfigError, match="tiny has no train section"):
        training_loader(tiny.model_copy(update={"train": None}), synthetic_dataset(count=1), batch=1)


@pytest.mark.parametrize(
    ("name", "task", "size", "target"),
    [
        ("coco-instance-r50", "instance", (1024, 1024), (1024, 1024)),
        ("coco-panoptic-r50", "panoptic", (1024, 1024), (1024, 1024)),
        ("ade20k-r50-paper", "semantic", (512, 512), (512, 512)),
        ("ade20k-r50", "semantic", (512, 512), None),  # padded by the batch: the target is the crop's
        ("cityscapes-r50", "semantic", (512, 1024), None),
        ("cityscapes-panoptic-r50", "panoptic", (512, 1024), (512, 1024)),
    ],
)
def test_the_published_recipes_run_on_generated_scenes(name, task, size, target):
    made = training_loader(configuration.load(name), synthetic_dataset(count=2, size=(96, 192), task=task), batch=1)
    for batch in take(made, 2):
        assert batch.padded_size == size
        height, width = batch.targets[0].size
        assert target in (None, (height, width)) and height <= size[0] and width <= size[1]
        assert torch.isfinite(batch.images_BCHW).all() and not batch.images_BCHW[0, :, height:, width:].any()


def test_a_folder_for_temporary_files_with_too_long_a_name_is_refused(monkeypatch):
    """No socket can be opened in it: PyTorch's worker fails, and its parent waits for ever."""
    monkeypatch.setattr(connection, "arbitrary_address", lambda family: "/tmp/" + "x" * 110)
    with pytest.raises(ConfigError, match="too long for worker processes.*Set TMPDIR.*or pass --workers 0"):
        loader(workers=1)
    loader(workers=0)


def test_too_little_memory_for_a_batch_is_one_sentence(monkeypatch):
    def ends(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loading, "collate", ends)
    with pytest.raises(M2FError, match="Not enough memory for 2 images to train on. Use smaller crops"):
        next(iter(loader()))
