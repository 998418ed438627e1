"""What the network must bear: any size, mixed batches, low precision, tracing."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.parts import randomise, tiny_config

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import Component
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.model.attention_masks import open_empty_rows
from m2f_cli.model.backbones.swin_windows import windows_of
from m2f_cli.model.decoders import masked
from m2f_cli.model.layers.conv import channels_last

RESNET = {"name": "resnet", "depth": 50, "stem": "basic", "norm": "frozen_bn", "stem_channels": 8, "width": 8}


@pytest.fixture(scope="module")
def model():
    return randomise(build(tiny_config(), num_classes=5)).eval()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 31), (64, 64), (1, 1000), (600, 2), (75, 101)])
@torch.no_grad()
def test_images_of_any_size_are_taken(model, size):
    prediction = model(torch.randn(1, 3, *size))
    assert prediction.render(size).shape == (1, 12, *size)
    assert prediction.render(size).isfinite().all() and prediction.last.class_logits_BQK.shape == (1, 12, 6)


def test_every_swin_token_is_in_one_place():
    for size in [(1, 1), (7, 7), (13, 8), (20, 33)]:
        for shift in (0, 3):
            windows = windows_of(2, *size, 7, shift, torch.device("cpu"))
            stride = size[0] * size[1] + windows.padded
            tokens = torch.cat([torch.arange(size[0] * size[1]) + image * stride for image in range(2)])
            assert torch.equal(windows.source[windows.target], tokens)


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_are_innermost_whatever_came_before(batch):
    plain = torch.randn(batch, 8, 4, 5)
    tokens = torch.randn(batch, 60, 8)[:, 20:40].transpose(1, 2).unflatten(2, (4, 5))  # cut out of a sequence
    for x_BCHW in (plain, plain.contiguous(memory_format=torch.channels_last), tokens, plain[:, :, :1, :1]):
        found = channels_last(x_BCHW)
        assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(found, x_BCHW)


def test_empty_masks_attend_everywhere():
    may_attend = torch.tensor([[[True, False], [False, False]]])
    assert open_empty_rows(may_attend).tolist() == [[[True, False], [True, True]]]


def test_published_parameter_counts():
    """docs/methods/published-behaviour.md#3-3: computed with the published code, 133 classes, 100 queries."""
    full = {"dim": 256, "num_heads": 8}
    pixel = Component(name="deformable", mask_dim=256, num_layers=6, ffn_dim=1024, num_points=4, **full)
    decoder = Component(name="masked", num_queries=100, num_layers=9, ffn_dim=2048, **full)
    sizes = [(96, [2, 2, 6, 2], 7, 47_435_264), (192, [2, 2, 18, 2], 12, 215_484_410)]
    with torch.device("meta"):
        for dim, depths, window, expected in sizes:
            heads = [dim // 32 * 2**i for i in range(4)]
            swin = Component(
                name="swin", embed_dim=dim, depths=depths, num_heads=heads, window_size=window, drop_path=0.3
            )
            parts = {"backbone": swin, "pixel_decoder": pixel, "decoder": decoder}
            config = tiny_config().model_copy(update=parts)
            assert sum(p.numel() for p in build(config, 133).parameters()) == expected
        resnet = Component(name="resnet", depth=101, stem="basic", norm="frozen_bn")
        config = config.model_copy(update={"backbone": resnet})
        assert sum(p.numel() for p in build(config, 133).parameters()) == 62_923_782


@torch.no_grad()
def test_training_in_half_precision_keeps_the_pixel_decoder_in_fp32(model):
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    model.pixel_decoder.train()
    features = model.backbone(images)
    exact = model.pixel_decoder(features)
    with torch.autocast("cpu", dtype=torch.float16):
        island = model.pixel_decoder(features)
    model.pixel_decoder.eval()
    assert island.mask_features_BCHW.dtype == torch.float32
    torch.testing.assert_close(island.mask_features_BCHW, exact.mask_features_BCHW, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_inference_under_autocast_stays_close(model, dtype):
    """Of lower precision: the backbone, the encoder's products but those that say where to look, all of stride 4."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    exact, seen, hooks = model(images), {}, []
    for name, layer in model.named_modules():
        if not list(layer.children()) and any(True for _ in layer.parameters(recurse=False)):
            note = lambda _, __, output, name=name: seen.update({name: output.dtype})  # noqa: E731
            hooks.append(layer.register_forward_hook(note))
    with torch.autocast("cpu", dtype=dtype):
        cast = model(images)
    for hook in hooks:
        hook.remove()
    lowered = {name for name, kind in seen.items() if kind == dtype and not name.startswith("backbone")}
    assert lowered
    assert all(name.startswith("pixel_decoder.") for name in lowered)
    exact_parts = ("sampling_offsets", "attention_weights", "norm1", "norm2", "input_projs")
    assert not any(part in name for name in lowered for part in exact_parts)
    assert cast.mask_features_BCHW.dtype == cast.last.class_logits_BQK.dtype == torch.float32
    # bf16 has 8 bits: features of a random network, normalised, stay within a few percent of their magnitude.
    error = (cast.mask_features_BCHW - exact.mask_features_BCHW).abs().mean() / exact.mask_features_BCHW.abs().mean()
    assert error < 0.03 and cast.render().isfinite().all()


@pytest.mark.parametrize("backbone", [RESNET, {}], ids=["resnet", "swin"])
@pytest.mark.parametrize(  # tokens at stride 32: 6, 130, 320
    "size", [(64, 96), *(pytest.param(size, marks=pytest.mark.slow) for size in ((300, 400), (512, 640)))]
)
@pytest.mark.parametrize(
    ("pixel_decoder", "decoder"),
    [
        ("fpn", "plain"),
        ("transformer_fpn", "plain"),
        ("fpn", "per_pixel_plus"),
        ("fpn", "per_pixel"),
    ],
)
@torch.no_grad()
def test_maskformers_under_autocast_stay_close(backbone, size, pixel_decoder, decoder):
    pixel = {"name": pixel_decoder, "dim": 64, "mask_dim": 32}
    if pixel_decoder == "transformer_fpn":
        pixel |= {"num_layers": 1, "num_heads": 4, "ffn_dim": 64, "dropout": 0.1}
    queries = {"plain": {"num_queries": 12}}.get(decoder, {})
    layers = {"dim": 64, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "dropout": 0.1}
    config = tiny_config(**backbone).model_copy(
        update={
            "method": "maskformer",
            "pixel_decoder": Component(**pixel),
            "decoder": Component(name=decoder, **queries, **({} if decoder == "per_pixel" else layers)),
        }
    )
    model = randomise(build(config, num_classes=5)).eval()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(images)
    assert cast.mask_features_BCHW.dtype == cast.last.class_logits_BQK.dtype == torch.float32
    for ours, expected in ((cast.mask_features_BCHW, exact.mask_features_BCHW), (cast.render(), exact.render())):
        error = (ours - expected).abs().mean() / expected.abs().mean()
        assert error < 0.05, error  # bf16 has 8 bits, and layers of a random network magnify their rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_layers_of_a_level_share_products_where_they_are_small(dtype, monkeypatch):
    config = tiny_config()
    decoder = Component(name="masked", **{**config.decoder.options, "num_layers": 5})
    model = randomise(build(config.model_copy(update={"decoder": decoder}), num_classes=5)).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    asked, project = [], masked.keys_and_values
    monkeypatch.setattr(
        masked, "keys_and_values", lambda layers, *pair: asked.append(len(layers)) or project(layers, *pair)
    )
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        shared = model(images)
        assert asked == [2, 2, 1]  # five layers look at three levels in turns
        monkeypatch.setattr(masked, "CHUNK_ELEMENTS", 0)
        alone = model(images)
    assert asked[3:] == [1] * 5
    rounding = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(alone.render(), shared.render(), atol=rounding, rtol=rounding)


def test_gradients_reach_every_parameter():
    model = randomise(build(tiny_config(), num_classes=5)).eval()  # drop path would silence whole blocks
    prediction = model(torch.randn(2, 3, 64, 64))
    sum(
        out.class_logits_BQK.square().sum() + prediction.render(layer=i).square().mean()
        for i, out in enumerate(prediction.layers)
    ).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_training_after_inference_mode(model):
    """Constants cached under inference_mode must be usable by autograd."""
    images = torch.randn(1, 3, 45, 53)
    with torch.inference_mode():
        model(images)
    model(images).render().sum().backward()
    model.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [None, RESNET])
@torch.no_grad()
def test_export_gives_the_same_numbers(backbone):
    model = randomise(build(tiny_config(**(backbone or {})), num_classes=5)).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    exported = torch.export.export(model, (images,), strict=False).module()
    ours, theirs = model(images), exported(images)
    torch.testing.assert_close(theirs.last.class_logits_BQK, ours.last.class_logits_BQK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.render(), ours.render(), atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_export_avoids_grid_sample(model):
    graph = torch.export.export(model, (torch.randn(1, 3, 64, 96),), strict=False).graph
    assert not [node for node in graph.nodes if "grid_sample" in str(node.target)]


@pytest.mark.slow
@torch.no_grad()
def test_dynamo_traces_the_whole_network(model):
    images = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images).render(), model(images).render(), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_backbones_of_timm_are_taken():
    pytest.importorskip("timm", reason="the extra m2f-cli[timm] is not installed")
    model = build(tiny_config(name="timm", model="resnet18"), num_classes=3).eval()
    assert model.backbone.channels == {4: 64, 8: 128, 16: 256, 32: 512}
    assert model(torch.randn(1, 3, 64, 96)).render().shape == (1, 12, 16, 24)
    swin = build(tiny_config(name="timm", model="swin_tiny_patch4_window7_224", img_size=64), num_classes=3).eval()
    assert swin(torch.randn(1, 3, 64, 64)).render().shape == (1, 12, 16, 16)
    with pytest.raises(ConfigError, match="swin_tiny_patch4_window7_224 cannot take images of 64 x 96 pixels"):
        swin(torch.randn(1, 3, 64, 96))


def test_configurations_that_make_no_sense():
    with pytest.raises(ConfigError, match="option of swin named 'embed_dims'.*embed_dim"):
        build(tiny_config(name="swin", embed_dims=96), 3)
    with pytest.raises(ConfigError, match="does not say depths, num_heads, window_size, drop_path"):
        build(tiny_config(name="swin", embed_dim=96), 3)
    with pytest.raises(ConfigError, match="no backbone named 'swim'.*swin"):
        build(tiny_config(name="swim"), 3)
    with pytest.raises(ConfigError, match="depth 18, 34, 50 or 101"):
        build(tiny_config(**{**RESNET, "depth": 20}), 3)
    with pytest.raises(ConfigError, match="code of its own, 'os:system'.*--trust-code"):
        build(tiny_config(name="os:system"), 3, trust_code=False)
    with pytest.raises(ConfigError, match=r"strides \[2, 4, 8, 16\]"):
        pytest.importorskip("timm", reason="the extra m2f-cli[timm] is not installed")
        build(tiny_config(name="timm", model="resnet18", output_stride=16, out_indices=(0, 1, 2, 3)), 3)


class Raises:
    def __init__(self):
        raise EOFError("nothing left")


@pytest.mark.parametrize("part", ["backbone", "pixel_decoder", "decoder"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (lambda **given: None, "is NoneType; it must be a torch.nn.Module"),
        (lambda **given: 5, "is int; "),
        ("text", "TypeError"),
        (Raises, "EOFError: nothing left|unexpected keyword"),
    ],
)
def test_code_of_a_user_that_makes_no_part(monkeypatch, part, code, message):
    monkeypatch.setattr(sys.modules[__name__], "of_a_user", code, raising=False)
    config = tiny_config().model_copy(update={part: Component(name=f"{__name__}:of_a_user")})
    with pytest.raises(ConfigError, match=message) as caught:
        build(config, 3, trust_code=True)
    assert f"{__name__}:of_a_user" in str(caught.value)


def test_code_of_a_user_that_lacks_what_the_next_part_needs(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "of_a_user", torch.nn.Identity, raising=False)
    name = f"{__name__}:of_a_user"
    for part, lacking in (("backbone", "channels"), ("pixel_decoder", "dim and mask_dim")):
        with pytest.raises(ConfigError, match=f"lacks {lacking}; "):
            build(tiny_config().model_copy(update={part: Component(name=name)}), 3, trust_code=True)


@pytest.mark.parametrize(("size", "shift"), [((9, 17), 3), ((14, 7), 3), ((5, 5), 0)])
def test_window_order_has_the_gradient_of_indexing(size, shift):
    windows = windows_of(2, *size, 7, shift, torch.device("cpu"))
    tokens = size[0] * size[1]
    x = torch.randn(2 * (tokens + windows.padded), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(windows.gather, x) and torch.equal(windows.gather(x), x[windows.source])
    y = torch.randn(len(windows.source), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(windows.scatter, y) and torch.equal(windows.scatter(y), y[windows.target])


@pytest.mark.parametrize("heads", [3, 0, -1, 0.5, True, "8", []])
def test_heads_that_do_not_divide_the_channels_are_refused(heads):
    with pytest.raises(ConfigError, match=r"num_heads|heads do not divide|makes no sense"):
        build(configuration.load("tiny", [f"model.decoder.num_heads={heads!r}"]).model, 3)


@pytest.mark.parametrize("part", ["model.pixel_decoder", "model.backbone"])
@pytest.mark.parametrize("heads", [3, 0, 1000, "8"])
def test_heads_of_the_other_parts_divide_their_channels(part, heads):
    swin = {"name": "swin", "embed_dim": 16, "depths": [1] * 4, "num_heads": [2, 2, 2, heads], "window_size": 4}
    pairs = (
        [f"model.backbone={swin | {'drop_path': 0.1}}"] if part == "model.backbone" else [f"{part}.num_heads={heads!r}"]
    )
    with pytest.raises(ConfigError, match=r"num_heads|heads do not divide|makes no sense"):
        build(configuration.load("tiny", pairs).model, 3)


FPN = "{name: fpn, dim: 32, mask_dim: 32, num_levels: 3}"
PLAIN = "{name: plain, dim: 32, num_queries: 4, num_layers: 1, num_heads: 2, ffn_dim: 32, dropout: 0.0}"
QUERIES = "{name: pmt, num_queries: 4, num_blocks: 1, num_heads: 2, ffn_dim: 32}"


@pytest.mark.parametrize(
    ("pixel_decoder", "decoder", "message"),
    [
        (FPN, PLAIN, "gives 3 levels, but the decoder plain takes 1 at most"),
        (FPN, "{name: per_pixel_plus, dim: 32, num_layers: 1, num_heads: 2, ffn_dim: 32, dropout: 0.0}", "1 at most"),
        ("{name: fapn, dim: 64, mask_dim: 64, groups: 2}", PLAIN, "gives 3 levels"),
        (
            "{name: deformable, dim: 64, mask_dim: 64, num_layers: 1, ffn_dim: 64, num_heads: 2, num_points: 2}",
            "{name: masked, dim: 64, num_queries: 4, num_layers: 1, num_heads: 2, ffn_dim: 64, num_levels: 2}",
            "gives 3 levels, but the decoder masked takes 2 at most",
        ),
        (FPN.replace("mask_dim: 32", "mask_dim: 32"), QUERIES, "gives maps, but the decoder pmt takes tokens"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_they_are_built(pixel_decoder, decoder, message):
    pairs = [f"model.pixel_decoder={pixel_decoder}", f"model.decoder={decoder}"]
    with pytest.raises(ConfigError, match=message):
        build(configuration.load("tiny", pairs).model, 3)


def test_a_decoder_may_have_more_levels_than_it_is_given():
    pairs = [f"model.pixel_decoder={FPN.replace('levels: 3', 'levels: 1')}"]
    assert build(configuration.load("tiny", pairs).model, 3)


@pytest.mark.parametrize("rate", ["0.1", -0.1, 1.5, True, None])
def test_a_dropout_that_is_no_probability_is_refused(rate):
    pixel_decoder = (
        "{name: transformer_fpn, dim: 32, mask_dim: 32, num_layers: 1, num_heads: 2, ffn_dim: 32, dropout: %r}"
    )
    pairs = [f"model.pixel_decoder={pixel_decoder % (rate,)}".replace("None", "null")]
    with pytest.raises(ConfigError, match="dropout"):
        build(configuration.load("tiny", pairs).model, 3)
