"""What a network starts from: everything that fits is taken, and whatever is not taken is said."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.parts import randomise
from safetensors.torch import save_file
from weights.models import CATEGORIES, RESNET, assert_equal, config_of, network_of

from m2f_cli import model, weights
from m2f_cli.config.schema import Component
from m2f_cli.errors import WeightsError
from m2f_cli.structures.categories import from_names
from m2f_cli.training.initialise import initialise
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import DETECTRON2, OPENMMLAB

OTHER = from_names(["Fat", "vessel", "nucleus"])  # of CATEGORIES: number 3, none, number 0
FEAT, EMBED = "decoder.query_feat.weight", "decoder.query_embed.weight"
LABELS, HEAD, BIAS = "decoder.label_embed.weight", "decoder.class_embed.weight", "decoder.class_embed.bias"


def with_part(config, part, **options):
    changed = Component(**{**getattr(config.model, part).model_dump(), **options})
    return config.model_copy(update={"model": config.model.model_copy(update={part: changed})})


def fresh_network(config, categories=CATEGORIES):
    """A network to fill, and a copy of what it was."""
    torch.manual_seed(9)
    network = randomise(model.build(config.model, len(categories)), seed=9).eval()
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def settings():
    return config_of()


@pytest.fixture
def saved(tmp_path, settings):
    """A checkpoint of ours, and its tensors."""
    state = network_of(settings).state_dict()
    return weights.save(tmp_path / "best.safetensors", state, settings, CATEGORIES), state


def assert_taken(network, state, *, but=()):
    """All tensors are those of the file, except the named ones."""
    filled = network.state_dict()
    assert_equal({k: v for k, v in filled.items() if k not in but}, {k: v for k, v in state.items() if k not in but})


def test_the_same_network_takes_everything(saved, settings):
    path, state = saved
    network, _ = fresh_network(settings)
    report = initialise(network, settings, CATEGORIES, init=path)
    assert (report.notes, report.fresh, report.loaded, report.source) == ([], [], len(state), str(path))
    assert_taken(network, state)


@pytest.mark.parametrize("table", [DETECTRON2, OPENMMLAB])
def test_a_file_of_others_without_class_names(tmp_path, settings, table):
    state = network_of(settings).state_dict()
    torch.save({"model": from_m2f(table, state)}, tmp_path / "model.pth")
    network, _ = fresh_network(settings)
    report = initialise(network, settings, CATEGORIES, init=str(tmp_path / "model.pth"))
    assert_taken(network, state)
    assert report.fresh == []
    assert report.notes == [
        "The file does not name its 4 classes; the network has as many, and takes them in their order."
    ]
    with pytest.raises(WeightsError, match="may be of other classes"):
        initialise(network, settings, CATEGORIES, init=tmp_path / "model.pth", strict_classes=True)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_rows_of_equal_names_are_taken(saved, settings):
    path, state = saved
    network, before = fresh_network(settings, OTHER)
    report = initialise(network, settings, OTHER, init=path)
    assert_taken(network, state, but=(HEAD, BIAS))
    for name in (HEAD, BIAS):
        expected = torch.stack([state[name][3], before[name][1], state[name][0], state[name][4]])
        assert torch.equal(network.state_dict()[name], expected)
    assert report.fresh == [HEAD, BIAS]
    assert report.loaded == len(state)
    assert report.notes == ["Of the network's 3 classes, 2 are among the 4 of the file; fresh: vessel."]


def test_another_order_is_no_difference_of_shape_but_of_rows(saved, settings):
    path, state = saved
    turned = from_names(["fat", "glass", "stroma", "nucleus"])
    network, _ = fresh_network(settings)
    report = initialise(network, settings, turned, init=path)
    assert torch.equal(network.state_dict()[HEAD], state[HEAD][[3, 2, 1, 0, 4]])
    assert report.fresh == []
    assert report.notes == ["Of the network's 4 classes, 4 are among the 4 of the file."]


def test_underscores_and_case_do_not_count(tmp_path, settings):
    state = network_of(settings).state_dict()
    extra = {"meta": {"dataset_meta": {"classes": ("TRAFFIC-light", "a", "traffic light", "pole")}}}
    torch.save({"state_dict": from_m2f(OPENMMLAB, state), **extra}, tmp_path / "model.pth")
    classes = from_names(["traffic_light", "Pole"])
    network, _ = fresh_network(settings, classes)
    initialise(network, settings, classes, init=tmp_path / "model.pth")
    assert torch.equal(network.state_dict()[HEAD], state[HEAD][[0, 3, 4]])


def test_no_class_in_common_keeps_no_object(saved, settings):
    classes = from_names(["cat", "dog"])
    network, before = fresh_network(settings, classes)
    report = initialise(network, settings, classes, init=saved[0])
    head = network.state_dict()[HEAD]
    assert torch.equal(head[2], saved[1][HEAD][4])
    assert torch.equal(head[:2], before[HEAD][:2])
    assert "0 are among the 4 of the file; fresh: cat, dog." in report.notes[0]


def test_another_number_of_classes_without_names(tmp_path, settings):
    state = network_of(settings).state_dict()
    torch.save({"model": from_m2f(DETECTRON2, state)}, tmp_path / "model.pth")
    network, before = fresh_network(settings, OTHER)
    report = initialise(network, settings, OTHER, init=tmp_path / "model.pth")
    assert torch.equal(network.state_dict()[BIAS], torch.cat([before[BIAS][:3], state[BIAS][4:]]))
    assert report.notes == ["The file has 4 classes without names, the network 3: all of them start fresh."]


def test_strict_classes_refuse_other_classes(saved, settings):
    network, before = fresh_network(settings, OTHER)
    with pytest.raises(WeightsError, match="may be of other classes. Of the network's 3 classes, 2 are"):
        initialise(network, settings, OTHER, init=saved[0], strict_classes=True)
    assert_taken(network, before)
    initialise(fresh_network(settings)[0], settings, CATEGORIES, init=saved[0], strict_classes=True)


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (9, "the first 9 are taken, the others are left behind."),
        (15, "the first 12 are taken, the other 3 start fresh."),
    ],
)
def test_another_number_of_queries(saved, settings, number, says):
    path, state = saved
    config = with_part(settings, "decoder", num_queries=number)
    network, before = fresh_network(config)
    report = initialise(network, config, CATEGORIES, init=path)
    assert_taken(network, state, but=(FEAT, EMBED))
    for name in (FEAT, EMBED):
        found = network.state_dict()[name]
        assert torch.equal(found, torch.cat([state[name][:number], before[name][12:]]))
    assert report.fresh == ([FEAT, EMBED] if number > 12 else [])
    assert report.notes == [f"The file has 12 queries, the network {number}: {says}"]


def test_mask2former_starts_from_mpformer(tmp_path, settings):
    piloted = config_of(piloted=True)
    state = network_of(piloted).state_dict()
    path = weights.save(tmp_path / "mp.safetensors", state, piloted, CATEGORIES)
    network, before = fresh_network(settings)
    report = initialise(network, settings, CATEGORIES, init=path)
    del state[LABELS]
    assert_taken(network, {**state, EMBED: before[EMBED]})
    assert report.fresh == [EMBED]
    assert "no positions of queries" in report.notes[0] and "left behind" in report.notes[1]
    assert len(report.notes) == 2


def test_mpformer_starts_from_mask2former(saved):
    piloted = config_of(piloted=True)
    network, before = fresh_network(piloted, OTHER)
    report = initialise(network, piloted, OTHER, init=saved[0])
    state = {name: tensor for name, tensor in saved[1].items() if name != EMBED}
    assert_taken(network, {**state, LABELS: before[LABELS]}, but=(HEAD, BIAS))
    assert report.fresh == [LABELS, HEAD, BIAS]
    assert [note.split(":")[0] for note in report.notes[1:]] == [
        "The file's positions of queries are left behind, as MP-Former has none",
        "The file has no embeddings of classes for pilot queries, which only MP-Former has",
    ]


def test_mpformer_starts_from_mpformer_with_other_classes(tmp_path):
    piloted = config_of(piloted=True)
    state = network_of(piloted).state_dict()
    torch.save({"model": from_m2f(DETECTRON2, state)}, tmp_path / "mp.pth")
    weights.save(tmp_path / "mp.safetensors", state, piloted, CATEGORIES)
    network, before = fresh_network(piloted, OTHER)
    report = initialise(network, piloted, OTHER, init=tmp_path / "mp.safetensors")
    assert torch.equal(
        network.state_dict()[LABELS], torch.stack([state[LABELS][3], before[LABELS][1], state[LABELS][0]])
    )
    assert LABELS in report.fresh
    network, before = fresh_network(piloted, OTHER)
    initialise(network, piloted, OTHER, init=tmp_path / "mp.pth")  # no names: no row has a place
    assert torch.equal(network.state_dict()[LABELS], before[LABELS])


# --- what must match --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "options", "says"),
    [
        ("decoder", {"num_layers": 2}, r"left over: decoder\.layers\.2\."),
        ("decoder", {"num_layers": 4}, r"missing: decoder\.layers\.3\."),
        ("decoder", {"ffn_dim": 32}, r"decoder\.layers\.0\.ffn\.linear1\.weight is 64x64 and should be 32x64"),
        ("decoder", {"num_heads": 4}, "The decoder of .* has 8 attention heads, that of tiny has 4"),
        ("pixel_decoder", {"num_layers": 1}, r"left over: pixel_decoder\.layers\.1\."),
        ("backbone", {"embed_dim": 32}, r"backbone\.patch_embed\.proj\.weight is 16x3x4x4 and should be 32x3x4x4"),
    ],
)
def test_everything_else_must_match(saved, settings, part, options, says):
    config = with_part(settings, part, **options)
    network, before = fresh_network(config)
    with pytest.raises(WeightsError, match=says) as caught:
        initialise(network, config, CATEGORIES, init=saved[0])
    assert str(saved[0]) in str(caught.value)
    assert_taken(network, before)


def test_another_width_of_queries_is_no_number_of_them(saved, settings):
    config = with_part(settings, "decoder", dim=32)
    with pytest.raises(WeightsError, match="of another shape"):
        initialise(fresh_network(config)[0], config, CATEGORIES, init=saved[0])


def test_counting_batch_norm_into_frozen(tmp_path):
    counting = config_of({**RESNET, "norm": "sync_bn"})
    state = network_of(counting).state_dict()
    path = weights.save(tmp_path / "best.safetensors", state, counting, CATEGORIES)
    frozen = config_of(RESNET)
    network, _ = fresh_network(frozen)
    initialise(network, frozen, CATEGORIES, init=path)
    assert_taken(network, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})


# --- the backbone alone -----------------------------------------------------------------------------------------------


@pytest.fixture
def swin_file(tmp_path, settings):
    """An ImageNet file as the Swin authors release them, and what is in it under our names."""
    state = network_of(settings).state_dict()
    ours = {k: v for k, v in state.items() if k.startswith("backbone.") and not k.startswith("backbone.norms.")}
    theirs = {k.removeprefix("backbone."): v for k, v in from_m2f(DETECTRON2, ours).items()}
    torch.save(
        {"model": {**theirs, "norm.weight": torch.ones(128), "head.weight": torch.zeros(1000, 128)}},
        tmp_path / "swin.pth",
    )
    return tmp_path / "swin.pth", ours


@pytest.mark.parametrize("by", ["init", "pretrained"])
def test_a_backbone_alone(swin_file, settings, by):
    path, state = swin_file
    config = with_part(settings, "backbone", pretrained=str(path) if by == "pretrained" else "nowhere")
    network, before = fresh_network(config)
    report = initialise(network, config, CATEGORIES, init=path if by == "init" else None)
    assert_taken(network, {**before, **state})
    assert set(report.fresh) == set(before) - set(state)
    assert (report.loaded, report.source) == (len(state), str(path))
    assert report.notes[0] == f"The backbone takes the weights of {path}; everything else starts fresh."
    assert re.search(r"8 tensors of the backbone .* start fresh: backbone\.norms\.0\.weight", report.notes[1])


def test_nothing_is_named(settings):
    network, before = fresh_network(settings)
    report = initialise(network, settings, CATEGORIES)
    assert_taken(network, before)
    assert (report.loaded, report.fresh) == (0, list(before))
    assert report.notes == ["No weights are named: the whole network starts fresh."]


def test_a_reference_to_nothing(settings):
    with pytest.raises(WeightsError, match="There is no file or folder 'runs/gone'"):
        initialise(fresh_network(settings)[0], settings, CATEGORIES, init="runs/gone")


def test_code_in_a_checkpoint_is_not_needed_and_not_run(tmp_path, settings):
    """Its tensors go into a network that is there already, so what the file calls its parts does not matter."""
    state = network_of(settings).state_dict()
    named = with_part(settings, "decoder", name="no_such_package_anywhere:Decoder")
    path = weights.save(tmp_path / "best.safetensors", state, named, CATEGORIES)
    network, _ = fresh_network(settings)
    initialise(network, settings, CATEGORIES, init=path)
    assert_taken(network, state)


def test_a_damaged_file_changes_nothing(tmp_path, saved, settings):
    state = {**saved[1], "decoder.norm.weight": torch.full((64,), torch.inf)}
    path = weights.save(tmp_path / "broken.safetensors", state, settings, CATEGORIES)
    network, before = fresh_network(settings)
    with pytest.raises(WeightsError, match="decoder.norm.weight.*NaN or infinite"):
        initialise(network, settings, CATEGORIES, init=path)
    assert_taken(network, before)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no format that m2f knows"):
        initialise(network, settings, CATEGORIES, init=tmp_path / "other.safetensors")
