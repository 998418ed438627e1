"""The feature-aligned pixel decoder: what its parts compute, and that it takes the place of the deformable one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.parts import randomise, tiny_config

from m2f_cli.config import presets as config
from m2f_cli.config.schema import ModelConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.model.pixel_decoders.fapn import AlignedPixelDecoder, FeatureAlignment, FeatureSelection

CHANNELS = {4: 16, 8: 24, 16: 32, 32: 40}


def features(batch: int = 2, size: tuple[int, int] = (64, 96)) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        stride: torch.randn(batch, count, size[0] // stride, size[1] // stride, generator=generator)
        for stride, count in CHANNELS.items()
    }


def randomised_but_unmoved(part: torch.nn.Module) -> torch.nn.Module:
    part = randomise(part)
    for module in part.modules():
        if isinstance(module, FeatureAlignment):
            torch.nn.init.zeros_(module.offsets.weight)
            torch.nn.init.zeros_(module.offsets.bias)
    return part


@torch.no_grad()
def test_unmoved_it_is_a_plain_pyramid():
    """Offsets of 0 and modulations of one half: a convolution of half the coarse map. So a fresh network starts."""
    fresh = AlignedPixelDecoder(CHANNELS, 32, 16, 8)
    assert all(not m.offsets.weight.any() and not m.offsets.bias.any() for m in fresh.alignments)
    decoder, given = randomised_but_unmoved(fresh), features()
    expected = [decoder.top(given[32])]
    for stride, select, align in zip((16, 8, 4), decoder.selections, decoder.alignments, strict=True):
        fine = select(given[stride])
        coarse = F.interpolate(expected[-1], scale_factor=2, mode="bilinear", align_corners=False)
        plain = F.conv2d(coarse / 2, align.align.weight, align.align.bias, padding=1)
        expected.append(fine + F.relu(plain))
    for ours, theirs in zip(decoder.pyramid(given), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_offset_moves_the_coarse_map():
    """All points one pixel to the right, modulation (almost) 1, a convolution that copies: the map comes shifted."""
    align = FeatureAlignment(32, 8)
    torch.nn.init.zeros_(align.align.weight)
    torch.nn.init.zeros_(align.align.bias)
    align.align.weight[range(32), range(32), 1, 1] = 1
    offsets, modulations = align.offsets.bias.split([2 * 8 * 9, 8 * 9])
    offsets.view(8, 9, 2)[..., 1] = 1
    modulations.fill_(30)
    coarse = torch.rand(1, 32, 6, 7)
    moved = align(torch.rand(1, 32, 6, 7), coarse)
    torch.testing.assert_close(moved[..., :-1], coarse[..., 1:])
    assert not moved[..., -1].any()


@torch.no_grad()
def test_selection_weighs_channels_by_their_mean():
    select = randomise(FeatureSelection(24, 32))
    x = features()[8]
    weights = torch.sigmoid(x.mean((2, 3)) @ select.gate.weight[:, :, 0, 0].T + select.gate.bias)
    torch.testing.assert_close(select(x), select.project(x * (1 + weights[:, :, None, None])), atol=1e-5, rtol=1e-5)


def test_gradients_reach_everything():
    """Also the offsets, at their start of 0."""
    decoder = AlignedPixelDecoder(CHANNELS, 32, 16, 8)
    result = decoder(features())
    assert [tuple(level.shape[1:]) for level in result.levels] == [(32, 2, 3), (32, 4, 6), (32, 8, 12)]
    assert result.mask_features_BCHW.shape == (2, 16, 16, 24)
    weights = torch.Generator().manual_seed(1)
    total = sum(
        (x * torch.randn(x.shape, generator=weights)).sum() for x in (result.mask_features_BCHW, *result.levels)
    )
    total.backward()
    for name, parameter in decoder.named_parameters():
        # What comes before the offsets waits for them to leave 0.
        assert parameter.grad is not None and bool(parameter.grad.any()) == ("compare" not in name), name


@torch.no_grad()
def test_odd_sizes_are_aligned():
    given = {stride: torch.randn(1, count, -(-75 // stride), -(-101 // stride)) for stride, count in CHANNELS.items()}
    result = AlignedPixelDecoder(CHANNELS, 32, 16, 8)(given)
    assert result.mask_features_BCHW.shape[-2:] == (19, 26) and result.levels[0].shape[-2:] == (3, 4)


def test_as_a_part_of_a_network_in_a_preset():
    tree = {**tiny_config().model_dump(), "pixel_decoder": {"name": "fapn", "dim": 64, "mask_dim": 32, "groups": 8}}
    model = build(ModelConfig.model_validate(tree), 5)
    prediction = model(torch.randn(1, 3, 64, 64))
    assert prediction.render().shape == (1, 12, 16, 16)
    preset = config.load("ade20k-swin-l-fapn")
    assert preset.model.pixel_decoder.model_dump(exclude_none=True) == {
        "name": "fapn",
        "dim": 256,
        "mask_dim": 256,
        "groups": 8,
    }
    assert [(f.value, f.setting, f.verified) for f in preset.published] == [(57.7, "multi-scale + flip", False)]
    tree["pixel_decoder"]["groups"] = 7
    with pytest.raises(ConfigError, match="64 is no multiple of groups 7"):
        build(ModelConfig.model_validate(tree), 5)


def test_values_that_are_not_finite_do_not_end_the_process():
    """torchvision's kernel reads outside of the map where an offset is NaN, as in a training that diverges."""
    decoder, given = randomise(AlignedPixelDecoder(CHANNELS, 32, 16, 8)), features()
    given[8] = torch.full_like(given[8], torch.nan)
    result = decoder(given)
    assert not result.mask_features_BCHW.isfinite().all()
    result.mask_features_BCHW.sum().backward()
