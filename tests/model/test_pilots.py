"""Mask-piloted training against the published decoder (golden 09), and what the pilots must not do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import for_files, has, params, read
from helpers.parts import randomise, tiny_config
from helpers.pilots import decoder_of, features_of, level_sizes, padded_size, piloted_layers, pilots_of, targets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from model.test_golden import assert_close

from m2f_cli.config import presets as config
from m2f_cli.config.schema import ModelConfig, PilotingConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.model.decoders import masked
from m2f_cli.model.pilots import Piloting, piloting_of, touched_cells
from m2f_cli.structures.targets import Target


@pytest.fixture(params=params("09"))
def file(request):
    return read(*request.param)


# --- as published -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_noised_masks_and_attention_masks_are_bit_equal(file, monkeypatch):
    """Also the unused slots of fuller neighbours, the image without targets, and the batch without any."""
    decoder, pilots = decoder_of(file), pilots_of(file)
    noised, used = [], []
    noise = pilots.noised_masks
    monkeypatch.setattr(pilots, "noised_masks", lambda *args: noised.append(noise(*args)) or noised[-1])
    layer_forward = masked.DecoderLayer.forward
    monkeypatch.setattr(
        masked.DecoderLayer, "forward", lambda self, *args: used.append(args[4]) or layer_forward(self, *args)
    )
    decoder(features_of(file), pilots)
    assert not pilots.rand.draws, "random numbers were left over"
    tensors = file.tensors
    layers = file.info["config"]["decoder_layers"]
    expected = piloted_layers(file.info["config"]) if file.info["groups"] else 0
    assert len(noised) == expected and len(used) == layers
    for i, may_look in enumerate(noised):
        assert torch.equal(~may_look, tensors[f"dn/noised_masks.{i}"]), f"noised masks of layer {i}"
    for i, may_attend in enumerate(used):
        published = tensors[f"mid/attn_mask_used.{i}"]
        if may_attend.dim() == 3 and published.dim() == 4:
            published = published[:, 0]
        assert torch.equal(~may_attend, published), f"attention mask of layer {i}"


@torch.no_grad()
def test_queries_and_their_visibility(file):
    decoder, pilots = decoder_of(file), pilots_of(file)
    assert pilots.groups == file.info["groups"]
    x_BQC, position, may_see = decoder.queries(len(pilots.targets), pilots)
    assert position == 0.0
    if len(pilots):
        assert torch.equal(x_BQC, file.tensors["dn/query_input"])
        assert torch.equal(~may_see[0], file.tensors["dn/self_attn_mask"])
    else:
        assert x_BQC.shape[1] == file.info["config"]["num_queries"] and may_see.all()


@torch.no_grad()
def test_predictions_are_the_published_ones(file):
    """Of all layers; a reduced file may have those of the last layer only."""
    decoder, pilots = decoder_of(file), pilots_of(file)
    ordinary, piloted = pilots.split(decoder(features_of(file), pilots))
    layers, whole = file.info["config"]["decoder_layers"], "reduced" not in file.info
    for part, answers in (("", ordinary), ("mp.", piloted)):
        if part and not len(pilots):
            assert answers.last.class_logits_BQK.shape[1] == 0
            continue
        assert len(answers.layers) == layers + 1
        compared = 0
        for i in range(layers + 1):
            name = f"out/{part}pred_" if i == layers else f"out/{part}aux.{i}.pred_"
            for kind, ours in (("logits", answers.layers[i].class_logits_BQK), ("masks", answers.render(layer=i))):
                if whole or name + kind in file.tensors:
                    noise = file.info["fp32_noise"][f"{part}pred_{kind}"]
                    assert_close(ours, file.tensors[name + kind], noise, name + kind)
                    compared += 1
        assert compared


@pytest.mark.parametrize("file", params("09", where=lambda info: has(info, "eval/pred_logits")), indirect=True)
@torch.no_grad()
def test_inference_of_the_same_weights_is_the_published_one(file):
    prediction = decoder_of(file)(features_of(file))
    for kind, ours in (("logits", prediction.last.class_logits_BQK), ("masks", prediction.render())):
        assert_close(ours, file.tensors[f"eval/pred_{kind}"], file.info["fp32_noise"][f"pred_{kind}"], kind)


# --- where targets are ------------------------------------------------------------------------------------------------


def by_area(masks_NHW: torch.Tensor, padded: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """What the original does: pad, average over areas, more than 1e-8 (docs/methods/published-behaviour.md#6-3)."""
    H, W = masks_NHW.shape[1:]
    whole = F.pad(masks_NHW.double(), (0, padded[1] - W, 0, padded[0] - H))[:, None]
    return F.interpolate(whole, size=size, mode="area")[:, 0] > 1e-8


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    pad=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    count=st.integers(0, 11),
    cells=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 999),
)
def test_touched_cells_are_those_of_area_averages(height, width, pad, count, cells, seed):
    """Masks and id maps, grids that divide the image and grids that do not."""
    generator = torch.Generator().manual_seed(seed)
    owner_HW = torch.randint(-1, max(count, 1), (height, width), generator=generator, dtype=torch.int16)
    owner_HW[owner_HW >= count] = -1
    owner_HW[torch.rand(height, width, generator=generator) < 0.7] = -1
    mapped = Target(torch.zeros(count, dtype=torch.int64), owner_HW=owner_HW)
    padded = (height + pad[0], width + pad[1])
    size = (min(cells[0], padded[0]), min(cells[1], padded[1]))
    expected = by_area(mapped.masks(), padded, size) if count else torch.zeros(0, *size, dtype=torch.bool)
    assert torch.equal(touched_cells(mapped, padded, size), expected)
    masked_ = Target(mapped.labels_N, masks_NHW=mapped.masks().to(torch.uint8))
    assert torch.equal(touched_cells(masked_, padded, size), expected)


def test_a_thin_pole_stays_visible():
    pole = torch.zeros(1, 64, 64, dtype=torch.bool)
    pole[0, :, 33] = True
    cells = touched_cells(Target(torch.tensor([0]), masks_NHW=pole), (64, 64), (2, 2))
    assert cells.tolist() == [[[False, True], [False, True]]]


# --- noise ------------------------------------------------------------------------------------------------------------


def some_targets() -> list[Target]:
    masks = torch.zeros(3, 32, 48, dtype=torch.bool)
    masks[0, :16, :16], masks[1, 16:, 24:], masks[2] = True, True, True
    return [Target(torch.tensor([1, 2, 3]), masks_NHW=masks), Target(torch.tensor([4]), masks_NHW=masks[:1])]


def test_the_chance_to_flip_grows_with_the_area():
    pilots = Piloting(PilotingConfig(groups=200, mask_noise=0.4, label_noise=0), 9)(some_targets(), (32, 48))
    torch.manual_seed(0)
    clean = pilots.target_cells((8, 12))
    flipped = (pilots.noised_masks((8, 12), 4) ^ clean).float().mean(-1).view(2, 200, 3).mean(1)
    area = clean[:, :3].float().mean(-1)
    assert area[0].tolist() == [pytest.approx(1 / 6), 0.25, 1.0] and area[1, 1:].tolist() == [0, 0]
    torch.testing.assert_close(flipped, 0.4 * area, atol=0.01, rtol=0)
    assert torch.equal(pilots.noised_masks((8, 12), 4).view(2, 200, 3, -1)[1, :, 1:].any(), torch.tensor(False))


def test_label_noise_has_its_rate_and_spares_unused_slots():
    torch.manual_seed(0)
    pilots = Piloting(PilotingConfig(groups=3000, label_noise=0.2), 10)(some_targets(), (32, 48))
    labels = pilots.labels_BT.view(2, 3000, 3)
    assert (labels[1, :, 1:] == -1).all()
    changed = (labels[0] != torch.tensor([1, 2, 3])).float().mean()
    assert changed == pytest.approx(0.2 * 9 / 10, abs=0.015)  # a random class may be the right one
    assert labels[0].min() == 0 and labels.max() == 9


def test_each_head_has_noise_of_its_own_only_if_asked():
    torch.manual_seed(0)
    per_head = Piloting(PilotingConfig(groups=1, mask_noise=0.5, noise_per_head=True), 9)(some_targets(), (32, 48))
    noised = per_head.noised_masks((8, 12), 4)
    assert noised.shape == (2, 4, 3, 96) and not torch.equal(noised[:, 0], noised[:, 1])
    shared = Piloting(PilotingConfig(groups=1, mask_noise=0.5), 9)(some_targets(), (32, 48))
    assert shared.noised_masks((8, 12), 4).shape == (2, 3, 96)


@pytest.mark.parametrize(
    ("count", "fullest", "groups"),
    [
        ({"groups": 3}, 3, 3),
        ({"groups": 5}, 0, 0),
        ({"budget": 100}, 6, 16),
        ({"budget": 2}, 3, 0),
        ({"budget": 3}, 3, 1),
        ({"budget": 100}, 0, 0),
    ],
)
def test_how_many_groups(count, fullest, groups):
    assert Piloting(PilotingConfig(**count), 9).number_of_groups(fullest) == groups


# --- what pilots must not do ------------------------------------------------------------------------------------------


def piloted_network(method: str = "mpformer", **piloting):
    tree = {**tiny_config().model_dump(), "method": method, "piloting": {"groups": 2, **piloting}}
    model_config = ModelConfig.model_validate(tree)
    return randomise(build(model_config, 9)), piloting_of(model_config, 9)


@pytest.mark.parametrize("method", ["mpformer", "mask2former"])
def test_ordinary_queries_answer_as_without_pilots(method):
    """Also with learned positions, which a Mask2Former keeps."""
    model, piloting = piloted_network(method, mask_noise=0.2)
    assert (model.decoder.query_embed is None) == (method == "mpformer")
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        pilots = piloting(some_targets(), (32, 48))
        ordinary, _ = pilots.split(model(images, pilots))
        plain = model(images)
    for with_pilots, without in zip(ordinary.layers, plain.layers, strict=True):
        torch.testing.assert_close(with_pilots.class_logits_BQK, without.class_logits_BQK, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(with_pilots.mask_embeds_BQC, without.mask_embeds_BQC, atol=1e-5, rtol=1e-5)


def test_groups_do_not_see_each_other():
    """Change the masks that the second group looks through: the first group's answers stay."""
    model, piloting = piloted_network(label_noise=0)
    model.eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    answers = []
    for flip in (False, True):
        pilots = piloting(some_targets(), (32, 48))
        clean = pilots.noised_masks

        def noised(size, heads, clean=clean, flip=flip):
            masks = clean(size, heads).clone()
            masks[:, 3:] ^= flip
            return masks

        pilots.noised_masks = noised
        with torch.no_grad():
            answers.append(pilots.split(model(images, pilots))[1].last.mask_embeds_BQC)
    torch.testing.assert_close(answers[0][:, :3], answers[1][:, :3], atol=1e-5, rtol=1e-5)
    assert (answers[0][:, 3:] - answers[1][:, 3:]).abs().max() > 1e-3


@pytest.mark.slow
def test_inference_is_the_plain_decoder():
    """The exported graph of an MP-Former has the operations of a Mask2Former's, one by one."""
    images = torch.randn(1, 3, 64, 64)
    graphs = []
    for method in ("mask2former", "mpformer"):
        tree = {
            **tiny_config(name="resnet", depth=18, width=8, stem="basic", norm="frozen_bn").model_dump(),
            "method": method,
        }
        if method == "mpformer":
            tree["piloting"] = {"groups": 1}
        exported = torch.export.export(build(ModelConfig.model_validate(tree), 9).eval(), (images,))
        graphs.append([str(node.target) for node in exported.graph.nodes if node.op == "call_function"])
        assert len(graphs[-1]) > 100
    assert graphs[0] == graphs[1]


def test_a_batch_without_targets_gives_every_embedding_a_gradient():
    model, piloting = piloted_network()
    nothing = [Target(torch.zeros(0, dtype=torch.int64), owner_HW=torch.full((32, 48), -1, dtype=torch.int16))] * 2
    pilots = piloting(nothing, (32, 48))
    assert len(pilots) == 0
    model(torch.randn(2, 3, 32, 48), pilots).render().sum().backward()
    assert model.decoder.label_embed.weight.grad is not None
    assert not model.decoder.label_embed.weight.grad.any()


@for_files("09", where=lambda info: len(info["masks_per_image"]) == 2 and min(info["masks_per_image"]) > 0)
def test_one_target_in_a_batch_of_many(golden_file):
    """Its pilots answer as when it is alone: the slots that fuller neighbours force upon it change the mask only."""
    targets, padded, config = targets_of(golden_file), padded_size(golden_file), golden_file.info["config"]
    one, other = Target(targets[0].labels_N[:1], targets[0].masks_NHW[:1]), targets[1]
    piloting = Piloting(PilotingConfig(groups=2, label_noise=0), config["num_classes"])
    pilots, most, heads = piloting([one, other], padded), len(other), config["heads"]
    assert len(pilots) == 2 * most and (pilots.labels_BT[0] >= 0).nonzero().flatten().tolist() == [0, most]
    unused = [slot for slot in range(2 * most) if slot not in (0, most)]
    for size in level_sizes(golden_file):
        cells = pilots.noised_masks(size, heads)
        assert torch.equal(cells[0, 0], touched_cells(one, padded, size)[0].flatten())
        assert torch.equal(cells[0, 0], cells[0, most]) and not cells[0, unused].any()
        blocked = torch.zeros(2, 2 * most + config["num_queries"], size[0] * size[1], dtype=torch.bool)
        guided = pilots.guide(blocked, 0, size, heads)
        assert guided[0, unused].all()
    (slots, numbers), (slots_of_many, _) = pilots.pairs(3)
    assert slots.tolist() == [[0, most]] * 3 and numbers.tolist() == [[0, 0]] * 3
    assert slots_of_many.tolist() == [[*range(2 * most)]] * 3


def test_recomputed_activations_give_the_same_gradients():
    from m2f_cli.model import checkpoint_activations

    model, piloting = piloted_network(mask_noise=0.3, noise_per_head=True)
    again = copy.deepcopy(model)
    checkpoint_activations(again)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    for network in (model, again):
        torch.manual_seed(7)
        network.backbone.eval()  # no drop path: its random numbers are not the point
        network(images, piloting(some_targets(), (32, 48))).render().pow(2).mean().backward()
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-7, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_network_that_recomputes_is_copied_and_sent_whole():
    from m2f_cli.model import checkpoint_activations

    model, _ = piloted_network()
    checkpoint_activations(model.eval())
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images).render()
        twin, sent = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for parameter in model.parameters():
            parameter.zero_()
        for other in (twin, sent):  # with weights of their own
            assert torch.equal(other(images).render(), expected)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "positions"),
    [
        (["model.piloting.groups=1"], True),
        (["model.piloting.groups=1", "model.piloting.query_positions=false"], False),
        (["model.piloting.budget=100"], True),
    ],
)
def test_any_mask2former_preset_can_be_piloted(overrides, positions):
    loaded = config.load("tiny", overrides)
    model = build(loaded.model, 9)
    assert (model.decoder.query_embed is not None) == positions and model.decoder.label_embed.weight.shape == (9, 64)
    assert piloting_of(loaded.model, 9).config.label_noise == 0.2
    assert config.parse(loaded.model_dump(mode="json"), "again") == loaded


def test_unpiloted_networks_have_no_embeddings():
    loaded = config.load("tiny")
    assert build(loaded.model, 9).decoder.label_embed is None and piloting_of(loaded.model, 9) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.piloting={groups: 1, budget: 100}", "either groups"),
        ("model.piloting={}", "either groups"),
        ("model.piloting.groups=0", "groups"),
        ("model.piloting={groups: 1, label_noise: 1.5}", "label_noise"),
        ("model.piloting={groups: 1, mask_noise: -0.1}", "mask_noise"),
        ("model.piloting={groups: 1, layers: 0}", "layers is 'all' or at least 1 and at most 200, not 0"),
        ("model.piloting={groups: 1, mode: shift}", "'points'"),
        ("model.piloting={group: 1}", "Did you mean groups"),
    ],
)
def test_wrong_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load("tiny", [override])


def test_the_plain_decoder_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="attends everywhere and has no such mask"):
        config.load("tiny", ["model.method=maskformer", "model.piloting.groups=1"])
    with pytest.raises(ConfigError, match="attends everywhere"):
        config.load("tiny", ["model.decoder={name: plain}", "model.piloting.groups=1"])


def test_an_mpformer_must_say_how_it_is_trained():
    tree = {**tiny_config().model_dump(), "method": "mpformer"}
    with pytest.raises(ConfigError, match="has no model.piloting"):
        piloting_of(ModelConfig.model_validate(tree), 9)
