"""Every stage of the network against numbers of the published implementations (golden fixtures 01 to 06).

Tolerance: the fixtures say how far fp32 of the published code is from fp64 (`fp32_noise`). Another order of sums may
be off by a few times that; 8 times is allowed, never more than 1e-4 of the largest magnitude.
"""

from __future__ import annotations

import pytest
import torch
from parts import load_published, weights_of

from m2f_cli.config import Component, ModelConfig
from m2f_cli.model import build
from m2f_cli.model.backbones.resnet import ResNet
from m2f_cli.model.backbones.swin import Swin
from m2f_cli.model.decoders import masked
from m2f_cli.model.decoders.masked import MaskedDecoder
from m2f_cli.model.pixel_decoders.deformable import DeformableAttention, DeformablePixelDecoder
from m2f_cli.ops.deform_attn import IMPLEMENTATIONS, deform_attn
from m2f_cli.types import PixelFeatures

NOISE_FACTOR = 8


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, noise: dict[str, float], what: str) -> None:
    allowed = min(NOISE_FACTOR * noise["max_abs_err_vs_fp64"], 1e-4 * noise["max_abs"])
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max())
    assert difference <= allowed, f"{what}: off by {difference:.2e}, allowed {allowed:.2e}"


@torch.no_grad()
def test_swin(golden):
    fixture = golden("01_swin_backbone")
    config = fixture.info["config"]
    swin = Swin(config["embed_dim"], config["depths"], config["num_heads"], config["window_size"], drop_path=0.3)
    features = load_published(swin, "backbone", weights_of(fixture.tensors))(fixture.tensors["in/image"])
    for i, stride in enumerate((4, 8, 16, 32), start=2):
        assert_close(features[stride], fixture.tensors[f"out/res{i}"], fixture.info["fp32_noise"][f"res{i}"], f"res{i}")


@pytest.mark.parametrize(("name", "stem"), [("02_resnet50", "basic"), ("02b_resnet50_deeplab_stem", "deeplab")])
@torch.no_grad()
def test_resnet(golden, name, stem):
    fixture = golden(name)
    resnet = ResNet(50, stem, "frozen_bn", stem_channels=16, width=8)
    features = load_published(resnet, "backbone", weights_of(fixture.tensors))(fixture.tensors["in/image"])
    for i, stride in enumerate((4, 8, 16, 32), start=2):
        assert_close(features[stride], fixture.tensors[f"out/res{i}"], fixture.info["fp32_noise"][f"res{i}"], f"res{i}")


def _pixels(locations: torch.Tensor, shapes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)[:, None]
    points = locations * sizes - 0.5
    return points[..., 0], points[..., 1]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_deformable_sampling_and_gradients(golden, impl):
    fixture = golden("03_msdeformattn_op")
    tensors, noise = fixture.tensors, fixture.info["fp32_noise"]
    shapes = tensors["in/spatial_shapes"].tolist()
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (tensors[f"in/{name}"].clone().requires_grad_() for name in names)
    output = deform_attn(value, shapes, *_pixels(locations, shapes), weights, impl=impl)
    (output * tensors["in/cotangent"]).sum().backward()
    assert_close(output.detach(), tensors["out/output"], noise["output"], "output")
    for name, tensor in zip(names, (value, locations, weights), strict=True):
        assert_close(tensor.grad, tensors[f"grad/{name}"], noise[f"grad/{name}"], f"gradient of {name}")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_deformable_sampling_on_borders_and_outside(golden, impl):
    fixture = golden("03_msdeformattn_op")
    shapes = fixture.tensors["in/spatial_shapes"].tolist()
    output = deform_attn(
        fixture.tensors["in/value"], shapes, *_pixels(fixture.tensors["edge/sampling_locations"], shapes),
        fixture.tensors["in/attention_weights"], impl=impl,
    )
    assert_close(output, fixture.tensors["edge/output"], fixture.info["fp32_noise"]["output"], "edge")


def test_deformable_attention_module_and_gradients(golden):
    tensors = golden("03_msdeformattn_op").tensors
    shapes = tuple(map(tuple, tensors["in/spatial_shapes"].tolist()))
    attention = DeformableAttention(dim=32, num_levels=3, num_heads=4, num_points=4)
    names = {name: name.replace("weights/module.", "") for name in tensors if name.startswith("weights/module.")}

    def ours(name: str, tensor: torch.Tensor) -> torch.Tensor:  # rows of the offsets: (…, xy) → (xy, …)
        return tensor.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if "sampling_offsets" in name else tensor

    attention.load_state_dict({short: ours(name, tensors[name]) for name, short in names.items()})
    query, value = (tensors[f"module/in/{name}"].clone().requires_grad_() for name in ("query", "input_flatten"))
    sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)
    references = (tensors["module/in/reference_points"] * sizes - 0.5).permute(0, 1, 3, 2)  # (B, N, 2, L)
    references = references[:, :, :, None, :, None].expand(-1, -1, -1, attention.num_heads, -1, attention.num_points)
    references = references.flatten(2)
    output = attention(query, value, references, shapes, valid_BS=~tensors["module/in/padding_mask"])
    (output * tensors["module/in/cotangent"]).sum().backward()
    # The fixture gives no noise for the module: sums of 32 products of magnitude one, then 12 samples, in fp32.
    torch.testing.assert_close(output.detach(), tensors["module/out/output"], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(query.grad, tensors["module/grad/query"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(value.grad, tensors["module/grad/input_flatten"], atol=2e-5, rtol=1e-4)
    for name, parameter in attention.named_parameters():
        expected = ours(name, tensors[f"module/grad/weights.{name}"])
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_pixel_decoder(golden):
    fixture = golden("04_msdeformattn_pixel_decoder")
    config, tensors = fixture.info["config"], fixture.tensors
    channels = {4 * 2**i: config["in_channels"][f"res{i + 2}"] for i in range(4)}
    decoder = DeformablePixelDecoder(
        channels, config["conv_dim"], config["mask_dim"], config["encoder_layers"], config["dim_feedforward"],
        config["heads"], config["points"],
    )
    load_published(decoder, "pixel_decoder", weights_of(tensors))
    result = decoder({4 * 2**i: tensors[f"in/res{i + 2}"] for i in range(4)}).projected()
    noise = fixture.info["fp32_noise"]
    assert_close(result.mask_features_BCHW, tensors["out/mask_features"], noise["mask_features"], "mask features")
    for i, level in enumerate(result.levels):
        assert_close(level, tensors[f"out/multi_scale.{i}"], noise[f"multi_scale.{i}"], f"level {i}")


@pytest.mark.parametrize("name", ["05a_m2f_decoder", "05b_m2f_decoder_input_proj"])
@torch.no_grad()
def test_decoder(golden, name, monkeypatch):
    fixture = golden(name)
    config, tensors = fixture.info["config"], fixture.tensors
    decoder = MaskedDecoder(
        config["num_classes"], config["in_channels"], config["mask_dim"], config["hidden_dim"], config["num_queries"],
        config["decoder_layers"], config["heads"], config["dim_feedforward"],
    )
    load_published(decoder, "decoder", weights_of(tensors))
    used = []
    attend = masked.masked_attention
    monkeypatch.setattr(masked, "masked_attention", lambda *args: used.append(attend(*args)) or used[-1])
    prediction = decoder(PixelFeatures(tensors["in/mask_features"], [tensors[f"in/multi_scale.{i}"] for i in range(3)]))
    layers = config["decoder_layers"]
    assert len(prediction.layers) == layers + 1 and len(used) == layers
    for i, may_attend in enumerate(used):
        assert torch.equal(~may_attend, tensors[f"mid/attn_mask_used.{i}"]), f"attention mask of layer {i}"
    noise = fixture.info["fp32_noise"]
    for i in range(layers + 1):
        prefix = "out/" if i == layers else f"out/aux.{i}."
        classes, masks = prediction.layers[i].class_logits_BQK, prediction.render(layer=i)
        assert_close(classes, tensors[prefix + "pred_logits"], noise["pred_logits"], f"classes {i}")
        assert_close(masks, tensors[prefix + "pred_masks"], noise["pred_masks"], f"masks {i}")


def full_model(fixture) -> torch.nn.Module:
    """The network of fixture 06 with its weights."""
    config = fixture.info["config"]
    names = {"embed_dim": "EMBED_DIM", "depths": "DEPTHS", "num_heads": "NUM_HEADS", "window_size": "WINDOW_SIZE"}
    swin = {ours: config[f"MODEL.SWIN.{theirs}"] for ours, theirs in names.items()}
    heads, dim = config["MODEL.MASK_FORMER.NHEADS"], config["MODEL.MASK_FORMER.HIDDEN_DIM"]
    model_config = ModelConfig(
        method="mask2former",
        backbone=Component(name="swin", drop_path=0.3, **swin),
        pixel_decoder=Component(
            name="deformable", dim=config["MODEL.SEM_SEG_HEAD.CONVS_DIM"],
            mask_dim=config["MODEL.SEM_SEG_HEAD.MASK_DIM"],
            num_layers=config["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS"],
            ffn_dim=fixture.info["pixel_decoder_dim_feedforward"], num_heads=heads, num_points=4,
        ),
        decoder=Component(
            name="masked", dim=dim, num_queries=config["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"],
            num_layers=config["MODEL.MASK_FORMER.DEC_LAYERS"] - 1, num_heads=heads,
            ffn_dim=config["MODEL.MASK_FORMER.DIM_FEEDFORWARD"],
        ),
    )
    model = build(model_config, config["MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
    return load_published(model, "model", weights_of(fixture.tensors))


@torch.no_grad()
def test_full_model(golden):
    fixture = golden("06_mask2former_full_swin")
    tensors, noise = fixture.tensors, fixture.info["fp32_noise"]
    model = full_model(fixture)
    images = tensors["mid/padded_normalised_batch"]
    features = model.backbone(images)
    for i, stride in enumerate((4, 8, 16, 32), start=2):
        torch.testing.assert_close(features[stride], tensors[f"mid/backbone.res{i}"], atol=1e-5, rtol=1e-5)
    prediction = model(images)
    assert prediction.projection is not None  # in prediction it is the queries' affair; the masks below are of that
    projected = prediction.projected().mask_features_BCHW
    torch.testing.assert_close(projected, tensors["mid/mask_features"], atol=2e-5, rtol=1e-5)
    for i in range(4):
        prefix = "out/" if i == 3 else f"out/aux.{i}."
        classes, masks = prediction.layers[i].class_logits_BQK, prediction.render(layer=i)
        assert_close(classes, tensors[prefix + "pred_logits"], noise["pred_logits"], f"classes {i}")
        assert_close(masks, tensors[prefix + "pred_masks"], noise["pred_masks"], f"masks {i}")


@torch.no_grad()
def test_a_batch_equals_its_pictures_alone(golden):
    """Windows of several pictures are gathered together; they must not meet."""
    fixture = golden("06_mask2former_full_swin")
    model, images = full_model(fixture), fixture.tensors["mid/padded_normalised_batch"]
    together = model(images)
    for i in range(len(images)):
        alone = model(images[i : i + 1])
        torch.testing.assert_close(together.render()[i : i + 1], alone.render(), atol=2e-4, rtol=1e-5)
