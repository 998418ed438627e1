"""The name tables against the lists of names and shapes of the published models, and against themselves."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import read_list
from helpers.parts import tiny_config
from weights.models import RESNET, assert_equal, config_of, network_of, shapes_of

from m2f_cli import model
from m2f_cli.config import presets as config
from m2f_cli.errors import WeightsError
from m2f_cli.weights.infer_config import infer, same_network
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.key_tables import DETECTRON2, HUGGINGFACE, OPENMMLAB, TABLES
from m2f_cli.weights.vit_tables import VIT_TABLES

OF_MAPS = [table for table in TABLES.values() if table not in VIT_TABLES]
PUBLISHED = ["r50", "r101", "swin_tiny", "swin_small", "swin_base_384", "swin_base_in21k_384", "swin_large_in21k_384"]
PRESETS = ["r50", "r101", "swin-t", "swin-s", "swin-b-in1k", "swin-b-in22k", "swin-l"]


def meta(shape):
    return torch.empty(shape, device="meta")


def empty_network(network_config, num_classes):
    with torch.device("meta"):
        return model.build(network_config, num_classes)


@pytest.mark.parametrize("method", ["mask2former", "mpformer"])
@pytest.mark.parametrize(("name", "preset"), list(zip(PUBLISHED, PRESETS, strict=True)))
def test_detectron2_names_of_full_size_models(method, name, preset):
    listed = read_list(f"11_param_names_{method}")["models"][name]
    tensors = {entry[0]: meta(entry[1]) for entry in listed["entries"]}
    found, notes = infer(OurView(DETECTRON2, tensors))
    assert found.method == method
    assert "heads" in notes[0]
    if method == "mask2former":
        assert same_network(found, config.load(f"coco-panoptic-{preset}").model)
    network = empty_network(found, listed["num_classes"])
    assert sum(p.numel() for p in network.parameters()) == listed["n_params"]
    state = to_m2f(DETECTRON2, tensors, shapes_of(network))
    back = from_m2f(DETECTRON2, state)
    assert all(tensor.shape == tensors[name].shape for name, tensor in back.items())
    left = {entry[0] for entry in listed["entries"]} - set(back)
    assert all(n.endswith(("relative_position_index", "criterion.empty_weight")) for n in left)


@pytest.mark.parametrize("keys", ["module_keys", "on_disk_keys"])
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("swin_tiny", "swin-t"),
        ("swin_small", "swin-s"),
        ("swin_base", "swin-b-in22k"),
        ("swin_large", "swin-l"),
        ("resnet_50", "r50"),
    ],
)
def test_huggingface_names_of_full_size_models(keys, name, preset):
    lists = read_list("12_hf_key_lists")["models"]["mask2former"]
    tensors = {entry[0]: meta(entry[1]) for entry in lists[name][keys]}
    found, _ = infer(OurView(HUGGINGFACE, tensors))
    assert same_network(found, config.load(f"coco-panoptic-{preset}").model)
    network = empty_network(found, lists[name]["num_labels"])
    state = to_m2f(HUGGINGFACE, tensors, shapes_of(network))
    if keys == "on_disk_keys":
        unused = set(tensors) - set(from_m2f(HUGGINGFACE, state))
        assert all("swin.layernorm" in n or "criterion" in n or "num_batches" in n for n in unused)


def test_the_two_tables_agree_with_the_table_of_names():
    """detectron2 → ours → Hugging Face gives the very pairs of names that the reference lists."""
    rows = read_list("12_hf_name_table")["tables"]["mask2former"]["rows"]
    network = empty_network(config.load("coco-panoptic-swin-t").model, 133)
    wanted = {
        (original, theirs, part and part[1])  # part: ["third", 0] for the query rows, …
        for original, theirs, part in rows
        if "relative_position_index" not in original and not original.startswith("criterion")
    }
    found = set()
    for ours in network.state_dict():
        (original,), _ = DETECTRON2.find(ours)
        theirs, _ = HUGGINGFACE.find(ours)
        parts = [None] if len(theirs) == 1 else range(len(theirs))
        found |= {(original, name, part) for name, part in zip(theirs, parts, strict=True)}
    assert found == wanted


@pytest.mark.parametrize(
    "backbone", [None, RESNET, {**RESNET, "norm": "bn"}, {**RESNET, "depth": 18}, {**RESNET, "depth": 34}]
)
@pytest.mark.parametrize(
    ("table", "piloted"),
    [*((table, False) for table in OF_MAPS), (DETECTRON2, True)],  # MP-Former was released for detectron2 only
    ids=[*(table.format for table in OF_MAPS), "detectron2-piloted"],
)
def test_there_and_back(table, backbone, piloted):
    settings = config_of(backbone, piloted=piloted)
    network = network_of(settings)
    theirs = from_m2f(table, network.state_dict())
    assert_equal(to_m2f(table, theirs, shapes_of(network)), network.state_dict())
    found, _ = infer(OurView(table, theirs))
    assert same_network(found, settings.model)


def test_sampling_offsets_are_rows_of_pairs_elsewhere():
    """(head, level, point, xy) there, (xy, head, level, point) here (docs/methods/published-behaviour.md#3-4)."""
    ours = "pixel_decoder.layers.0.attn.sampling_offsets.bias"
    (theirs,), _ = DETECTRON2.find(ours)
    x, y = torch.arange(96.0), 100 + torch.arange(96.0)
    state = to_m2f(DETECTRON2, {theirs: torch.stack([x, y], dim=1).flatten()}, {ours: (192,)})
    assert torch.equal(state[ours], torch.cat([x, y]))


def test_patch_merging_of_openmmlab_is_permuted_as_the_facts_say():
    """docs/methods/published-behaviour.md#7-5: reshape [out, 4, C], take blocks 0, 2, 1, 3, transpose to [out, C, 4],
    flatten."""
    channels = 3
    weight, norm = torch.randn(6, 4 * channels), torch.randn(4 * channels)
    order = [0, 2, 1, 3]
    wanted = weight.view(6, 4, channels)[:, order].transpose(1, 2).flatten(1)
    wanted_norm = norm.view(4, channels)[order].T.flatten()
    place = "backbone.stages.0.downsample."
    theirs = from_m2f(OPENMMLAB, {place + "reduction.weight": weight, place + "norm.weight": norm})
    assert torch.equal(theirs[place + "reduction.weight"], wanted)
    assert torch.equal(theirs[place + "norm.weight"], wanted_norm)
    back = to_m2f(OPENMMLAB, theirs, {place + "reduction.weight": (6, 12), place + "norm.weight": (12,)})
    assert torch.equal(back[place + "reduction.weight"], weight)
    assert torch.equal(back[place + "norm.weight"], norm)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("backbone.stages.1.blocks.0.attn.qkv.bias", "backbone.stages.1.blocks.0.attn.w_msa.qkv.bias"),
        ("backbone.stages.1.blocks.0.fc2.bias", "backbone.stages.1.blocks.0.ffn.layers.1.bias"),
        ("backbone.norms.3.weight", "backbone.norm3.weight"),
        ("backbone.stages.0.2.conv3.norm.weight", "backbone.layer1.2.bn3.weight"),
        ("backbone.stages.3.0.shortcut.norm.running_var", "backbone.layer4.0.downsample.1.running_var"),
        ("pixel_decoder.level_embed", "decode_head.pixel_decoder.level_encoding.weight"),
        ("pixel_decoder.layers.5.norm2.bias", "decode_head.pixel_decoder.encoder.layers.5.norms.1.bias"),
        ("decoder.layers.8.norm1.bias", "decode_head.transformer_decoder.layers.8.norms.0.bias"),
        ("decoder.layers.8.norm2.bias", "decode_head.transformer_decoder.layers.8.norms.1.bias"),
        (
            "decoder.layers.0.cross_attn.in_proj.weight",
            "decode_head.transformer_decoder.layers.0.cross_attn.attn.in_proj_weight",
        ),
        ("decoder.mask_embed.layers.2.weight", "decode_head.mask_embed.4.weight"),
        ("decoder.class_embed.weight", "decode_head.cls_embed.weight"),
        ("decoder.norm.weight", "decode_head.transformer_decoder.post_norm.weight"),
    ],
)
def test_openmmlab_names_of_the_facts(ours, theirs):
    assert OPENMMLAB.find(ours)[0] == [theirs]


OLD_MM = [
    ("pixel_decoder.encoder.layers.{}.self_attn.", "pixel_decoder.encoder.layers.{}.attentions.0."),
    ("transformer_decoder.layers.{}.cross_attn.", "transformer_decoder.layers.{}.attentions.0."),
    ("transformer_decoder.layers.{}.self_attn.", "transformer_decoder.layers.{}.attentions.1."),
    ("layers.{}.ffn.", "layers.{}.ffns.0."),
]


def old_mm(name):
    """The names of mmdetection before 3.0."""
    for new, old in OLD_MM:
        for layer in range(9):
            name = name.replace(new.format(layer), old.format(layer))
    return "module." + name.replace("decode_head.", "panoptic_head.")


VARIANTS = {
    "static_query": lambda n: n.replace("predictor.query_feat.", "predictor.static_query."),
    "doubled": lambda n: n.replace("pixel_decoder.", "pixel_decoder.pixel_decoder."),
    "no level": lambda n: n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."),
    "module": lambda n: "module." + n,
    "all": lambda n: (
        "module."
        + n.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace(
            "predictor.query_feat.", "predictor.static_query."
        )
    ),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_layouts_of_detectron2(variant):
    network = network_of(config_of())
    theirs = from_m2f(DETECTRON2, network.state_dict())
    varied = {variant(name): tensor for name, tensor in theirs.items()}
    assert set(varied) != set(theirs)
    varied["criterion.empty_weight"] = torch.ones(5)
    assert_equal(to_m2f(DETECTRON2, varied, shapes_of(network)), network.state_dict())


@pytest.mark.parametrize("backbone", [None, RESNET])
def test_layouts_of_openmmlab(backbone):
    network = network_of(config_of(backbone))
    theirs = from_m2f(OPENMMLAB, network.state_dict())
    for rename in (lambda n: n.replace("decode_head.", "panoptic_head."), old_mm):
        varied = {rename(name): tensor for name, tensor in theirs.items()}
        assert set(varied) != set(theirs)
        assert_equal(to_m2f(OPENMMLAB, varied, shapes_of(network)), network.state_dict())


# --- strictness -------------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs_and_shapes():
    network = network_of(config_of(RESNET))
    return from_m2f(DETECTRON2, network.state_dict()), shapes_of(network)


def test_a_missing_tensor_is_named_with_what_resembles_it(theirs_and_shapes):
    theirs, shapes = theirs_and_shapes
    theirs["sem_seg_head.predictor.query_fat.weight"] = theirs.pop("sem_seg_head.predictor.query_feat.weight")
    with pytest.raises(WeightsError) as caught:
        to_m2f(DETECTRON2, theirs, shapes)
    text = str(caught.value)
    assert "1 missing: sem_seg_head.predictor.query_feat.weight" in text
    assert "nearest left over: sem_seg_head.predictor.query_fat.weight" in text
    assert "1 left over" in text


def test_another_shape_is_named_with_both(theirs_and_shapes):
    theirs, shapes = theirs_and_shapes
    theirs["sem_seg_head.predictor.class_embed.bias"] = torch.zeros(20)
    with pytest.raises(WeightsError, match=r"1 of another shape: .*\.class_embed\.bias is 20 and should be 5"):
        to_m2f(DETECTRON2, theirs, shapes)


def test_a_transposed_tensor_of_as_many_values_is_refused(theirs_and_shapes):
    theirs, shapes = theirs_and_shapes
    name = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.weight"
    theirs[name] = theirs[name].T
    with pytest.raises(WeightsError, match="sampling_offsets"):
        to_m2f(DETECTRON2, theirs, shapes)


def test_many_problems_are_counted_and_few_are_shown(theirs_and_shapes):
    _, shapes = theirs_and_shapes
    with pytest.raises(WeightsError) as caught:
        to_m2f(DETECTRON2, {}, shapes)
    assert f"{len(shapes)} missing" in str(caught.value)
    assert f"and {len(shapes) - 5} more" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_nothing_but_the_listed_things_may_be_left_over(theirs_and_shapes):
    theirs, shapes = theirs_and_shapes
    harmless = ["criterion.empty_weight", "backbone.stem.conv1.norm.num_batches_tracked", "pixel_mean"]
    assert to_m2f(DETECTRON2, {**theirs, **{name: torch.zeros(1) for name in harmless}}, shapes)
    with pytest.raises(WeightsError, match=r"1 left over: backbone\.fc\.weight"):
        to_m2f(DETECTRON2, {**theirs, "backbone.fc.weight": torch.zeros(1)}, shapes)


def test_two_names_for_one_place_are_refused(theirs_and_shapes):
    theirs, shapes = theirs_and_shapes
    theirs["sem_seg_head.predictor.static_query.weight"] = theirs["sem_seg_head.predictor.query_feat.weight"]
    with pytest.raises(WeightsError, match="two tensors for the same place"):
        to_m2f(DETECTRON2, theirs, shapes)


def test_batch_counters_may_be_missing():
    network = network_of(config_of({**RESNET, "norm": "bn"}))
    theirs = {n: t for n, t in from_m2f(DETECTRON2, network.state_dict()).items() if "num_batches" not in n}
    state = to_m2f(DETECTRON2, theirs, shapes_of(network))
    assert state["backbone.stem.0.norm.num_batches_tracked"] == 0


def test_a_backbone_that_the_format_does_not_know():
    with pytest.raises(WeightsError, match=r"no place for 'backbone\.net\.stem_0\.weight'"):
        from_m2f(HUGGINGFACE, {"backbone.net.stem_0.weight": torch.zeros(1)})


def test_every_harmless_thing_has_a_reason():
    for table in TABLES.values():
        assert all(len(reason.split()) >= 3 for _, reason in table.harmless)


def test_what_is_no_mask2former_is_not_guessed_at():
    with pytest.raises(WeightsError, match="no Mask2Former"):
        infer(OurView(DETECTRON2, {"sem_seg_head.pixel_decoder.mask_features.weight": torch.zeros(1)}))


def test_same_network_sees_what_differs():
    one = tiny_config()
    wider = one.model_copy(update={"decoder": one.decoder.model_copy(update={"num_queries": 200})})
    assert same_network(one, one)
    assert not same_network(one, wider)
