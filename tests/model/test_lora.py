"""LoRA: the formula, every kind of backbone, what is trained, and bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.vits import DINOV2, DINOV3, TINY, eomt_config, pmt_config
from training.tiny import NETWORK

from m2f_cli.config import presets as config
from m2f_cli.config.schema import ModelConfig
from m2f_cli.errors import ConfigError
from m2f_cli.inference.load_network import network_with
from m2f_cli.model import build, build_shapes
from m2f_cli.training.optimizer import freeze, make_optimizer, settings
from m2f_cli.weights.low_rank import merged

FIVE = ["q", "k", "v", "proj", "mlp"]
VIT = {"name": "vit", "model": DINOV2, "img_size": 64, "dim": 16, **TINY}
EVA = {"name": "vit", "model": DINOV3, "img_size": 64, "dim": 16, **TINY}
SEPARATE = {**VIT, "model": "eva02_base_patch14_224", "qkv_fused": False}  # query, key and value layers of their own
TIMM_SWIN = {"name": "timm", "model": "swin_tiny_patch4_window7_224", "img_size": 64, "embed_dim": 24}
TIMM_SWIN |= {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4, "always_partition": True}
BACKBONES = {
    "vit": VIT,
    "eva": EVA,
    "separate": SEPARATE,
    "swin": NETWORK.backbone.model_dump(exclude_none=True),
    "timm swin": TIMM_SWIN,
}


def network_config(backbone, **lora) -> ModelConfig:
    tree = NETWORK.model_dump(exclude_none=True)
    return ModelConfig.model_validate({**tree, "backbone": {**backbone, **({"lora": lora} if lora else {})}})


def filled(network):
    """Give the changes numbers: B begins with zeros, which change nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def answers_of(network):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        last = network(images).layers[-1]
    return last.class_logits_BQK, last.mask_embeds_BQC


@pytest.mark.parametrize("targets", [["q", "v"], ["k"], ["mlp", "proj"], FIVE], ids="-".join)
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_merged_weights_give_the_same_answers(backbone, targets):
    torch.manual_seed(0)
    lora = network_config(backbone, rank=3, alpha=6.0, targets=targets)
    network = filled(build(lora, 5))
    state = merged(network.state_dict(), lora.backbone.lora)
    plain = network_with(lora.without_lora(), 5, lambda shapes: state).eval()
    assert plain.state_dict().keys() == build_shapes(network_config(backbone), 5).state_dict().keys()
    for ours, whole in zip(answers_of(network), answers_of(plain), strict=True):
        # the same weights to the last bit; only the order of operations differs where kernels pack them
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=0)
    changed = [name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before_of(network, name))]
    assert changed and all(name.endswith(".weight") for name in changed)


def before_of(network, name):
    state = network.state_dict()
    return state.get(name, state.get(name.removesuffix("weight") + "parametrizations.weight.original"))


def test_the_change_is_that_of_the_paper_in_the_thirds_of_query_and_value_alone():
    lora = network_config(VIT, rank=4, alpha=8.0)
    network = filled(build(lora, 5))
    layer = network.backbone.net.blocks[1].attn.qkv
    change = layer.parametrizations.weight[0]
    before, now = layer.parametrizations.weight.original.unflatten(0, (3, 36)), layer.weight.unflatten(0, (3, 36))
    assert torch.equal(now[1], before[1])
    for third, number in ((0, 0), (2, 1)):
        expected = before[third] + 8 / 4 * change.B[number] @ change.A[number]
        torch.testing.assert_close(now[third], expected, atol=1e-6, rtol=0)
    # Kaiming's uniform numbers with a gain of sqrt(1/3): at most 1 / sqrt(columns), so that their deviation is a third
    assert change.A.abs().max() <= 1 / math.sqrt(36)
    assert change.A.std().item() == pytest.approx(1 / math.sqrt(3 * 36), rel=0.1)  # of 288 numbers


def test_a_new_change_changes_nothing_and_the_default_factor_is_one():
    torch.manual_seed(0)
    lora = network_config(VIT, rank=4)
    network = build(lora, 5).eval()
    plain = merged(network.state_dict(), lora.backbone.lora)
    assert all(torch.equal(tensor, before_of(network, name)) for name, tensor in plain.items())
    assert lora.backbone.lora.scale == 1.0


@pytest.mark.parametrize("size", ["small", "base"])
def test_rank_16_trains_at_most_two_percent_of_a_vit_and_all_of_the_decoders(size):
    vit = {"name": "vit", "model": f"vit_{size}_patch14_reg4_dinov2", "img_size": 512, "dim": 64, "lora": {"rank": 16}}
    network = build_shapes(network_config(vit), 133)
    pretrained = list(network.backbone.net.parameters())
    trained = sum(p.numel() for p in pretrained if p.requires_grad)
    assert 0 < trained <= 0.02 * sum(p.numel() for p in pretrained)
    dim, blocks = network.backbone.net.embed_dim, len(network.backbone.net.blocks)
    assert trained == blocks * 2 * 16 * (dim + dim)
    others = [
        *network.backbone.branches.parameters(),
        *network.decoder.parameters(),
        *network.pixel_decoder.parameters(),
    ]
    assert all(p.requires_grad for p in others)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_the_gradients_are_those_of_the_formula(backbone):
    torch.manual_seed(0)
    lora = network_config(backbone, rank=3, targets=FIVE)
    network = filled(build(lora, 5))
    state = merged(network.state_dict(), lora.backbone.lora)
    plain = network_with(lora.without_lora(), 5, lambda shapes: state).eval().requires_grad_()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for each in (network, plain):
        sum(level.square().mean() for level in each.backbone(images).values()).backward()
    of_plain = dict(plain.named_parameters())
    compared = 0
    for name, parameter in network.named_parameters():
        layer, mark, factor = name.partition(".parametrizations.weight.0.")
        if factor != "B":
            continue
        change = network.get_submodule(f"{layer}{mark}".rstrip("."))
        thirds = of_plain[f"{layer}.weight"].grad.unflatten(0, (-1, parameter.shape[1]))
        for number, part in enumerate(change.parts):
            # chain rule of W + B A
            torch.testing.assert_close(parameter.grad[number], thirds[part] @ change.A[number].T, atol=1e-5, rtol=1e-3)
            compared += 1
    assert compared >= 4 * 4


def test_the_frozen_rest_has_no_gradient_and_no_state_in_the_optimiser():
    network = build(network_config(VIT, rank=4), 5).train()
    network.backbone(torch.randn(1, 3, 64, 64))[8].sum().backward()
    of_vit = {name: p for name, p in network.backbone.net.named_parameters()}
    assert {name.rsplit(".", 1)[-1] for name, p in of_vit.items() if p.grad is not None} == {"A", "B"}
    optimizer = make_optimizer(network, config.load("tiny").train.optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not [name for name, p in of_vit.items() if id(p) in held and name.rsplit(".", 1)[-1] not in "AB"]


def test_changes_learn_at_the_rate_of_new_parts():
    network = build(network_config(VIT, rank=4), 5)
    optimizer = config.load("tiny").train.optimizer.model_copy(update={"backbone_multiplier": 0.1})
    found = settings(network, optimizer, in_stages=True)
    rates = {setting.multiplier for name, setting in found.items() if name.endswith((".A", ".B"))}
    assert rates == {1.0} and not any(s.is_pretrained for name, s in found.items() if name.endswith((".A", ".B")))
    assert found["backbone.branches.8.0.weight"].multiplier == 0.1


def test_eomt_and_pmt_take_it_in_their_encoder():
    for made in (eomt_config(), pmt_config()):
        backbone = {**made.backbone.model_dump(exclude_none=True), "lora": {"rank": 2}}
        tree = {**made.model_dump(exclude_none=True), "backbone": backbone}
        network = build(ModelConfig.model_validate(tree), 5).train()
        assert {n.rsplit(".", 1)[-1] for n, p in network.backbone.named_parameters() if p.requires_grad} == {"A", "B"}
        assert all(p.requires_grad for p in network.decoder.parameters())


def test_a_network_with_changes_can_be_copied():
    network = filled(build(network_config(VIT, rank=2), 5))
    for ours, theirs in zip(answers_of(network), answers_of(copy.deepcopy(network)), strict=True):
        assert torch.equal(ours, theirs)


def test_changes_are_computed_in_full_precision_under_autocast():
    layer = filled(build(network_config(VIT, rank=2), 5)).backbone.net.blocks[0].attn.qkv
    expected = layer.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, expected)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_backbone_without_such_layers_is_refused():
    resnet = {"name": "resnet", "depth": 18, "stem": "basic", "norm": "frozen_bn", "stem_channels": 8, "width": 8}
    with pytest.raises(
        ConfigError, match=r"backbone resnet has no layers for LoRA's target q, v\. Transformers have them"
    ):
        build(network_config(resnet, rank=2), 5)


def test_a_rank_larger_than_a_layer_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.rank is 37, larger than the layer net\.blocks\.0\.attn\.qkv, .* 36"):
        build(network_config(VIT, rank=37), 5)
    build(network_config(VIT, rank=36), 5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rank=0", r"lora\.rank = 0: input should be greater than or equal to 1"),
        ("rank=2.5", r"lora\.rank = 2\.5: input should be a valid integer"),
        ("targets=[q, keys]", r"lora\.targets\.1 = 'keys': input should be 'q', 'k', 'v', 'proj' or 'mlp'"),
        ("targets=[]", r"lora\.targets = \[\]: tuple should have at least 1 item"),
        ("alpha=0", r"lora\.alpha = 0: input should be greater than 0"),
        ("rnak=3", r"unknown key 'model\.backbone\.lora\.rnak'\. Did you mean rank"),
    ],
)
def test_options_without_sense_are_refused(value, message):
    base = [] if value.startswith("rank") else ["model.backbone.lora.rank=4"]
    with pytest.raises(ConfigError, match=message):
        config.load("coco-panoptic-swin-t", [*base, f"model.backbone.lora.{value}"])


def test_it_is_an_option_of_the_backbone_alone():
    with pytest.raises(ConfigError, match=r"decoder\.lora is set, but LoRA is for pretrained backbones"):
        config.load("coco-panoptic-swin-t", ["model.decoder.lora.rank=4"])
    with pytest.raises(ConfigError, match="a step of augment has lora, which is for backbones"):
        config.load("coco-panoptic-swin-t", ["train.augment=[{name: flip, p: 0.5, lora: {rank: 4}}]"])


@pytest.mark.parametrize("prefix", ["backbone", "backbone.net.blocks.0"])
def test_freezing_what_lora_trains_is_refused(prefix):
    network = build(network_config(VIT, rank=2), 5)
    with pytest.raises(ConfigError, match=f"--freeze {prefix} would freeze what LoRA trains"):
        freeze(network, (prefix,))
    freeze(network, ("backbone.branches", "pixel_decoder"))  # new parts may be frozen, too
