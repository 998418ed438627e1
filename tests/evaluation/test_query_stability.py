"""Agreement of decoder layers, on predictions whose answers are known, and on a network."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.parts import randomise, tiny_config

from m2f_cli.config import presets as config
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.data.synthetic.scenes import CATEGORIES
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.evaluation.query_stability import COLUMNS, count, diagnose_queries, rows
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.loss import Pairs
from m2f_cli.model import build
from m2f_cli.structures.predictions import LayerOutput, Prediction
from m2f_cli.structures.targets import Target


def prediction_of(masks_LQHW: torch.Tensor) -> Prediction:
    """A prediction with the given masks: they are the features, and the embeddings select them."""
    L, Q, H, W = masks_LQHW.shape
    logits = (masks_LQHW.float() * 2 - 1).view(1, L * Q, H, W)
    layers = [LayerOutput(torch.zeros(1, Q, 3), select[None]) for select in torch.eye(L * Q).split(Q)]
    return Prediction(logits, layers)


def test_what_is_counted():
    """Three layers, three queries, two targets: one keeps query 0, the other has 1, then 2, then 2."""
    masks = torch.zeros(3, 3, 4, 4, dtype=torch.bool)
    masks[0, 0, :2], masks[1, 0, :3], masks[2, 0, :3] = True, True, True  # 8 of 12 cells, then the same
    masks[0, 2, 0], masks[1, 2, 3] = True, True  # 0 of 8; in the last layer nothing is left: 0 of 4
    masks[:, 1] = True  # no target's query in the last layer: of no account
    pairs = Pairs(torch.tensor([[0, 1], [0, 2], [0, 2]]), torch.tensor([[0, 1], [0, 1], [0, 1]]))
    target = Target(torch.tensor([0, 1]), owner_HW=torch.zeros(16, 16, dtype=torch.int16))
    found = count(prediction_of(masks), target, pairs, (4, 4))
    assert found.utilisation == [50.0, 100.0, 100.0] and found.matched_in_all_layers == 50.0
    assert found.mask_consistency == pytest.approx([100 * (2 / 3 + 0) / 2, 100 * (1 + 0) / 2])
    assert rows(found)[0] == ("0 (queries alone)", "33.3", "50.0") and rows(found)[-1] == ("all", "41.7", "50.0")
    assert rows(found)[2] == ("2", "-", "100.0") and all(len(row) == len(COLUMNS) for row in rows(found))


def test_two_empty_masks_are_not_compared_and_padding_is_not_seen():
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    masks[0, 0, :, 3] = True  # in the padding
    pairs = Pairs(torch.tensor([[0], [0]]), torch.tensor([[0], [0]]))
    target = Target(torch.tensor([0]), owner_HW=torch.zeros(16, 12, dtype=torch.int16))
    found = count(prediction_of(masks), target, pairs, (4, 3))
    assert found.compared_L.tolist() == [0] and np.isnan(found.mask_consistency).all()
    assert found.to_dict()["mask_consistency"] == [None] and found.utilisation == [100.0, 100.0]
    assert count(prediction_of(masks), target, pairs, (4, 4)).mask_consistency == [0.0]


def test_more_targets_than_queries():
    """A target without a query in the last layer is not counted; one without in an earlier layer has another there."""
    masks = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    pairs = Pairs(torch.tensor([[0], [0]]), torch.tensor([[0], [1]]))
    target = Target(torch.tensor([0, 1]), owner_HW=torch.zeros(16, 16, dtype=torch.int16))
    found = count(prediction_of(masks), target, pairs, (4, 4))
    assert (found.targets, found.same_L.tolist(), found.same_in_all) == (1, [0, 1], 0)


def test_parts_merge_to_the_whole():
    masks = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    target = Target(torch.tensor([0, 1]), owner_HW=torch.zeros(16, 16, dtype=torch.int16))
    one, other = (
        count(prediction_of(masks), target, Pairs(torch.tensor(queries), torch.tensor([[0, 1]] * 3)), (4, 4))
        for queries in ([[0, 1], [0, 2], [0, 2]], [[1, 2], [1, 2], [1, 2]])
    )
    one.merge(other)
    assert (one.targets, one.images, one.matched_in_all_layers) == (4, 2, 75.0)
    assert one.utilisation == [75.0, 100.0, 100.0]


# --- with a network ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    tree = config.load("tiny", ["train.loss.num_points=128"]).model_copy(update={"model": tiny_config()})
    return Segmenter(randomise(build(tree.model, len(CATEGORIES))), tree, CATEGORIES)


@pytest.fixture(scope="module")
def records():
    return synthetic_dataset("val", count=3, size=(64, 96), objects=(3, 6), difficulty=0.0).records


def test_a_network_on_images(segmenter, records):
    told = []
    found = diagnose_queries(segmenter, records, on_progress=told.append)
    assert (found.images, [progress.number for progress in told]) == (3, [1, 2, 3])
    assert found.targets == sum(len(record.read_annotation().segments) for record in records)
    assert len(found.utilisation) == 4 and found.utilisation[-1] == 100.0 and len(found.mask_consistency) == 3
    assert found.to_dict() == diagnose_queries(segmenter, records).to_dict()
    assert found.matched_in_all_layers <= min(found.utilisation)


def test_a_steady_network_is_steady(segmenter, records):
    """Layers that change nothing: every mask stays, every target keeps its query."""

    class Steady(torch.nn.Module):
        def forward(self, images):
            prediction = segmenter.model(images)
            return Prediction(prediction.mask_features_BCHW, [prediction.last] * 3)

    steady = Segmenter(Steady(), segmenter.config, CATEGORIES)
    found = diagnose_queries(steady, records)
    assert found.mask_consistency == pytest.approx([100.0, 100.0])
    assert found.utilisation == [100.0] * 3 and found.matched_in_all_layers == 100.0


def test_what_cannot_be_read_is_told(segmenter, records):
    def broken():
        raise DataError("no image")

    bad = SimpleNamespace(name="bad", read_annotation=broken, read_image=broken)
    found = diagnose_queries(segmenter, [bad, records[0]])
    assert found.images == 1 and found.to_dict()["failures"] == [{"name": "bad", "message": "no image"}]
    with pytest.raises(DataError, match=r"no image whose queries.*bad: no image"):
        diagnose_queries(segmenter, [bad])


def test_one_layer_cannot_disagree(segmenter, records):
    class Last(torch.nn.Module):
        def forward(self, images):
            prediction = segmenter.model(images)
            return Prediction(prediction.mask_features_BCHW, [prediction.last])

    with pytest.raises(ConfigError, match="answers once"):
        diagnose_queries(Segmenter(Last(), segmenter.config, CATEGORIES), records)


def test_an_exported_file_has_no_layers(segmenter, records):
    exported = SimpleNamespace(
        model=None, source="model.onnx", default_task="panoptic", check_task=segmenter.check_task
    )
    with pytest.raises(ConfigError, match="model.onnx is an exported file"):
        diagnose_queries(exported, records)
