"""MaskFormer's parts against numbers of the published implementation (golden fixtures 08a to 08e), and its options."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import for_files
from helpers.parts import STRIDES, features_of, full_model, load_published
from model.test_golden import assert_backbone, assert_close, assert_close_to, assert_predictions

from m2f_cli.errors import ConfigError
from m2f_cli.model.decoders.per_pixel import PerPixelDecoder, PerPixelPlusDecoder
from m2f_cli.model.decoders.plain import PlainDecoder
from m2f_cli.model.pixel_decoders.fpn import FPNPixelDecoder
from m2f_cli.model.pixel_decoders.transformer_fpn import TransformerFPNPixelDecoder
from m2f_cli.structures.predictions import PixelFeatures


def channels_of(file) -> dict[int, int]:
    """Channels by stride."""
    return {stride: file.info["config"]["in_channels"][f"res{i}"] for i, stride in enumerate(STRIDES, start=2)}


@for_files("08a")
@torch.no_grad()
def test_fpn_pixel_decoder_gives_the_published_features(golden_file):
    config, channels = golden_file.info["config"], channels_of(golden_file)
    features = features_of(golden_file.tensors, "in/")
    decoder = FPNPixelDecoder(channels, config["conv_dim"], config["mask_dim"])
    result = load_published(decoder, "pixel_decoder", golden_file)(features)
    noise, wanted = golden_file.info["fp32_noise"], golden_file.tensors["out/mask_features"]
    assert_close(result.mask_features_BCHW, wanted, noise["mask_features"], "features")
    [level] = result.levels
    assert level is features[32] and decoder.dim == channels[32]


@for_files("08b")
@torch.no_grad()
def test_transformer_fpn_pixel_decoder_gives_the_published_features(golden_file):
    config, tensors = golden_file.info["config"], golden_file.tensors
    assert not config["transformer_pre_norm"]
    decoder = TransformerFPNPixelDecoder(
        channels_of(golden_file),
        config["conv_dim"],
        config["mask_dim"],
        config["transformer_enc_layers"],
        config["transformer_nheads"],
        config["transformer_dim_feedforward"],
        config["transformer_dropout"],
    )
    result = load_published(decoder, "pixel_decoder", golden_file)(features_of(tensors, "in/"))
    noise = golden_file.info["fp32_noise"]
    assert_close(result.mask_features_BCHW, tensors["out/mask_features"], noise["mask_features"], "features")
    [level] = result.levels
    wanted = tensors["out/transformer_encoder_features"]
    assert_close(level, wanted, noise["transformer_encoder_features"], "level")
    assert decoder.dim == config["conv_dim"]


def plain_decoder(file, **options) -> PlainDecoder:
    config = file.info["config"]
    decoder = PlainDecoder(
        config["num_classes"],
        config["in_channels"],
        config["mask_dim"],
        config["hidden_dim"],
        config["num_queries"],
        config["decoder_layers"],
        config["heads"],
        config["dim_feedforward"],
        dropout=0.1,
        enforce_input_proj="weights/input_proj.weight" in file.tensors,
        **options,
    )
    return load_published(decoder, "decoder", file)


def pixel_features(file) -> PixelFeatures:
    return PixelFeatures(file.tensors["in/mask_features"], [file.tensors["in/feature"]])


@for_files("08c")
@torch.no_grad()
def test_plain_decoder_gives_the_published_predictions(golden_file):
    prediction = plain_decoder(golden_file)(pixel_features(golden_file))
    assert len(prediction.layers) == golden_file.info["config"]["decoder_layers"]
    assert_predictions(prediction, golden_file, whole=True)


@for_files("08c")
@torch.no_grad()
def test_plain_decoder_without_deep_supervision_gives_the_published_prediction(golden_file):
    prediction = plain_decoder(golden_file, deep_supervision=False)(pixel_features(golden_file))
    [only] = prediction.layers
    noise, tensors = golden_file.info["fp32_noise"], golden_file.tensors
    wanted = tensors["out/no_deep_supervision/pred_logits"]
    assert_close(only.class_logits_BQK, wanted, noise["pred_logits"], "classes")
    assert_close(prediction.render(), tensors["out/no_deep_supervision/pred_masks"], noise["pred_masks"], "m")


@for_files("08e")
@torch.no_grad()
def test_full_model_gives_the_published_predictions(golden_file):
    tensors, model = golden_file.tensors, full_model(golden_file)
    images = tensors["mid/padded_normalised_batch"]
    assert_backbone(model, images, golden_file)
    prediction = model(images)
    wanted = tensors["mid/mask_features"]
    assert_close_to(prediction.mask_features_BCHW, wanted, atol=2e-5, usual=10)
    assert_predictions(prediction, golden_file, whole=True)


# --- options ----------------------------------------------------------------------------------------------------------


def small_decoder(**options) -> PlainDecoder:
    settings = {"num_queries": 5, "num_layers": 2, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0, **options}
    torch.manual_seed(0)
    return PlainDecoder(3, 8, 4, 8, **settings)


def small_features() -> PixelFeatures:
    generator = torch.Generator().manual_seed(1)
    return PixelFeatures(torch.randn(2, 4, 6, 7, generator=generator), [torch.randn(2, 8, 3, 4, generator=generator)])


def test_a_projection_is_there_where_it_is_needed_or_enforced():
    assert small_decoder().input_proj is None
    assert small_decoder(enforce_input_proj=True).input_proj.weight.shape == (8, 8, 1, 1)
    assert PlainDecoder(3, 6, 4, 8, 5, 1, 2, 16, 0.0).input_proj.weight.shape == (8, 6, 1, 1)


def test_pre_norm_normalises_what_goes_in():
    """By hand: x + f(norm(x)) for all three parts."""
    layer = small_decoder(pre_norm=True).blocks[0].eval()
    x, position, memory = torch.randn(2, 5, 8), torch.randn(5, 8), torch.randn(2, 12, 8)
    expected = x
    y = layer.norm1(expected)
    expected = expected + layer.self_attn(y + position, y + position, y)
    expected = expected + layer.cross_attn(layer.norm2(expected) + position, memory, memory)
    expected = expected + layer.ffn(layer.norm3(expected))
    torch.testing.assert_close(layer(x, position, memory, memory), expected)
    layer.pre_norm = False
    assert not torch.allclose(layer(x, position, memory, memory), expected)


def test_dropout_is_for_training_only():
    decoder, features = small_decoder(dropout=0.5), small_features()
    first, second = (decoder.train()(features).render() for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (decoder.eval()(features).render() for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, small_decoder(dropout=0.0).train()(features).render())


def test_pilots_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="masked attention"):
        small_decoder()(small_features(), pilots=object())


# --- baselines --------------------------------------------------------------------------------------------------------


def test_per_pixel_is_a_classifier_of_every_pixel():
    torch.manual_seed(0)
    decoder = PerPixelDecoder(num_classes=3, in_dim=8, mask_dim=4)
    torch.nn.init.normal_(decoder.classifier.bias)
    features = small_features()
    prediction = decoder(features)
    torch.testing.assert_close(prediction.render(), decoder.classifier(features.mask_features_BCHW))
    probs = prediction.last.class_logits_BQK.softmax(-1)
    assert torch.equal(probs, torch.eye(3, 4).expand(2, -1, -1))


def test_per_pixel_plus_has_a_query_for_each_class():
    torch.manual_seed(0)
    decoder = PerPixelPlusDecoder(3, 8, 4, 8, num_layers=2, num_heads=2, ffn_dim=16, dropout=0.0).eval()
    assert decoder.query_embed.weight.shape == (3, 8)
    assert not any(name.startswith("class_embed") for name in decoder.state_dict())
    prediction = decoder(small_features())
    assert [layer.mask_embeds_BQC.shape for layer in prediction.layers] == [(2, 3, 4)] * 2
    for layer in prediction.layers:
        assert torch.equal(layer.class_logits_BQK.softmax(-1), torch.eye(3, 4).expand(2, -1, -1))
