"""How plain ViTs are tested, in the preprocessor_config.json of transformers: both ways, and beside its processor."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.small_segmenter import random_image
from helpers.vits import eomt_config
from transformers import AutoImageProcessor
from weights.models import CATEGORIES

from m2f_cli import model
from m2f_cli.config import presets as configuration
from m2f_cli.inference import load
from m2f_cli.inference.load_network import save_huggingface
from m2f_cli.inference.segmenter import Segmenter

SQUARE = ("eomt-coco-panoptic-l-640", "test.resize.fit=64")
WINDOWS = ("eomt-ade20k-l-512", "test.resize.short_edge=64", "test.slide.crop=[64,64]")


@pytest.fixture(scope="module", params=[SQUARE, WINDOWS], ids=["square", "windows"])
def written(request, tmp_path_factory):
    """The settings of a model, and its folder for transformers."""
    preset, *overrides = request.param
    config = configuration.load(preset, overrides).model_copy(update={"model": eomt_config()})
    network = model.build(config.model, len(CATEGORIES))
    segmenter = Segmenter(network, config, CATEGORIES)
    folder = tmp_path_factory.mktemp("folder") / "model"
    save_huggingface(folder, segmenter.model, config, CATEGORIES)
    return config, folder


def test_the_settings_come_back(written):
    config, folder = written
    again = load.load(str(folder)).config.test
    assert (again.resize, again.slide, again.pad_value) == (
        config.test.resize,
        config.test.slide,
        config.test.pad_value if config.test.resize.fit else None,  # nothing is padded in windows
    )
    assert again.canvas == (64, 64)


@pytest.mark.parametrize("written", [SQUARE], indirect=True)
def test_the_processor_of_transformers_makes_the_same_input(written):
    _, folder = written
    segmenter, processor = load.load(str(folder)), AutoImageProcessor.from_pretrained(folder)
    image = random_image(50, 70)
    theirs = processor(images=image, return_tensors="np")["pixel_values"]
    ours = segmenter.collate([segmenter.prepare(image).pixels_CHW]).numpy()
    assert theirs.shape == ours.shape == (1, 3, 64, 64)
    valid = segmenter.input_shape(*image.shape[:2])
    assert np.array_equal(np.abs(theirs[0, 0, :, 0] - theirs[0, 0, -1, 0]) < 1e-4, np.arange(64) >= valid[0])
    # Bilinear resampling of other libraries: a few grey levels of 255, which are 0.02 each.
    assert np.abs(theirs - ours).mean() < 0.05 and np.abs(theirs - ours)[..., valid[0] :, :].max() < 1e-4
