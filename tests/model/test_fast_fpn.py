"""The feature pyramid that hands three levels to Mask2Former's decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.parts import randomise, tiny_config

from m2f_cli.config.schema import Component, ModelConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.model.pixel_decoders.fpn import FPNPixelDecoder
from m2f_cli.weights.infer_config import infer, same_network
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.key_tables import DETECTRON2, OPENMMLAB

CHANNELS = {4: 8, 8: 16, 16: 24, 32: 40}
TRANSFORMER = {"name": "transformer_fpn", "num_layers": 1, "num_heads": 4, "ffn_dim": 48, "dropout": 0.1}


def config_of(**pixel_decoder) -> ModelConfig:
    part = Component(**{"name": "fpn", "dim": 64, "mask_dim": 32, "num_levels": 3, **pixel_decoder})
    return tiny_config().model_copy(update={"pixel_decoder": part})


def features(height: int = 64, width: int = 96) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        stride: torch.randn(2, channels, height // stride, width // stride, generator=generator)
        for stride, channels in CHANNELS.items()
    }


@torch.no_grad()
def test_levels_are_the_pyramid_after_its_convolutions_coarse_to_fine():
    decoder = randomise(FPNPixelDecoder(CHANNELS, 32, 16, num_levels=3)).eval()
    state, maps = decoder.state_dict(), features()

    def convolved(name: str, x: torch.Tensor, relu: bool) -> torch.Tensor:
        kernel = state[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        x = F.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
        return x.relu() if relu else x

    expected = [convolved("top", maps[32], relu=True)]
    for i, stride in enumerate((16, 8, 4)):
        doubled = expected[-1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        summed = convolved(f"laterals.{i}", maps[stride], relu=False) + doubled
        expected.append(convolved(f"outputs.{i}", summed, relu=True))
    found = decoder(maps)
    assert decoder.dim == 32 and [tuple(level.shape[-2:]) for level in found.levels] == [(2, 3), (4, 6), (8, 12)]
    for level, wanted in zip(found.levels, expected[:3], strict=True):
        torch.testing.assert_close(level, wanted, atol=1e-5, rtol=1e-5)
    finest = F.conv2d(expected[3], state["mask_features.weight"], state["mask_features.bias"], padding=1)
    torch.testing.assert_close(found.mask_features_BCHW, finest, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_finest_level_may_be_at_stride_4():
    coarse, fine = FPNPixelDecoder(CHANNELS, 32, 16, num_levels=3), FPNPixelDecoder(CHANNELS, 32, 16, 3, finest=4)
    fine.load_state_dict(randomise(coarse).state_dict())
    coarse, fine = coarse.eval()(features()), fine.eval()(features())
    assert [tuple(level.shape[-2:]) for level in fine.levels] == [(4, 6), (8, 12), (16, 24)]
    assert all(torch.equal(one, other) for one, other in zip(coarse.levels[1:], fine.levels[:2], strict=True))
    assert torch.equal(coarse.mask_features_BCHW, fine.mask_features_BCHW)
    with pytest.raises(ValueError, match="finest is 16, where 8 or 4 is possible"):
        FPNPixelDecoder(CHANNELS, 32, 16, 3, finest=16)


@torch.no_grad()
def test_mask_features_do_not_depend_on_the_number_of_levels():
    one, three = FPNPixelDecoder(CHANNELS, 32, 16).eval(), FPNPixelDecoder(CHANNELS, 32, 16, num_levels=3).eval()
    three.load_state_dict(one.state_dict())
    maps = features()
    assert torch.equal(one(maps).mask_features_BCHW, three(maps).mask_features_BCHW)
    assert one(maps).levels == [maps[32]] and one.dim == 40


@pytest.mark.parametrize("pixel_decoder", [{}, TRANSFORMER], ids=["fpn", "transformer_fpn"])
def test_under_the_masked_decoder_everything_learns(pixel_decoder):
    model = build(config_of(**pixel_decoder), 3).train()
    prediction = model(torch.randn(2, 3, 64, 96))
    assert len(prediction.layers) == 4 and prediction.render().shape == (2, 12, 16, 24)
    loss = sum(prediction.render(layer=i).sin().sum() + prediction.layers[i].class_logits_BQK.sum() for i in range(4))
    loss.backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent


@pytest.mark.parametrize("pixel_decoder", [{}, {**TRANSFORMER, "num_heads": 8}], ids=["fpn", "transformer_fpn"])
@pytest.mark.parametrize("table", [DETECTRON2, OPENMMLAB], ids=lambda table: table.format)
def test_foreign_names_there_and_back(pixel_decoder, table):
    config = config_of(**pixel_decoder)
    network = build(config, 3)
    theirs = from_m2f(table, network.state_dict())
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    assert all(torch.equal(x, network.state_dict()[name]) for name, x in to_m2f(table, theirs, shapes).items())
    found, _ = infer(OurView(table, theirs))
    assert same_network(found, config)


def test_another_number_of_levels_is_one_sentence():
    with pytest.raises(ConfigError, match="num_levels is 2, where 1 or 3 is possible"):
        build(config_of(num_levels=2), 3)
