"""MaskFormer's parts against numbers of the published implementation (golden fixtures 08a to 08e), and its options."""

from __future__ import annotations

import pytest
import torch
from parts import load_published, weights_of

from m2f_cli.config import Component, ModelConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.model.decoders.plain import PlainDecoder
from m2f_cli.model.per_pixel import PerPixelDecoder, PerPixelPlusDecoder
from m2f_cli.model.pixel_decoders.fpn import FPNPixelDecoder
from m2f_cli.model.pixel_decoders.transformer_fpn import TransformerFPNPixelDecoder
from m2f_cli.types import PixelFeatures

NOISE_FACTOR = 8  # as in test_golden.py


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, noise: dict[str, float], what: str) -> None:
    allowed = min(NOISE_FACTOR * noise["max_abs_err_vs_fp64"], 1e-4 * noise["max_abs"])
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max())
    assert difference <= allowed, f"{what}: off by {difference:.2e}, allowed {allowed:.2e}"


def features_of(fixture) -> tuple[dict[int, int], dict[int, torch.Tensor]]:
    """Channels and maps by stride."""
    channels = {4 * 2**i: fixture.info["config"]["in_channels"][f"res{i + 2}"] for i in range(4)}
    return channels, {4 * 2**i: fixture.tensors[f"in/res{i + 2}"] for i in range(4)}


@torch.no_grad()
def test_fpn_pixel_decoder(golden):
    fixture = golden("08a_maskformer_fpn_pixel_decoder")
    config, (channels, features) = fixture.info["config"], features_of(fixture)
    decoder = FPNPixelDecoder(channels, config["conv_dim"], config["mask_dim"])
    result = load_published(decoder, "pixel_decoder", weights_of(fixture.tensors))(features)
    noise = fixture.info["fp32_noise"]
    assert_close(result.mask_features_BCHW, fixture.tensors["out/mask_features"], noise["mask_features"], "features")
    [level] = result.levels
    assert level is features[32] and decoder.dim == channels[32]


@torch.no_grad()
def test_transformer_fpn_pixel_decoder(golden):
    fixture = golden("08b_maskformer_transformer_pixel_decoder")
    config, (channels, features) = fixture.info["config"], features_of(fixture)
    decoder = TransformerFPNPixelDecoder(
        channels, config["conv_dim"], config["mask_dim"], config["transformer_enc_layers"],
        config["transformer_nheads"], config["transformer_dim_feedforward"], config["transformer_dropout"],
    )
    result = load_published(decoder, "pixel_decoder", weights_of(fixture.tensors))(features)
    noise = fixture.info["fp32_noise"]
    assert_close(result.mask_features_BCHW, fixture.tensors["out/mask_features"], noise["mask_features"], "features")
    [level] = result.levels
    wanted = fixture.tensors["out/transformer_encoder_features"]
    assert_close(level, wanted, noise["transformer_encoder_features"], "level")
    assert decoder.dim == config["conv_dim"]


def plain_decoder(fixture, **options) -> PlainDecoder:
    config = fixture.info["config"]
    decoder = PlainDecoder(
        config["num_classes"], config["in_channels"], config["mask_dim"], config["hidden_dim"], config["num_queries"],
        config["decoder_layers"], config["heads"], config["dim_feedforward"], dropout=0.1, **options,
    )
    return load_published(decoder, "decoder", weights_of(fixture.tensors))


def pixel_features(fixture) -> PixelFeatures:
    return PixelFeatures(fixture.tensors["in/mask_features"], [fixture.tensors["in/feature"]])


@torch.no_grad()
def test_decoder(golden):
    fixture = golden("08c_maskformer_predictor")
    layers, noise = fixture.info["config"]["decoder_layers"], fixture.info["fp32_noise"]
    prediction = plain_decoder(fixture)(pixel_features(fixture))
    assert len(prediction.layers) == layers
    for i in range(layers):
        prefix = "out/" if i == layers - 1 else f"out/aux.{i}."
        classes, masks = prediction.layers[i].class_logits_BQK, prediction.render(layer=i)
        assert_close(classes, fixture.tensors[prefix + "pred_logits"], noise["pred_logits"], f"classes {i}")
        assert_close(masks, fixture.tensors[prefix + "pred_masks"], noise["pred_masks"], f"masks {i}")


@torch.no_grad()
def test_decoder_without_deep_supervision(golden):
    fixture = golden("08c_maskformer_predictor")
    prediction = plain_decoder(fixture, deep_supervision=False)(pixel_features(fixture))
    [only] = prediction.layers
    noise = fixture.info["fp32_noise"]
    wanted = fixture.tensors["out/no_deep_supervision/pred_logits"]
    assert_close(only.class_logits_BQK, wanted, noise["pred_logits"], "classes")
    assert_close(prediction.render(), fixture.tensors["out/no_deep_supervision/pred_masks"], noise["pred_masks"], "m")


def full_model(fixture) -> torch.nn.Module:
    """The network of fixture 08e with its weights."""
    config = fixture.info["config"]
    names = {"embed_dim": "EMBED_DIM", "depths": "DEPTHS", "num_heads": "NUM_HEADS", "window_size": "WINDOW_SIZE"}
    swin = {ours: config[f"MODEL.SWIN.{theirs}"] for ours, theirs in names.items()}
    head = {name: config[f"MODEL.MASK_FORMER.{name}"] for name in (
        "HIDDEN_DIM", "NHEADS", "DIM_FEEDFORWARD", "DEC_LAYERS", "NUM_OBJECT_QUERIES")}
    model_config = ModelConfig(
        method="maskformer",
        backbone=Component(name="swin", drop_path=0.3, **swin),
        pixel_decoder=Component(
            name="fpn", dim=config["MODEL.SEM_SEG_HEAD.CONVS_DIM"], mask_dim=config["MODEL.SEM_SEG_HEAD.MASK_DIM"]
        ),
        decoder=Component(
            name="plain", dim=head["HIDDEN_DIM"], num_queries=head["NUM_OBJECT_QUERIES"],
            num_layers=head["DEC_LAYERS"], num_heads=head["NHEADS"], ffn_dim=head["DIM_FEEDFORWARD"], dropout=0.1,
            enforce_input_proj=True,
        ),
    )
    model = build(model_config, config["MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
    return load_published(model, "model", weights_of(fixture.tensors))


@torch.no_grad()
def test_full_model(golden):
    fixture = golden("08e_maskformer_full_swin")
    tensors, noise = fixture.tensors, fixture.info["fp32_noise"]
    model = full_model(fixture)
    images = tensors["mid/padded_normalised_batch"]
    features = model.backbone(images)
    for i, stride in enumerate((4, 8, 16, 32), start=2):
        torch.testing.assert_close(features[stride], tensors[f"mid/backbone.res{i}"], atol=1e-5, rtol=1e-5)
    prediction = model(images)
    torch.testing.assert_close(prediction.mask_features_BCHW, tensors["mid/mask_features"], atol=2e-5, rtol=1e-5)
    for i in range(3):
        prefix = "out/" if i == 2 else f"out/aux.{i}."
        classes, masks = prediction.layers[i].class_logits_BQK, prediction.render(layer=i)
        assert_close(classes, tensors[prefix + "pred_logits"], noise["pred_logits"], f"classes {i}")
        assert_close(masks, tensors[prefix + "pred_masks"], noise["pred_masks"], f"masks {i}")


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
