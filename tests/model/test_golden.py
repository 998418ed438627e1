"""Every stage of the network against numbers of the published implementations (golden fixtures 01 to 06).

Tolerance: the fixtures say how far fp32 of the published code is from fp64 (`fp32_noise`). Another order of sums may
be off by a few times that; 8 times is allowed, never more than 1e-4 of the largest magnitude.
"""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import for_files
from helpers.parts import STRIDES, Given, features_of, full_model, levels_of, load_published, whole_batch

from m2f_cli.model.backbones.resnet import ResNet
from m2f_cli.model.backbones.swin import Swin
from m2f_cli.model.decoders import masked
from m2f_cli.model.decoders.masked import MaskedDecoder
from m2f_cli.model.pixel_decoders.deformable import DeformableAttention, DeformablePixelDecoder
from m2f_cli.ops.deformable_attention import EVERYWHERE, deform_attn
from m2f_cli.structures.predictions import PixelFeatures

NOISE_FACTOR = 8


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, noise: dict[str, float], what: str) -> None:
    allowed = min(NOISE_FACTOR * noise["max_abs_err_vs_fp64"], 1e-4 * noise["max_abs"])
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max())
    assert difference <= allowed, f"{what}: off by {difference:.2e}, allowed {allowed:.2e}"


def assert_same_features(ours: dict[int, torch.Tensor], file) -> None:
    expected = features_of(file.tensors, "out/")
    assert expected
    for stride, theirs in expected.items():
        name = f"res{STRIDES.index(stride) + 2}"
        assert_close(ours[stride], theirs, file.info["fp32_noise"][name], name)


@for_files("01")
@torch.no_grad()
def test_swin_gives_the_published_features(golden_file):
    config = golden_file.info["config"]
    swin = Swin(config["embed_dim"], config["depths"], config["num_heads"], config["window_size"], drop_path=0.3)
    load_published(swin, "backbone", golden_file)
    assert_same_features(swin(golden_file.tensors["in/image"]), golden_file)


def resnet_of(file) -> ResNet:
    config = file.info["config"]
    assert not config["stride_in_1x1"]
    stem = config["stem"].split()[0]
    return ResNet(
        config["depth"], stem, "frozen_bn", stem_channels=config["stem_out_channels"], width=config["width_per_group"]
    )


@for_files("02")
@torch.no_grad()
def test_resnet_gives_the_published_features(golden_file):
    resnet = load_published(resnet_of(golden_file), "backbone", golden_file)
    assert_same_features(resnet(golden_file.tensors["in/image"]), golden_file)


def _pixels(locations: torch.Tensor, shapes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)[:, None]
    points = locations * sizes - 0.5
    return points[..., 0], points[..., 1]


@for_files("03")
@pytest.mark.parametrize("impl", EVERYWHERE)
def test_deformable_sampling_and_gradients(golden_file, impl):
    tensors, noise = golden_file.tensors, golden_file.info["fp32_noise"]
    shapes = tensors["in/spatial_shapes"].tolist()
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (tensors[f"in/{name}"].clone().requires_grad_() for name in names)
    output = deform_attn(value, shapes, *_pixels(locations, shapes), weights, impl=impl)
    (output * tensors["in/cotangent"]).sum().backward()
    assert_close(output.detach(), tensors["out/output"], noise["output"], "output")
    for name, tensor in zip(names, (value, locations, weights), strict=True):
        assert_close(tensor.grad, tensors[f"grad/{name}"], noise[f"grad/{name}"], f"gradient of {name}")


@for_files("03")
@pytest.mark.parametrize("impl", EVERYWHERE)
def test_deformable_sampling_on_borders_and_outside(golden_file, impl):
    tensors = golden_file.tensors
    shapes = tensors["in/spatial_shapes"].tolist()
    output = deform_attn(
        tensors["in/value"],
        shapes,
        *_pixels(tensors["edge/sampling_locations"], shapes),
        tensors["in/attention_weights"],
        impl=impl,
    )
    assert_close(output, tensors["edge/output"], golden_file.info["fp32_noise"]["output"], "edge")


@for_files("03")
def test_deformable_attention_module_and_gradients(golden_file):
    tensors = golden_file.tensors
    shapes = tuple(map(tuple, tensors["in/spatial_shapes"].tolist()))
    _, _, heads, levels, points, _ = tensors["in/sampling_locations"].shape
    attention = DeformableAttention(tensors["module/in/query"].shape[-1], levels, heads, points)
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


@for_files("04")
@torch.no_grad()
def test_pixel_decoder_gives_the_published_features(golden_file):
    config, tensors = golden_file.info["config"], golden_file.tensors
    channels = {stride: config["in_channels"][f"res{i}"] for i, stride in enumerate(STRIDES, start=2)}
    decoder = DeformablePixelDecoder(
        channels,
        config["conv_dim"],
        config["mask_dim"],
        config["encoder_layers"],
        config["dim_feedforward"],
        config["heads"],
        config["points"],
    )
    load_published(decoder, "pixel_decoder", golden_file)
    result = decoder(features_of(tensors, "in/"))
    noise = golden_file.info["fp32_noise"]
    assert_close(result.mask_features_BCHW, tensors["out/mask_features"], noise["mask_features"], "mask features")
    for i, level in enumerate(result.levels):
        assert_close(level, tensors[f"out/multi_scale.{i}"], noise[f"multi_scale.{i}"], f"level {i}")


@for_files("05")
@torch.no_grad()
def test_masked_decoder_gives_the_published_predictions(golden_file, monkeypatch):
    """Its attention masks bit for bit in every layer; a reduced file has the mask logits of some layers only."""
    config, tensors = golden_file.info["config"], golden_file.tensors
    decoder = MaskedDecoder(
        config["num_classes"],
        config["in_channels"],
        config["mask_dim"],
        config["hidden_dim"],
        config["num_queries"],
        config["decoder_layers"],
        config["heads"],
        config["dim_feedforward"],
    )
    load_published(decoder, "decoder", golden_file)
    used = []
    attend = masked.masked_attention
    monkeypatch.setattr(masked, "masked_attention", lambda *args: used.append(attend(*args)) or used[-1])
    prediction = decoder(PixelFeatures(tensors["in/mask_features"], levels_of(tensors)))
    layers = config["decoder_layers"]
    assert len(prediction.layers) == layers + 1 and len(used) == layers
    for i, may_attend in enumerate(used):
        assert torch.equal(~may_attend, tensors[f"mid/attn_mask_used.{i}"]), f"attention mask of layer {i}"
    assert_predictions(prediction, golden_file, whole="reduced" not in golden_file.info)


def assert_predictions(prediction, file, *, whole: bool) -> None:
    """Compare classes and masks of all layers; a file that is not whole may lack masks between first and last."""
    noise, last = file.info["fp32_noise"], len(prediction.layers) - 1
    for i, layer in enumerate(prediction.layers):
        prefix = "out/" if i == last else f"out/aux.{i}."
        assert_close(layer.class_logits_BQK, file.tensors[prefix + "pred_logits"], noise["pred_logits"], f"classes {i}")
        if whole or i in (0, last) or prefix + "pred_masks" in file.tensors:
            masks = prediction.render(layer=i)
            assert_close(masks, file.tensors[prefix + "pred_masks"], noise["pred_masks"], f"masks {i}")
    assert f"out/aux.{last}.pred_logits" not in file.tensors


def assert_close_to(ours: torch.Tensor, theirs: torch.Tensor, atol: float, usual: float) -> None:
    """Within `atol`, more only where values are larger than `usual`: rounding grows with them."""
    torch.testing.assert_close(ours, theirs, atol=atol * max(1.0, float(theirs.abs().max()) / usual), rtol=1e-5)


@for_files("06")
@torch.no_grad()
def test_full_model_gives_the_published_predictions(golden_file):
    tensors, model = golden_file.tensors, full_model(golden_file)
    images = tensors["mid/padded_normalised_batch"]
    assert_backbone(model, images, golden_file)
    prediction = model(images)
    assert_close_to(prediction.mask_features_BCHW, tensors["mid/mask_features"], atol=2e-5, usual=10)
    assert_predictions(prediction, golden_file, whole=True)


def assert_backbone(model: torch.nn.Module, images: torch.Tensor, file) -> None:
    """Compare the features of a full model's backbone, unless the file starts with them."""
    expected = features_of(file.tensors, "mid/backbone.")
    assert len(expected) == 4
    if isinstance(model.backbone, Given):
        return
    for stride, found in model.backbone(images).items():
        assert_close_to(found, expected[stride], atol=1e-5, usual=5)


@for_files("06", where=lambda info: not info.get("left_out"))
@torch.no_grad()
def test_a_batch_equals_its_images_alone(golden_file):
    """Windows of several images are gathered together; they must not meet."""
    model, images = full_model(golden_file), whole_batch(golden_file)
    together = model(images)
    assert len(images) > 1
    for i in range(len(images)):
        alone = model(images[i : i + 1])
        torch.testing.assert_close(together.render()[i : i + 1], alone.render(), atol=2e-4, rtol=1e-5)
