"""Post-processing against the published results (fixture 06) and against a slow, obvious version of each rule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import images_of, params, read
from helpers.parts import weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli.inference import mask_rendering as masks_module
from m2f_cli.inference import postprocess
from m2f_cli.inference.mask_rendering import MaskLogits
from m2f_cli.structures.categories import Category

THRESHOLDS = {"object_threshold": 0.8, "overlap_threshold": 0.8}


def categories(things: int, stuff: int) -> tuple[Category, ...]:
    return tuple(Category(i + 1, f"class{i}", i < things, (i, 0, 0)) for i in range(things + stuff))


class Published:
    """One image of a full model's file: its raw outputs as `MaskLogits`, and its published results."""

    def __init__(self, file):
        info, i = file.info, file.part
        item, self.results = images_of(info).index(i), {}
        # The file has mask logits, not embeddings: with the identity as embeddings the logits are the features.
        logits_QHW = file.tensors["out/pred_masks"][item]
        self.class_logits = file.tensors["out/pred_logits"][item]
        self.masks = MaskLogits(
            embeds_QC=torch.eye(len(logits_QHW)),
            features_CHW=logits_QHW,
            padded=tuple(file.tensors["mid/padded_normalised_batch"].shape[-2:]),
            valid=tuple(info["image_sizes"][i]),
            size=tuple(info["target_sizes_hw"][i]),
        )
        for kind in ("all", "semantic_only", "instance_only"):
            self.results[kind] = weights_of(file.tensors, f"post/{kind}.{i}.")
        self.segments, things = info["segments_info"][i], info["thing_classes"]
        count = len(things) + len(info["stuff_classes"])
        self.categories = tuple(Category(k + 1, f"class{k}", k in things, (k, 0, 0)) for k in range(count))
        self.thresholds = {
            "object_threshold": info["object_mask_threshold"],
            "overlap_threshold": info["overlap_threshold"],
        }
        self.top_k = info.get("test_topk_per_image")

    def undecided(self) -> torch.Tensor:
        """Pixels where, in double precision, two claims or a mask and its border are equal to the last digits."""
        masks = dataclasses.replace(
            self.masks, embeds_QC=self.masks.embeds_QC.double(), features_CHW=self.masks.features_CHW.double()
        )
        logits, (scores, labels) = rendered(masks), self.class_logits.double().softmax(-1).max(-1)
        kept = (labels < len(self.categories)) & (scores > self.thresholds["object_threshold"])
        best, second = (scores[kept, None, None] * logits[kept].sigmoid()).topk(2, dim=0).values
        return (best - second < 1e-6 * best) | (logits.abs() < 1e-4).any(0)

    def assert_same(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Equal, but for three pixels at most, which must be undecided ones."""
        different = found != expected
        assert different.sum() <= 3
        assert not different.any() or self.undecided().numpy()[different].all()


@pytest.fixture(params=params("06", each=images_of))
def published(request):
    return Published(read(*request.param))


def test_panoptic_is_the_published_map(published):
    result = postprocess.panoptic(published.class_logits, published.masks, published.categories, **published.thresholds)
    # Rows are interpolated before columns, the published code does both at once: logits differ in the last digit,
    # which may move a pixel that lies on a border.
    published.assert_same(result.ids_HW, published.results["all"]["panoptic_seg"].numpy())
    things = {i for i, category in enumerate(published.categories) if category.isthing}
    ours = [{"id": s.id, "isthing": s.label in things, "category_id": s.label} for s in result.segments]
    assert ours == published.segments
    assert [s.area for s in result.segments] == [int((result.ids_HW == s.id).sum()) for s in result.segments]


@pytest.mark.parametrize("kind", ["all", "instance_only"])
def test_instances_are_the_published_ones(published, kind):
    result = postprocess.instances(
        published.class_logits, published.masks, published.categories, top_k=published.top_k, only_things=kind == "all"
    )
    found = {name: published.results[kind][f"instances.{name}"] for name in ("classes", "scores", "masks")}
    assert len(result) == len(found["scores"])
    order = torch.argsort(found["scores"], descending=True, stable=True)
    # scores: one mean over up to 20,000 pixels in fp32
    np.testing.assert_allclose(result.scores_N, found["scores"][order].numpy(), rtol=2e-5, atol=1e-6)
    # the order of equal scores means nothing: compare as sets of (class, score, mask)
    masks_NHW = result.masks_NHW()
    unmatched = [
        (int(c), float(s), m.numpy()) for c, s, m in zip(found["classes"], found["scores"], found["masks"], strict=True)
    ]
    for label, score, mask in zip(result.labels_N, result.scores_N, masks_NHW, strict=True):
        same = [
            entry
            for entry in unmatched
            if entry[0] == label and abs(entry[1] - score) < 1e-4 and (entry[2] != mask).sum() <= 3
        ]
        assert same, f"no published instance of class {label} with score {score}"
        published.assert_same(mask, same[0][2])
        unmatched = [entry for entry in unmatched if entry is not same[0]]


@pytest.mark.parametrize("kind", ["all", "semantic_only"])
def test_semantic_scores_are_the_published_ones(published, kind):
    expected, masks = published.results[kind]["sem_seg"], published.masks
    scores = postprocess.semantic_scores(published.class_logits, masks, resize_scores=kind == "semantic_only")
    torch.testing.assert_close(scores(0, masks.size[0]), expected, atol=2e-5, rtol=1e-5)  # fp32_noise is 6e-6
    result = postprocess.semantic(
        published.class_logits, masks, published.categories, resize_scores=kind == "semantic_only"
    )
    margin = expected.topk(2, dim=0).values.diff(dim=0)[0].abs() > 4e-5
    assert np.array_equal(result.labels_HW[margin.numpy()], expected.argmax(0).numpy()[margin.numpy()])
    assert margin.float().mean() > 0.99


# --- slow, obvious versions -------------------------------------------------------------------------------------------


def rendered(masks: MaskLogits) -> torch.Tensor:
    logits = torch.einsum("qc,chw->qhw", masks.embeds_QC, masks.features_CHW)[None]
    logits = F.interpolate(logits, size=masks.padded, mode="bilinear", align_corners=False)
    logits = logits[..., : masks.valid[0], : masks.valid[1]]
    return F.interpolate(logits, size=masks.size, mode="bilinear", align_corners=False)[0]


def slow_panoptic(class_logits, masks, cats, object_threshold, overlap_threshold):
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = [q for q in range(len(labels)) if labels[q] < len(cats) and scores[q] > object_threshold]
    ids, segments, stuff = np.zeros(masks.size, np.int32), [], {}
    if not kept:
        return ids, segments
    probs = rendered(masks).sigmoid()
    owner = (scores[kept, None, None] * probs[kept]).argmax(0)
    for k, q in enumerate(kept):
        mine, covered = owner == k, probs[q] >= 0.5
        if not (mine.sum() and covered.sum() and (mine & covered).sum()):
            continue
        if mine.sum() / covered.sum() < overlap_threshold:
            continue
        label = int(labels[q])
        if label in stuff:
            ids[(mine & covered).numpy()] = stuff[label]
            continue
        segments.append((len(segments) + 1, label))
        ids[(mine & covered).numpy()] = len(segments)
        if not cats[label].isthing:
            stuff[label] = len(segments)
    return ids, segments


def random_image(seed: int, queries: int = 9, classes: int = 4):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(queries, 3, 4, generator=generator)
    features = F.interpolate(coarse[None], size=(12, 16), mode="bicubic")[0] * 4
    size = tuple(torch.randint(5, 90, (2,), generator=generator).tolist())
    masks = MaskLogits(torch.eye(queries), features, padded=(48, 64), valid=(41, 59), size=size)
    return torch.randn(queries, classes + 1, generator=generator) * 4, masks


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), band=st.sampled_from([1, 500, 10**9]), overlap=st.sampled_from([0.0, 0.5, 0.8]))
def test_panoptic_equals_the_slow_version(seed, band, overlap):
    """At any band height; a pixel may differ only where two claims are equal to the last digit."""
    class_logits, masks = random_image(seed)
    cats = categories(2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "BAND_ELEMENTS", band)
        result = postprocess.panoptic(class_logits, masks, cats, object_threshold=0.5, overlap_threshold=overlap)
    ids, segments = slow_panoptic(class_logits, masks, cats, 0.5, overlap)
    assert [(s.id, s.label) for s in result.segments] == segments
    assert (result.ids_HW != ids).sum() <= 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 60), threshold=st.sampled_from([0.0, 0.3]))
def test_instances_equal_the_slow_version(seed, top_k, threshold):
    class_logits, masks = random_image(seed)
    result = postprocess.instances(
        class_logits, masks, categories(2, 2), top_k=top_k, only_things=True, score_threshold=threshold
    )
    probs = class_logits.softmax(-1)[:, :-1]
    expected = []
    for place in probs.flatten().argsort(descending=True)[:top_k].tolist():
        query, label = divmod(place, 4)
        logits = rendered(masks)[query]
        inside = logits > 0
        score = float(probs[query, label] * (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        if label < 2 and score >= threshold:
            expected.append((label, score, int(inside.sum())))
    expected.sort(key=lambda entry: -entry[1])
    areas = result.masks_NHW().sum((1, 2)) if len(result) else []
    assert len(result) == len(expected)
    for label, score, area, (e_label, e_score, e_area) in zip(
        result.labels_N, result.scores_N, areas, expected, strict=True
    ):
        assert (label, score) == (e_label, pytest.approx(e_score, abs=1e-5)) and abs(int(area) - e_area) <= 1


@pytest.mark.parametrize("resize_scores", [False, True])
def test_semantic_in_bands_is_semantic_at_once(resize_scores, monkeypatch):
    class_logits, masks = random_image(3)
    at_once = postprocess.semantic(class_logits, masks, categories(2, 2), resize_scores=resize_scores).labels_HW
    monkeypatch.setattr(masks_module, "BAND_ELEMENTS", 1)
    assert np.array_equal(
        postprocess.semantic(class_logits, masks, categories(2, 2), resize_scores=resize_scores).labels_HW, at_once
    )


@pytest.mark.parametrize(
    ("coarse", "padded", "valid", "size"),
    [(12, 48, 41, 90), (12, 48, 48, 48), (12, 48, 48, 17), (200, 800, 800, 427), (80, 320, 301, 1333), (1, 4, 3, 5)],
)
def test_resize_weights_are_both_published_resizes(coarse, padded, valid, size):
    """Of every single place of the coarse axis; PyTorch's own resizing is the judge."""
    each = torch.eye(coarse)[None, None]
    fine = F.interpolate(each, size=(coarse, padded), mode="bilinear", align_corners=False)[..., :valid]
    expected_ST = F.interpolate(fine, size=(coarse, size), mode="bilinear", align_corners=False)[0, 0]
    weights = masks_module.resize_weights(coarse, padded, valid, size, torch.device("cpu"))
    found_ST = torch.zeros(coarse, size)
    for number, (low, high, part) in enumerate(weights.blocks(torch.device("cpu"))):
        found_ST[low:high, number * 64 : number * 64 + len(part)] = part.T
    # A sum of two products, each of two weights of at most 1, which PyTorch rounds four times. Beside that, a source
    # coordinate is a rounded scale times a position, and the kernels of PyTorch differ in how they round it: one
    # last digit of the coordinate, which is a share of a weight. From the second resize it reaches the coarse axis
    # through the first one's slope.
    fine_T = torch.arange(1, size + 1) * (valid / size)
    last_digit_T = fine_T * (coarse / padded) * 2.0**-23
    difference_T = (found_ST - expected_ST).abs().amax(0)
    assert (difference_T <= 8 * 2.0**-24 + last_digit_T).all(), difference_T.max()
    torch.testing.assert_close(found_ST.sum(0), torch.ones(size), atol=8 * 2.0**-24, rtol=0)


def test_the_first_of_equal_values_is_found():
    values = torch.tensor([[[1.0, 3.0, 2.0]], [[1.0, 4.0, 2.0]], [[0.0, 4.0, 5.0]]])
    assert postprocess.first_argmax(values).tolist() == [[0, 1, 2]]
    many = torch.randn(40, 31, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(postprocess.first_argmax(many), many.argmax(0))
    inside = many > 0
    assert torch.equal(postprocess.count_true(inside), inside.sum((1, 2)))


def test_nothing_found_gives_empty_results():
    class_logits, masks = random_image(0)
    class_logits[:, -1] = 50.0
    cats = categories(2, 2)
    result = postprocess.panoptic(class_logits, masks, cats, **THRESHOLDS)
    assert not result.ids_HW.any() and result.segments == []
    found = postprocess.instances(class_logits, masks, cats, top_k=10, only_things=True, score_threshold=0.5)
    assert len(found) == 0 and found.masks_NHW().shape == (0, *masks.size)
    labels = postprocess.semantic(class_logits, masks, cats, resize_scores=False).labels_HW
    assert labels.shape == masks.size and labels.max() < 4


def test_bands_need_little_memory():
    """A 4k image: 100 queries would be 3.3 GB of logits; a band of the eight rows that it has at least is 12 MiB."""
    seen = []
    masks = MaskLogits(torch.randn(100, 8), torch.randn(8, 64, 120), (256, 480), (250, 470), (2160, 3840))
    band = masks.at_output(torch.arange(100))
    for start, stop in masks_module.bands(*masks.size, maps=100):
        seen.append((stop - start) * masks.size[1] * 100)
        if start == 0:
            assert band(start, stop).numel() == seen[0]
    assert max(seen) <= max(masks_module.BAND_ELEMENTS, 8 * 3840 * 100) and sum(seen) == 100 * 2160 * 3840
