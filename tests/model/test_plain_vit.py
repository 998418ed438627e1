"""Plain ViTs of timm: as tokens under EoMT and PMT, and as a pyramid under every other decoder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import read_list
from helpers.parts import randomise, tiny_config
from helpers.vits import DINOV2, DINOV3, eomt_config, pmt_config
from helpers.vits import TINY as VIT
from weights.models import CATEGORIES, config_of, network_of

import m2f_cli
from m2f_cli import weights
from m2f_cli.config.schema import LossConfig, ModelConfig
from m2f_cli.errors import ConfigError, M2FError, MissingDependency
from m2f_cli.inference.load_network import load_model
from m2f_cli.loss import make_criterion
from m2f_cli.model import build, checkpoint_activations
from m2f_cli.model.backbones.vit import Pyramid, TokenEncoder
from m2f_cli.model.layers.positions import RotaryPositions
from m2f_cli.ops.cpu.linear import Linear
from m2f_cli.structures.predictions import Tokens
from m2f_cli.structures.targets import Target

LOSS = LossConfig(
    num_points=64,
    oversample_ratio=3.0,
    importance_ratio=0.75,
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.1,
)
CONFIGS = {
    "eomt-dinov2": eomt_config(),
    "eomt-dinov3": eomt_config(DINOV3),
    "pmt": pmt_config(),
}
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# One timm model of each family, with what tells it apart.
FAMILIES = {
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", 5),
    "dinov3": ("vit_small_patch16_dinov3", 5),
    "siglip": ("vit_base_patch16_siglip_224", 0),
    "mae": ("vit_base_patch16_224", 1),
    "clip": ("vit_base_patch16_clip_224", 1),
    "deit3": ("deit3_small_patch16_224", 1),
    "beit": ("beit_base_patch16_224", 1),
    "eva02": ("eva02_tiny_patch14_224", 1),
}


def network(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = randomise(build(config, 5), seed)
    model.decoder.attn_mask_probs.fill_(1.0)
    return model.eval()


def images(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def targets() -> list[Target]:
    masks_NHW = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks_NHW[0, 10:40, 5:50] = masks_NHW[1, 30:60, 40:90] = True
    nothing = Target(torch.zeros(0, dtype=torch.long), masks_NHW=masks_NHW[:0])
    return [Target(torch.tensor([1, 3]), masks_NHW=masks_NHW), nothing]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "num_prefix"), FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_tokens_of_every_family_are_those_of_timm(model, num_prefix):
    import timm

    encoder = TokenEncoder(model, 64, levels=[0, 1], **TINY).eval()
    tokens = encoder(images(64, 64))
    assert (tokens.num_prefix, tokens.grid, encoder.channels) == (num_prefix, (4, 4), {16: 32})
    whole = timm.create_model(model, img_size=64, patch_size=16, num_classes=0, global_pool="", **TINY).eval()
    missing, _ = whole.load_state_dict(encoder.net.state_dict(), strict=False)
    assert all(name.startswith("norm.") for name in missing)
    whole.norm = torch.nn.Identity()
    expected = whole.forward_features(images(64, 64))
    torch.testing.assert_close(tokens.levels[-1], expected, atol=1e-6, rtol=1e-6)
    assert all(isinstance(each, Linear) for each in encoder.modules() if isinstance(each, torch.nn.Linear))


# Blocks that take masks and rotations in ways of their own, or that know their number.
BLOCKS = {
    **{name: FAMILIES[name][0] for name in ("siglip", "mae", "clip", "deit3", "eva02")},
    "dinov3": DINOV3,
    "without rotation": "eva_giant_patch14_224",
    "attention by difference": "vit_dlittle_patch16_reg1_gap_256",
    "parallel": "vit_pwee_patch16_reg1_gap_256",
    "twice": "vit_small_patch16_18x2_224",
    "aimv2": "aimv2_large_patch14_224",
}


@pytest.mark.parametrize("name", BLOCKS.values(), ids=BLOCKS)
@torch.no_grad()
def test_patches_that_see_no_query_are_those_of_the_whole_vit(name):
    """The blocks of the decoder are the last ones of timm's model, whose patches know of no queries."""
    import timm

    model = network(eomt_config(name))
    whole = timm.create_model(
        name, img_size=64, patch_size=16, num_classes=0, global_pool="", dynamic_img_size=True, **VIT
    )
    state = {key.removeprefix("backbone.net."): x for key, x in model.state_dict().items()}
    state = {key.removeprefix("decoder.vit."): x for key, x in state.items()}
    missing, _ = whole.eval().load_state_dict({**state, "norm.weight": state["norm.weight"]}, strict=False)
    assert all(key.startswith(("fc_norm.", "attn_pool.")) for key in missing)
    hidden = lambda _, args, options: (args, {**options, "attn_mask": no_query_is_seen(args[0])})  # noqa: E731
    for block in model.decoder.blocks:
        block.register_forward_pre_hook(hidden, with_kwargs=True)
    ends = []
    model.decoder.blocks[-1].register_forward_hook(lambda _, args, x_BTC: ends.append(model.decoder.norm(x_BTC)))
    model(images(64, 96))
    expected = whole.forward_features(images(64, 96))
    torch.testing.assert_close(ends[0][:, 12:], expected, atol=1e-4, rtol=1e-4)


def no_query_is_seen(x_BTC):
    mask_11TT = torch.ones(1, 1, x_BTC.shape[1], x_BTC.shape[1], dtype=torch.bool)
    mask_11TT[..., 12:, :12] = False
    return mask_11TT


@pytest.mark.parametrize("name", BLOCKS.values(), ids=BLOCKS)
def test_masks_reach_the_blocks_of_every_kind(name):
    model = network(eomt_config(name)).train()
    model.decoder.predict = functools.partial(half_open, model.decoder.predict)
    answers = []
    for prob in (0.0, 1.0):
        model.decoder.attn_mask_probs.fill_(prob)
        answers.append(model(images(64, 64)).layers[-1].class_logits_BQK)
    assert not torch.allclose(*answers, atol=1e-4)


def half_open(predict, *args):
    """A prediction whose masks cover the upper half of the image."""
    output = predict(*args)
    features_BCHW = torch.zeros_like(output.mask_features_BCHW)
    features_BCHW[:, 0, : features_BCHW.shape[2] // 2] = 1
    return dataclasses.replace(
        output, mask_embeds_BQC=torch.ones_like(output.mask_embeds_BQC), mask_features_BCHW=features_BCHW
    )


def test_drop_path_grows_through_backbone_and_decoder():
    model = build(eomt_config(drop_path=0.3), 5)
    assert model.decoder.blocks[0].drop_path1.drop_prob == pytest.approx(0.1)
    assert model.decoder.blocks[-1].drop_path2.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_a_batch_equals_its_images_alone_at_any_size(config):
    model = network(config)
    for size in ((64, 64), (32, 112), (128, 80)):
        whole = model(images(*size))
        assert whole.render().shape[-2:] == (size[0] // 4, size[1] // 4)
        for i in range(2):
            alone = model(images(*size)[i : i + 1])
            # another number of rows may be another order of sums in the products
            torch.testing.assert_close(alone.render(), whole.render()[i : i + 1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_positions_are_resampled_for_other_sizes_as_timm_does_when_it_loads():
    from timm.layers import resample_abs_pos_embed

    model = network(eomt_config(img_size=64))
    larger = build(eomt_config(img_size=128), 5).eval()
    state = model.state_dict()
    name = "backbone.net.pos_embed"
    larger.load_state_dict(state | {name: resample_abs_pos_embed(state[name], [8, 8], num_prefix_tokens=0)})
    torch.testing.assert_close(model(images(128, 128)).render(), larger(images(128, 128)).render(), atol=0, rtol=0)


@torch.no_grad()
def test_queries_and_prefix_tokens_are_not_rotated():
    """The rotation that is given to all tokens at once is that of timm, which leaves out the tokens in front."""
    decoder = network(eomt_config(DINOV3)).decoder
    x_BTC = torch.randn(1, 12 + 5 + 24, 36, generator=torch.Generator().manual_seed(0))
    block = decoder.blocks[0]
    seen = []
    block.register_forward_pre_hook(lambda _, args, options: seen.append((*args, options)), with_kwargs=True)
    tokens = Tokens([x_BTC[:, 12:]], 5, (4, 6))
    decoder(tokens)
    x_BTC, options = seen[0]
    ours = block.attn(x_BTC, options["rope"])
    block.attn.num_prefix_tokens = 12 + 5
    torch.testing.assert_close(ours, block.attn(x_BTC, decoder.rope.get_embed((4, 6))), atol=0, rtol=0)


def test_rotary_positions_are_those_of_timm_and_can_be_exported_for_any_size():
    from timm.layers import RotaryEmbeddingDinoV3

    class Rotation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rope = RotaryPositions(24)

        def forward(self, x_BCHW):
            return self.rope.get_embed(tuple(x_BCHW.shape[-2:]))

    any_size = {2: torch.export.Dim("height", min=2, max=64), 3: torch.export.Dim("width", min=2, max=64)}
    exported = torch.export.export(Rotation(), (torch.zeros(1, 1, 4, 6),), dynamic_shapes=(any_size,)).module()
    for size in ((4, 6), (9, 5), (40, 40)):
        expected = RotaryEmbeddingDinoV3(24).get_embed(list(size))
        # angles of up to 2π, in another order of products
        torch.testing.assert_close(RotaryPositions(24).get_embed(size), expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(exported(torch.zeros(1, 1, *size)), expected, atol=2e-6, rtol=0)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_learns_but_those_of_a_frozen_encoder(config, recompute):
    model = network(config).train()
    if recompute:
        checkpoint_activations(model)
    losses = make_criterion(5, LOSS)(model(images(64, 96)), targets(), (64, 96))
    assert sum(name.startswith("loss_ce") for name in losses) == 4, "a loss before each block and after the last"
    sum(losses.values()).backward()
    frozen = config.method == "pmt"
    for name, parameter in model.named_parameters():
        if frozen and name.startswith("backbone."):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_recomputed_gradients_are_the_same(config):
    found = []
    for recompute in (False, True):
        model = network(config).train()
        if recompute:
            checkpoint_activations(model)
        model.decoder.attn_mask_probs.fill_(0.5)
        torch.manual_seed(3)
        prediction = model(images(64, 96))
        sum(prediction.render(layer=i).sin().sum() for i in range(4)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=0, rtol=0, msg=name)


def test_a_frozen_encoder_stays_in_prediction_mode():
    model = network(pmt_config(drop_path=0.5)).train()
    assert model.training and not any(module.training for module in model.backbone.modules())
    assert torch.equal(model.backbone(images(64, 64)).levels[0], model.backbone(images(64, 64)).levels[0])


@pytest.mark.parametrize("case", read_list("v05_mask_annealing")["cases"])
def test_masks_anneal_as_published(case):
    """Steps are given; the values of the reference are those of fp32."""
    row = read_list("v05_mask_annealing")["cases"][case]
    spans = list(zip(row["start"], row["end"], strict=True))
    decoder = build(eomt_config(num_blocks=len(spans), anneal=spans), 5).decoder
    for step, expected in row["values"]:
        decoder.at_step(step, 100_000)
        torch.testing.assert_close(decoder.attn_mask_probs, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["coco_12ep_large", "coco_12ep_small_base"])
def test_without_settings_masks_anneal_as_those_of_dinov2(case):
    row = read_list("v05_mask_annealing")["cases"][case]
    decoder = build(eomt_config(num_blocks=len(row["start"])), 5).decoder
    for step, expected in row["values"]:
        decoder.at_step(step, 88_692)
        torch.testing.assert_close(decoder.attn_mask_probs, torch.tensor(expected), atol=1e-6, rtol=0)


def test_masks_are_over_at_the_end_of_a_short_training_too():
    decoder = build(eomt_config(), 5).decoder
    decoder.at_step(0, 60)
    assert decoder.attn_mask_probs.tolist() == [1, 1, 1]
    decoder.at_step(59, 60)
    assert decoder.attn_mask_probs.tolist() == [0, 0, 0]


@torch.no_grad()
def test_with_all_masks_opened_training_predicts_as_without_masks():
    model = network(eomt_config())
    plain = model(images(64, 64))
    model.train().decoder.attn_mask_probs.fill_(0.0)
    torch.testing.assert_close(model(images(64, 64)).render(), plain.render(), atol=1e-4, rtol=1e-4)


# --- mask features of each layer --------------------------------------------------------------------------------------


def test_the_loss_of_layers_with_maps_of_their_own_is_that_of_each_alone():
    model = network(eomt_config()).train()
    prediction = model(images(64, 96))
    full = LOSS.model_copy(update={"masks": "full", "num_points": None})
    criterion = make_criterion(5, full)
    losses = criterion(prediction, targets(), (64, 96))
    for i, part in enumerate(prediction.by_features()):
        assert len(part.layers) == 1
        suffix = f"_{i}" if i < 3 else ""
        for name, loss in criterion(part, targets(), (64, 96)).items():
            torch.testing.assert_close(losses[name + suffix], loss)


# --- the pyramid ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pyramid_is_that_of_vitdet():
    backbone = randomise(Pyramid(DINOV2, 64, **TINY)).eval()
    assert backbone.channels == {4: 8, 8: 16, 16: 32, 32: 32}
    maps = backbone(images(64, 96))
    assert {stride: tuple(x.shape) for stride, x in maps.items()} == {
        stride: (2, width, 64 // stride, 96 // stride) for stride, width in backbone.channels.items()
    }
    state = backbone.state_dict()
    [last] = backbone.net.forward_intermediates(images(64, 96), indices=1, intermediates_only=True)
    torch.testing.assert_close(maps[16], last)
    torch.testing.assert_close(maps[32], F.max_pool2d(last, 2))
    first, last_conv = ([state[f"branches.4.{i}.{name}"] for name in ("weight", "bias")] for i in (0, 3))
    x = F.conv_transpose2d(last, *first, stride=2)
    mean, deviation = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    x = (x - mean) / (deviation + 1e-6).sqrt()
    x = x * state["branches.4.1.weight"][:, None, None] + state["branches.4.1.bias"][:, None, None]
    torch.testing.assert_close(maps[4], F.conv_transpose2d(F.gelu(x), *last_conv, stride=2), atol=1e-5, rtol=1e-5)


CONVNEXT = {"model": "convnext_tiny.dinov3_lvd1689m", "depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}


@pytest.mark.parametrize(
    "backbone",
    [
        *({"name": "vit", "model": name, "img_size": 64, **TINY} for name, _ in FAMILIES.values()),
        {"name": "timm", **CONVNEXT},
    ],
    ids=[*FAMILIES, "dinov3 convnext"],
)
def test_every_family_learns_and_is_the_same_when_it_is_loaded_again(tmp_path, backbone):
    config = config_of(backbone)
    model = network_of(config).train()
    before = model(images(64, 64)).render().detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    target = Target(torch.tensor([1, 3]), masks_NHW=targets()[0].masks_NHW[..., :64])
    losses = make_criterion(len(CATEGORIES), LOSS)(model(images(64, 64)), [target] * 2, (64, 64))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    optimizer.step()
    weights.save(tmp_path / "a.safetensors", model.state_dict(), config, CATEGORIES)
    loaded = load_model(tmp_path / "a.safetensors").model
    with torch.no_grad():
        answer = model.eval()(images(64, 64)).render()
        torch.testing.assert_close(loaded(images(64, 64)).render(), answer, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answer, before, atol=1e-4)


def test_pyramid_under_a_masked_decoder_learns_and_may_have_one_width():
    vit = {"name": "vit", "model": DINOV3, "img_size": 64, "dim": 24, "drop_path": 0.1, **TINY}
    model = build(tiny_config(**vit), 3).train()
    assert set(model.backbone.channels.values()) == {24}
    losses = make_criterion(3, LOSS)(model(images(64, 96)), [targets()[1]] * 2, (64, 96))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "vit_smal_patch14_reg4_dinov2"}, "Did you mean vit_small_patch14_reg4_dinov2"),
        ({"model": "resnet18"}, "'resnet18' is no plain ViT"),
        ({"patch_size": 14}, "patch_size is 14, but"),
        ({"patch_size": [16, 8]}, r"patch_size is \[16, 8\], but"),
        ({"img_size": 100}, "img_size is 100, where a multiple of 16"),
        ({"img_size": [64, 64, 64]}, r"img_size is \[64, 64, 64\]"),
        ({"levels": [4]}, r"levels is \[4\], where numbers of blocks"),
        ({"checkpoint_path": "x.pth"}, "'checkpoint_path' of the timm model .* is none of a network"),
        ({"model": "hf-hub:timm/vit_small_patch16_224"}, "no timm model named"),
        ({"device": "meta"}, "'device' of the timm model .* is none of a network"),
    ],
)
def test_a_senseless_vit_is_one_sentence(change, says):
    tokens = pmt_config().model_dump(exclude_none=True)
    tokens["backbone"] |= change
    with pytest.raises(ConfigError, match=says):
        build(ModelConfig.model_validate(tokens), 3)
    if "levels" not in change:
        with pytest.raises(ConfigError, match=says):
            build(tiny_config(**{"name": "vit", "model": DINOV2, "img_size": 64, **change}), 3)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependency, match=r"needs the package timm.*m2f-cli\[timm\]"):
        build(eomt_config(), 3)


@pytest.mark.parametrize("config", [*CONFIGS.values(), tiny_config(name="vit", model=DINOV2, img_size=64, **TINY)])
def test_an_image_that_does_not_divide_into_patches_is_one_sentence(config):
    model = build(config, 3).eval()
    with pytest.raises(ConfigError, match=r"60 x 64 pixels does not divide into patches of 16.*test.size_divisor=16"):
        model(images(60, 64))


def test_relative_positions_of_beit_fit_one_size_only():
    encoder = TokenEncoder("beit_base_patch16_224", 64, **TINY)
    with pytest.raises(ConfigError, match=r"beit_base_patch16_224 are for 64 x 64 pixels, not 64 x 96"):
        encoder(images(64, 96))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"decoder": {"model": "vit_base_patch14_reg4_dinov2", "embed_dim": 48}},
            "is 48 wide, but the backbone gives 36",
        ),
        ({"decoder": {"model": "beit_base_patch16_224"}}, "Queries cannot be tokens of beit_base_patch16_224"),
        ({"decoder": {"anneal": [[0, 1]]}}, r"anneal is \[\[0, 1\]\], where \[start, end\]"),
        ({"decoder": {"anneal": [[0.5, 0.5]] * 3}}, "anneal is"),
        ({"decoder": {"anneal_power": {}}}, "of eomt makes no sense: float"),
        (
            {"backbone": {"name": "resnet", "depth": 18, "stem": "basic", "norm": "bn"}},
            "Set model.backbone.name=vit_token",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_one_sentence(change, says):
    tree = eomt_config().model_dump(exclude_none=True)
    for part, options in change.items():
        tree[part] = options if "name" in options else {**tree[part], **options}
    with pytest.raises(ConfigError, match=says):
        build(ModelConfig.model_validate(tree), 3)


def test_heads_of_eva_divide_its_channels():
    """timm builds attention of other channels, whose rotation does not fit in the first forward pass."""
    with pytest.raises(ConfigError, match="5 heads do not divide the 36 channels of the timm model"):
        build(pmt_config(num_heads=5), 3)


def test_annealing_from_a_step_to_a_share_that_comes_first_is_a_step():
    decoder = build(eomt_config(anneal=[[1, 2], [0.5, 40], [0, 1]]), 3).decoder
    decoder.at_step(60, 100)
    assert decoder.attn_mask_probs[:2].tolist() == [1, 0]
    decoder.at_step(0, 2)  # both ends of the first are the second step
    assert decoder.attn_mask_probs[0] == 1


def test_another_number_of_levels_is_one_sentence():
    model = build(pmt_config(levels=[1, 3]), 3)
    with pytest.raises(ConfigError, match="gives 2 levels of tokens, the pixel decoder takes 4"):
        model(images(64, 64))


def test_pilots_are_refused():
    tree = eomt_config().model_dump(exclude_none=True) | {"piloting": {"groups": 1}}
    with pytest.raises(ValueError, match="a pilot query looks where its target is"):
        ModelConfig.model_validate(tree)
    model = build(eomt_config(), 3)
    with pytest.raises(M2FError, match="Pilot queries steer cross-attention"):
        model(images(64, 64), pilots=object())


# --- the house --------------------------------------------------------------------------------------------------------


def naming_a_method(package: Path) -> set[str]:
    """The files outside of the rooms of the two methods that name one of them, in text or in their own names."""
    return {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.suffix in (".py", ".html", ".js", ".css", ".yaml", ".md", ".json")
        if path.relative_to(package).parts[0] not in ("model", "weights", "presets")
        if METHODS.search(path.stem) or METHODS.search(path.read_text(encoding="utf-8"))
    }


METHODS = re.compile(r"eomt|(?<![a-z])pmt", re.IGNORECASE)


def test_no_file_outside_its_rooms_names_a_method():
    """Everything else works because it goes through the contracts. The exception is the table of contents."""
    assert naming_a_method(Path(m2f_cli.__file__).parent) == {"plugins.py"}


@pytest.mark.parametrize("code", ["import eomt", "class PMTDecoder: pass", "is_pmt = True", "x = 'EoMT'"])
def test_a_file_that_names_a_method_is_found(tmp_path, code):
    for room in ("model", "training"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text(code)
        (tmp_path / room / "b.py").write_text("development = 'HTMPTags'")
    assert naming_a_method(tmp_path) == {"training/a.py"}


def test_an_unknown_method_is_one_sentence():
    tree = eomt_config().model_dump(exclude_none=True)
    for name, says in (
        ("eomtt", "no method named 'eomtt'; did you mean eomt"),
        ("x", "known: mask2former, maskformer"),
    ):
        with pytest.raises(ValueError, match=says):
            ModelConfig.model_validate(tree | {"method": name})


def test_model_code_of_plain_vits_stays_small():
    """At most 600 lines that are not empty, docstrings included: encoders, decoders, rotary positions and LoRA."""
    package = Path(m2f_cli.__file__).parent
    decoders = ("model/decoders/query_tokens", "model/decoders/eomt", "model/decoders/pmt")
    names = ("model/backbones/vit", "model/pixel_decoders/tokens", *decoders, "model/lora", "ops/low_rank")
    texts = [(package / f"{name}.py").read_text() for name in names] + [inspect.getsource(RotaryPositions)]
    assert 300 < sum(bool(line.strip()) for text in texts for line in text.splitlines()) <= 600


def test_an_option_of_another_backbone_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'levels'"):  # `build` makes it a sentence
        Pyramid("vit_tiny_patch16_224", 64, levels=[8])
