"""Tiles of large images: what is known per pixel comes out as if the image had been seen at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_segmenter import CATEGORIES, PERSON, FakeSegmenter, scene, scene_labels
from helpers.small_segmenter import random_image, small_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m2f_cli.errors import ConfigError
from m2f_cli.evaluation import evaluate
from m2f_cli.inference.load import wrapped
from m2f_cli.inference.tiling import tiled as tiling
from m2f_cli.inference.tiling.grid import Axis
from m2f_cli.inference.tiling.stitching import Joiner, encode_at
from m2f_cli.inference.tiling.tiled import Tiles, tiled
from m2f_cli.inference.tta import with_tta
from m2f_cli.results.regions import Region
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation

THING = PERSON  # the other two classes are stuff


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


class KnowsAll(FakeSegmenter):
    """Red says which object a pixel belongs to (from 1; 0 is none), green which class; object ids are shuffled anew in
    each window, as a network's are."""

    def prepare(self, image_HW3):
        return image_HW3[..., :2].copy()

    def infer(self, prepared):
        self.batches.append(len(prepared))
        self.shapes = [*getattr(self, "shapes", []), *(each.shape[:2] for each in prepared)]
        return list(prepared)

    def finish(self, raw, task=None, **thresholds):
        objects_HW, labels_HW = raw[..., 0], raw[..., 1]
        if task == "semantic":
            return SemanticMap(labels_HW.shape, CATEGORIES, labels_HW)
        found = np.random.default_rng(int(objects_HW.sum())).permutation(np.unique(objects_HW[objects_HW > 0]))
        if task == "instance":
            masks = [np.asfortranarray(objects_HW == each, dtype=np.uint8) for each in found]
            scores = np.array([float(mask.sum()) / mask.size for mask in masks], np.float32)
            classes = np.array([labels_HW[objects_HW == each][0] for each in found], np.int64)
            order = np.argsort(-scores)
            rles = [coco_mask.encode(masks[i]) for i in order]
            return Instances(labels_HW.shape, CATEGORIES, classes[order], scores[order], rles)
        ids_HW, segments = np.zeros(labels_HW.shape, np.int32), []
        things = [(objects_HW == each, THING) for each in found]
        for mask, label in things + [(labels_HW == each, each) for each in (0, 1)]:
            if mask.any():
                segments.append(Segment(len(segments) + 1, label, 0.5 + 0.1 * label, int(mask.sum())))
                ids_HW[mask] = len(segments)
        return PanopticMap(labels_HW.shape, CATEGORIES, ids_HW, segments)

    def semantic_scores(self, raw):
        labels_HW, classes = torch.from_numpy(raw[..., 1]), torch.arange(3)[:, None, None]
        return lambda start, stop: (labels_HW[start:stop] == classes).float()


@st.composite
def scenes(draw, most=120):
    """Sky above grass, and connected objects on them that touch but do not cut each other."""
    height, width = draw(st.integers(33, most)), draw(st.integers(33, most))
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    image_HW3[height // 2 :, :, 1] = 1
    number = 0
    for _ in range(draw(st.integers(0, 12))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
        place = image_HW3[top : top + tall, left : left + wide]
        if not place[..., 0].any():
            number += 1
            place[..., 0], place[..., 1] = number, THING
            if min(place.shape[:2]) > 2 and draw(st.booleans()):  # a ring: several parts of it can be in one window
                place[1:-1, 1:-1, 0], place[1:-1, 1:-1, 1] = 0, 0
    return image_HW3


cuts = st.tuples(st.integers(32, 80), st.sampled_from([0.01, 0.1, 0.25, 0.37, 0.5]))


@settings(max_examples=60, deadline=None)
@given(scenes(), cuts)
def test_objects_across_seams_are_one_segment(image, cut):
    result = tiled(KnowsAll(), *cut)(image, "panoptic")
    objects_HW, labels_HW = image[..., 0], image[..., 1]
    ids = [segment.id for segment in result.segments]
    assert ids == list(range(1, len(ids) + 1))
    assert set(np.unique(result.ids_HW)) == set(ids), "every pixel has a segment"
    for segment in result.segments:
        mask = result.ids_HW == segment.id
        assert segment.area == mask.sum() > 0 and (labels_HW[mask] == segment.label).all()
        assert segment.score == pytest.approx(0.5 + 0.1 * segment.label)
        if segment.label == THING:
            (number,) = np.unique(objects_HW[mask])
            assert np.array_equal(mask, objects_HW == number)
        else:
            assert np.array_equal(mask, labels_HW == segment.label), "stuff of one class is one segment"


@settings(max_examples=60, deadline=None)
@given(scenes(), cuts)
def test_instances_across_seams_are_one(image, cut):
    result = tiled(KnowsAll(), *cut)(image, "instance")
    numbers = set(np.unique(image[..., 0])) - {0}
    assert len(result) == len(numbers) and (np.diff(result.scores_N) <= 0).all()
    masks = {mask.tobytes() for mask in result.masks_NHW()}
    assert masks == {(image[..., 0] == number).tobytes() for number in numbers}
    assert all(rle["size"] == list(image.shape[:2]) for rle in result.rles)


@settings(max_examples=40, deadline=None)
@given(scenes(), cuts)
def test_semantic_has_no_seams(image, cut):
    assert np.array_equal(tiled(KnowsAll(), *cut)(image, "semantic").labels_HW, image[..., 1])


class SeesNoise(FakeSegmenter):
    """Scores that differ from window to window."""

    def prepare(self, image_HW3):
        return image_HW3

    def infer(self, prepared):
        return list(prepared)

    def semantic_scores(self, raw):
        scores = torch.rand(3, *raw.shape[:2], generator=torch.Generator().manual_seed(int(raw.sum())))
        return lambda start, stop: scores[:, start:stop]


def ramp(length, start, stop, fade, first, last):
    """The weight of a window at every pixel of an axis, from the definition: own part, raised cosine at the seams."""
    x = torch.arange(length) + 0.5

    def up(seam):
        place = ((x - (seam - fade // 2)) / fade).clamp(0, 1)
        return torch.sin(place * torch.pi / 2) ** 2

    rising = torch.ones(length) if first else up(start)
    return rising * (torch.ones(length) if last else 1 - up(stop))


@settings(max_examples=30, deadline=None)
@given(st.integers(33, 100), st.integers(33, 100), cuts, st.sampled_from([2**26, 2000]), st.integers(0, 99))
def test_blending_is_the_plain_weighted_sum(height, width, cut, budget, seed):
    """Against a restatement that keeps the score maps of the whole image."""
    image = random_image(height, width, seed)
    outer = tiled(SeesNoise(), *cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "SEAM_ELEMENTS", budget)
        found = outer(image, "semantic").labels_HW
        rows, columns = Axis(height, outer.tile, outer.overlap), Axis(width, outer.tile, outer.overlap)
        mosaic = tiling.SemanticMosaic(tiling.Grid(rows, columns), CATEGORIES)
    total = torch.zeros(3, height, width)
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            window = image[top : top + outer.tile, left : left + outer.tile]
            scores = outer.inner.semantic_scores(window)(0, len(window))
            down = ramp(height, *rows.own(i), mosaic.fade_rows, i == 0, top == rows.starts[-1])
            across = ramp(width, *columns.own(j), mosaic.fade_columns, j == 0, left == columns.starts[-1])
            weights = (down[:, None] * across)[top : top + outer.tile, left : left + outer.tile]
            total[:, top : top + outer.tile, left : left + outer.tile] += scores * weights
    if max(height, width) > outer.tile:
        best = total.topk(2, dim=0).values
        clear = (best[0] - best[1] > 1e-5).numpy()  # the order of a sum may decide the rest
        assert clear.mean() > 0.99 and np.array_equal(found[clear], total.argmax(0).numpy()[clear])


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(32, 600), st.floats(0.001, 0.5))
def test_windows_cover_an_axis(length, tile, share):
    axis = Axis(length, tile, max(1, round(tile * share)))
    ends = [0]
    for i in range(len(axis.starts)):
        (start, stop), (own_start, own_stop) = axis.window(i), axis.own(i)
        assert 0 <= start <= own_start < own_stop <= stop <= length and own_start == ends[-1]
        assert stop - start == min(tile, length), "all windows of an image have one size"
        ends.append(own_stop)
    assert ends[-1] == length
    overlaps = [axis.window(i)[1] - axis.starts[i + 1] for i in range(len(axis.starts) - 1)]
    assert all(overlap >= axis.overlap for overlap in overlaps)
    for fade in {1, axis.widest_fade} if overlaps else {0}:
        total = torch.zeros(length)
        for i in range(len(axis.starts)):
            start, stop = axis.support(i, fade)
            assert axis.window(i)[0] <= start and stop <= axis.window(i)[1]
            total[start:stop] += axis.weights(i, fade)
        torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("size", [(50, 70), (70, 70), (1, 3)])
def test_a_image_no_larger_than_a_tile_is_untouched(segmenter, task, size):
    image = random_image(*size)
    options = {"object_threshold": 0.0, "score_threshold": 0.0}
    plain, same = segmenter(image, task, **options), tiled(segmenter, 70)(image, task, **options)
    if task == "instance":
        assert same.rles == plain.rles and np.array_equal(same.scores_N, plain.scores_N)
    elif task == "panoptic":
        assert np.array_equal(same.ids_HW, plain.ids_HW) and same.segments == plain.segments
    else:
        assert np.array_equal(same.labels_HW, plain.labels_HW)


def test_one_window_through_the_mosaics_is_the_plain_result(segmenter):
    """Also the parts that join, over a single window, change nothing but the order of segments."""
    image, options = random_image(60, 60), {"object_threshold": 0.0, "score_threshold": 0.0}
    results = tiled(segmenter, 60).finish_all(Tiles(image), ["panoptic", "instance", "semantic"], **options)
    plain, mine = segmenter(image, "panoptic", **options), results["panoptic"]
    assert len(plain.segments) == len(mine.segments) > 1
    by_id = {segment.id: segment for segment in mine.segments}
    for segment in plain.segments:
        (number,) = np.unique(mine.ids_HW[plain.ids_HW == segment.id])
        assert (by_id[number].label, by_id[number].area) == (segment.label, segment.area)
        assert by_id[number].score == pytest.approx(segment.score)
    plain, mine = segmenter(image, "instance", **options), results["instance"]
    full = [i for i, rle in enumerate(plain.rles) if coco_mask.area(rle)]
    assert full and mine.rles == [plain.rles[i] for i in full]
    np.testing.assert_allclose(mine.scores_N, plain.scores_N[full], rtol=1e-6)
    assert np.array_equal(results["semantic"].labels_HW, segmenter(image, "semantic").labels_HW)


@pytest.mark.slow
def test_a_real_network_in_tiles(segmenter):
    image = random_image(150, 190)
    for task in ("panoptic", "instance", "semantic"):
        outer = tiled(segmenter, 64, 0.3)
        first, again = outer(image, task, score_threshold=0.0), outer(image, task, score_threshold=0.0)
        assert first.size == (150, 190)
        if task == "instance":
            assert len(first) > 0 and first.rles == again.rles
        elif task == "semantic":
            assert np.array_equal(first.labels_HW, again.labels_HW)
        else:
            assert [s.area for s in first.segments] == [int((first.ids_HW == s.id).sum()) for s in first.segments]
    augmented = wrapped(segmenter, tta=True, tile=64)
    assert augmented(image, "semantic").size == (150, 190) and len(augmented.notes) == len(segmenter.notes) + 2
    with pytest.raises(ConfigError, match="tiled\\(with_tta"):
        with_tta(tiled(segmenter, 64))


def regions_of(*objects):
    return [
        Region(i, label, score, box, np.ones((box[2] - box[0], box[3] - box[1]), bool))
        for i, (label, score, box) in enumerate(objects)
    ]


def test_who_is_joined():
    """Two windows of 20 x 100 that share columns 60 to 100 of the image."""
    joiner = Joiner()
    left = joiner.add(
        (0, 0, 20, 100),
        regions_of(
            (2, 0.9, (0, 50, 10, 90)),  # 0: goes on to the right
            (2, 0.9, (10, 70, 16, 100)),  # 1: has little in common with what the right one sees there
            (2, 0.4, (0, 52, 10, 90)),  # 2: a second, unsure answer about 0
            (1, 0.9, (0, 62, 4, 80)),  # 3: another class
        ),
    )
    right = joiner.add(
        (0, 60, 20, 160),
        regions_of(
            (2, 0.9, (0, 0, 10, 50)),  # 4: the rest of 0
            (2, 0.9, (14, 20, 20, 90)),  # 5: two rows in common with 1
            (2, 0.8, (1, 4, 9, 24)),  # 6: inside 0, which has its partner
            (0, 0.9, (0, 2, 4, 20)),  # 7: where 3 is, another class
        ),
    )
    assert [piece.number for piece in left + right] == list(range(8))
    roots = [joiner.root(i) for i in range(8)]
    assert roots[4] == 0 and roots[3] == 3 and roots[7] == 7 and roots[1] == 1
    assert roots[5] == 5, "40 of 120 pixels of the smaller one are shared: not enough"
    assert roots[2] in (2, roots[6]) and roots[6] in (6, 2)


def test_what_a_neighbour_sees_better_is_dropped():
    """One window sees an object, the next sees it as two: its better half joins, the other is a duplicate."""

    class Halves(KnowsAll):
        def finish(self, raw, task=None, **thresholds):
            whole = super().finish(raw, task)
            if not raw[..., 2].any() and len(whole) == 1:  # the window that does not see the mark
                mask = whole.masks_NHW()[0]
                upper, lower = mask.copy(), mask.copy()
                rows = np.flatnonzero(mask.any(1))
                upper[rows[len(rows) * 2 // 3] :], lower[: rows[len(rows) * 2 // 3]] = False, False
                both = [coco_mask.encode(np.asfortranarray(part, dtype=np.uint8)) for part in (upper, lower)]
                return Instances(whole.size, CATEGORIES, np.array([2, 2]), np.array([0.9, 0.8], np.float32), both)
            return whole

        def prepare(self, image_HW3):
            return image_HW3

    image = np.zeros((40, 100, 3), np.uint8)
    image[5:35, 45:58, 0], image[5:35, 45:58, 1] = 1, THING
    image[0, 0, 2] = 1  # only the left window sees this
    result = tiled(Halves(), 64, 0.4)(image, "instance")
    assert len(result) == 1 and np.array_equal(result.masks_NHW()[0], image[..., 0] == 1)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 10**6),
    st.sampled_from([0.2, 0.5, 0.9, 1.0]),
)
def test_run_lengths_in_a_larger_image(height, width, above, before, under, behind, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    size = (above + height + under, before + width + behind)
    full = np.zeros(size, np.uint8, order="F")
    full[above : above + height, before : before + width] = mask
    assert encode_at(mask, above, before, size) == coco_mask.encode(full)


def test_every_window_once_for_all_tasks():
    """One pass over the windows answers several questions."""
    image = np.zeros((100, 200, 3), np.uint8)
    inner = KnowsAll()
    outer = tiled(inner, 64, 0.25)
    [raw] = outer.infer([outer.prepare(image)])
    assert not inner.batches
    results = outer.finish_all(raw, ["panoptic", "semantic"], object_threshold=0.5)
    assert len(inner.batches) == 2 * 4 and set(inner.shapes) == {(64, 64)}
    assert {task: result.size for task, result in results.items()} == {"panoptic": (100, 200), "semantic": (100, 200)}


def test_threads_share_one_network():
    """`finish` runs in several threads, the network in one at a time."""
    inside, most = [0], [0]

    class Counts(KnowsAll):
        def infer(self, prepared):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            threading.Event().wait(0.002)
            inside[0] -= 1
            return super().infer(prepared)

    outer = tiled(Counts(), 64)
    images = [np.full((80, 90 + 10 * i, 3), 1, np.uint8) for i in range(3)]
    raws = outer.infer([outer.prepare(image) for image in images])
    results = [None] * 3

    def finish(i):
        results[i] = outer.finish(raws[i], "semantic")

    threads = [threading.Thread(target=finish, args=(i,)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most[0] == 1 and [each.size for each in results] == [(80, 90), (80, 100), (80, 110)]


def test_evaluation_takes_tiles_unchanged():
    """The tiles of a fake that knows the annotation score 100."""

    class Record:
        name = "one"

        def read_image(self):
            return scene(100, 150)

        def read_annotation(self):
            labels_HW = scene_labels(100, 150)
            return PanopticAnnotation(labels_HW.astype(np.int32) + 1, [AnnotatedSegment(i + 1, i) for i in range(3)])

    outer = tiled(FakeSegmenter(), 64)
    metrics = evaluate.default_metrics("panoptic", CATEGORIES)
    assert evaluate.evaluate(outer, [Record()], metrics).figures["pq"] == 100.0


@pytest.mark.parametrize(("tile", "overlap"), [(31, 0.25), (0, 0.25), (64, 0.0), (64, 0.51), (64, -1)])
def test_tiles_that_make_no_sense_are_refused(tile, overlap):
    with pytest.raises(ConfigError, match=str(overlap if tile == 64 else tile)):
        tiled(FakeSegmenter(), tile, overlap)


def test_tiles_in_tiles():
    with pytest.raises(ConfigError, match="already"):
        tiled(tiled(FakeSegmenter(), 64), 64)


PEAK = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[4])
from inference.test_tiling import KnowsAll, Many
from m2f_cli.inference.tiling.tiled import tiled
size, classes, tasks = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
image = np.zeros((size, size, 3), np.uint8)
for i in range(0, size - 400, 500):
    image[i + 100 : i + 500, 50 : size - 50, 0] = i // 500 + 1
    image[i + 100 : i + 500, 50 : size - 50, 1] = 2
outer = tiled(Many(classes), 1024)
[raw] = outer.infer([outer.prepare(image)])
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
results = outer.finish_all(raw, tasks)
assert all(result.size == (size, size) for result in results.values())
print(base // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


class Many(KnowsAll):
    """With more classes, most of which are nowhere."""

    def __init__(self, classes):
        super().__init__()
        self.categories = CATEGORIES + CATEGORIES[:1] * (classes - 3)

    def semantic_scores(self, raw):
        labels_HW, classes = torch.from_numpy(raw[..., 1]), torch.arange(len(self.categories))[:, None, None]
        return lambda start, stop: (labels_HW[start:stop] == classes).float()


def peak(size, classes, tasks):
    """Memory of a process in MiB: before a large image, and the most while it is done."""
    arguments = [str(size), str(classes), tasks, str(Path(__file__).resolve().parents[1])]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(value) for value in done.stdout.split()]


@pytest.mark.slow
def test_memory_of_a_large_image():
    """Class scores of the whole image would be 2.1 GiB; here are ids, classes, a row of windows and the seams."""
    base, most = peak(3000, 64, "panoptic,instance,semantic")
    assert most - base < 700


@pytest.mark.slow
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_image_of_100_megapixels_in_6_gib(task):
    assert peak(10_000, 150, task)[1] < 6 * 1024
