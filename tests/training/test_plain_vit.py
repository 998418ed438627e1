"""A training run of EoMT and of PMT: it goes through the same loop, which tells each decoder its step."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from helpers.vits import eomt_config, pmt_config
from training.tiny import settings

from m2f_cli.data.synthetic import dataset as synthetic_data
from m2f_cli.errors import WeightsError
from m2f_cli.inference.load_network import load_model
from m2f_cli.model import build
from m2f_cli.structures.categories import from_names
from m2f_cli.training import run
from m2f_cli.training.initialise import initialise
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")
CONFIGS = {"eomt": eomt_config(), "pmt": pmt_config()}


def settings_of(network):
    padded = ("test.size_divisor=16",)
    return settings(*padded).model_copy(update={"model": network})


@pytest.mark.parametrize("network", CONFIGS.values(), ids=CONFIGS)
def test_a_run_trains_evaluates_and_can_be_loaded(tmp_path, network):
    steps = []
    outcome = run.start(settings_of(network), tmp_path / "run", OPTIONS, Listener(on_step=steps.append))
    assert (outcome.iteration, outcome.skipped, len(steps)) == (6, 0, 6)
    assert "pq" in outcome.best["per_class"]
    loaded = load_model(tmp_path / "run")
    probs = loaded.model.decoder.attn_mask_probs
    # the last step is the sixth of six; masks of the last block end with the fifth
    assert probs.tolist() == [0, 0, 0]
    assert len(loaded.model(torch.zeros(1, 3, 64, 64)).layers) == 1


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_probabilities_and_draws(tmp_path):
    losses: dict[str, list] = {"whole": [], "cut": []}

    def stop(step):
        losses["cut"].append(step.losses)
        if step.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = settings_of(eomt_config())
    run.start(config, tmp_path / "whole", OPTIONS, Listener(on_step=lambda step: losses["whole"].append(step.losses)))
    run.start(config, tmp_path / "cut", OPTIONS, Listener(on_step=stop))
    assert len(losses["cut"]) == 3
    again = TrainOptions(device="cpu", resume=True)
    run.start(config, tmp_path / "cut", again, Listener(on_step=lambda step: losses["cut"].append(step.losses)))
    assert losses["cut"] == losses["whole"]


@pytest.mark.parametrize("network", CONFIGS.values(), ids=CONFIGS)
def test_fine_tuning_takes_other_classes_and_more_or_fewer_queries(tmp_path, network):
    run.start(settings_of(network), tmp_path / "run", OPTIONS)
    trained = load_model(tmp_path / "run").model.state_dict()
    categories = from_names([synthetic_data.CATEGORIES[1].name, "unknown"])
    for num_queries in (20, 8):
        tree = network.model_dump(exclude_none=True)
        tree["decoder"]["num_queries"] = num_queries
        config = settings_of(type(network).model_validate(tree))
        model = build(config.model, len(categories))
        report = initialise(model, config, categories, init=tmp_path / "run")
        assert any(f"The file has 12 queries, the network {num_queries}" in note for note in report.notes)
        assert any("Of the network's 2 classes, 1 are among" in note for note in report.notes)
        state = model.state_dict()
        kept = min(num_queries, 12)
        queries, classes = "decoder.query_feat.weight", "decoder.class_embed.weight"
        assert torch.equal(state[queries][:kept], trained[queries][:kept])
        assert torch.equal(state[classes][[0, -1]], trained[classes][[1, -1]])
        assert torch.equal(state["decoder.upscale.0.conv1.weight"], trained["decoder.upscale.0.conv1.weight"])


def test_positions_of_another_size_are_resampled(tmp_path):
    run.start(settings_of(eomt_config()), tmp_path / "run", OPTIONS)
    config = settings_of(eomt_config(img_size=96))
    model = build(config.model, len(synthetic_data.CATEGORIES))
    initialise(model, config, synthetic_data.CATEGORIES, init=tmp_path / "run")
    from timm.layers import resample_abs_pos_embed

    trained = load_model(tmp_path / "run").model.backbone.net.pos_embed
    expected = resample_abs_pos_embed(trained, [6, 6], num_prefix_tokens=0)
    torch.testing.assert_close(model.backbone.net.pos_embed, expected, atol=0, rtol=0)


def test_a_network_of_other_blocks_is_refused(tmp_path):
    run.start(settings_of(eomt_config()), tmp_path / "run", OPTIONS)
    config = settings_of(eomt_config(first_block=2, num_blocks=2, levels=[1]))
    model = build(config.model, len(synthetic_data.CATEGORIES))
    with pytest.raises(WeightsError, match="do not fit the network"):
        initialise(model, config, synthetic_data.CATEGORIES, init=tmp_path / "run")
