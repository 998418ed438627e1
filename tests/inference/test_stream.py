"""A stream of images: order, what becomes of errors, batches that fail, and how much is in memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers.fake_segmenter import FakeSegmenter, scene

from m2f_cli.errors import DataError, M2FError
from m2f_cli.inference.stream import Job, stream

WAYS = [(1, 0), (1, 2), (3, 2), (4, 0)]  # images of a batch, threads


def read(number: int):
    return scene(24 + number), number


class Functions(Job):
    """A job made of functions."""

    def __init__(self, read=read, finish=lambda kept, raw: kept, use=lambda item, results: results, done=()):
        self.functions, self.done = (read, finish, use), done

    def is_done(self, item):
        return item in self.done

    def read(self, item):
        return self.functions[0](item)

    def finish(self, segmenter, kept, raw):
        return self.functions[1](kept, raw)

    def use(self, item, results):
        return self.functions[2](item, results)


def run(items, segmenter=None, *, batch=1, workers=2, finish=lambda kept, raw: (kept, raw.shape), **functions):
    job = Functions(finish=finish, **functions)
    return list(stream(segmenter or FakeSegmenter(), items, job, batch=batch, workers=workers))


@pytest.mark.parametrize(("batch", "workers"), WAYS)
def test_items_come_out_in_their_order_with_what_was_kept_and_found(batch, workers):
    found = run(range(7), batch=batch, workers=workers)
    assert [(item, results) for item, results, _ in found] == [(i, (i, (24 + i, 64))) for i in range(7)]
    assert all(set(each[2]) == {"read", "prepare", "network", "post_process", "write"} for each in found)
    assert all(value >= 0 for each in found for value in each[2].values())


@pytest.mark.parametrize(("batch", "workers"), WAYS)
@pytest.mark.parametrize("stage", ["read", "finish"])
def test_an_error_of_one_image_takes_the_place_of_its_results(stage, batch, workers):
    def refuse(now, number):
        if now == stage and number == 2:
            raise DataError("is damaged.")

    def reading(number):
        refuse("read", number)
        return read(number)

    def finishing(number, raw):
        refuse("finish", number)
        return number

    found = [results for _, results, _ in run(range(5), read=reading, finish=finishing, batch=batch, workers=workers)]
    assert [str(each) for each in found] == ["0", "1", "is damaged.", "3", "4"] and isinstance(found[2], DataError)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_fails_is_tried_again_image_by_image(workers):
    class Picky(FakeSegmenter):
        def infer(self, prepared):
            if any(each.labels_HW.shape[0] == 25 for each in prepared):
                raise M2FError("refused")
            return super().infer(prepared)

    found = [
        results for _, results, _ in run(range(4), Picky(), finish=lambda kept, raw: kept, batch=3, workers=workers)
    ]
    assert [str(each) for each in found] == ["0", "refused", "2", "3"]


@pytest.mark.parametrize(("batch", "workers"), WAYS)
def test_an_item_that_is_done_keeps_its_place_and_meets_no_network(batch, workers):
    segmenter = FakeSegmenter()
    found = run(range(6), segmenter, done=(1, 3, 5), batch=batch, workers=workers)
    assert [results is None for _, results, _ in found] == [False, True] * 3
    assert sum(segmenter.batches) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [M2FError("The disk is full."), ZeroDivisionError("a bug")])
def test_an_error_in_use_ends_the_stream_and_leaves_no_thread(workers, error):
    def use(item, results):
        raise error

    before = threading.active_count()
    with pytest.raises(type(error)):
        run(range(9), use=use, workers=workers)
    assert threading.active_count() == before


def test_items_are_taken_when_they_are_needed():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    images = stream(FakeSegmenter(), items(), Functions(), workers=2)
    most = max(len(taken) - done for done, _ in enumerate(images, 1))
    assert len(taken) == 50 and most <= 2 * (2 + 1)


def test_a_stream_that_is_closed_leaves_no_thread():
    before = threading.active_count()
    images = stream(FakeSegmenter(), range(20), Functions())
    assert next(images)[0] == 0
    images.close()
    assert threading.active_count() == before


def test_the_network_and_the_items_stay_in_the_callers_thread():
    segmenter, readers = FakeSegmenter(), set()

    def reading(number):
        readers.add(threading.get_ident())
        return np.zeros((8, 8, 3), np.uint8), None

    run(range(5), segmenter, read=reading, finish=lambda kept, raw: 0)
    assert segmenter.infer_threads == {threading.get_ident()} and threading.get_ident() not in readers
