"""MaskFormer's weights: published lists of names placed strictly, transformers as a live oracle, and the baselines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.golden_files import read_list
from helpers.parts import randomise
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation
from weights.models import CATEGORIES, RESNET, assert_equal, config_of, network_of, shapes_of

from m2f_cli import model, weights
from m2f_cli.config import presets as config
from m2f_cli.config.schema import Component, Config
from m2f_cli.errors import ExportError
from m2f_cli.inference.load_network import load_model, save_huggingface
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.structures.categories import from_names
from m2f_cli.training.initialise import initialise
from m2f_cli.weights import write_huggingface
from m2f_cli.weights.infer_config import infer, num_classes, same_network
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.key_tables import DETECTRON2, HUGGINGFACE, OPENMMLAB

SWIN = {"swin_tiny": "swin-t", "swin_small": "swin-s", "swin_base": "swin-b", "swin_large": "swin-l"}
PUBLISHED = {
    "r50": "coco-panoptic-r50",
    "r101": "coco-panoptic-r101",
    "swin_tiny": "coco-panoptic-swin-t",
    "swin_small": "coco-panoptic-swin-s",
    "swin_base_in21k_384": "coco-panoptic-swin-b",
    "swin_large_in21k_384": "coco-panoptic-swin-l",
    "ade20k_r50": "ade20k-r50",
    "ade20k_r101c": "ade20k-r101c",
}
PIXEL_DECODERS = {
    "fpn": {"name": "fpn", "dim": 64, "mask_dim": 32},
    "transformer_fpn": {
        "name": "transformer_fpn",
        "dim": 64,
        "mask_dim": 32,
        "num_layers": 2,
        "num_heads": 8,
        "ffn_dim": 40,
        "dropout": 0.1,
    },
}
DECODER = {"dim": 64, "num_layers": 3, "num_heads": 8, "ffn_dim": 48, "dropout": 0.1}
DECODERS = {
    "plain": {"name": "plain", "num_queries": 9, **DECODER},
    "per_pixel_plus": {"name": "per_pixel_plus", **DECODER},
    "per_pixel": {"name": "per_pixel"},
}


def tiny(pixel_decoder="fpn", decoder="plain", backbone=None, **changes) -> Config:
    settings = config_of(backbone)
    parts = {
        "method": "maskformer",
        "pixel_decoder": Component(**PIXEL_DECODERS[pixel_decoder]),
        "decoder": Component(**{**DECODERS[decoder], **changes}),
    }
    return settings.model_copy(update={"model": settings.model.model_copy(update=parts)})


def meta(shape):
    return torch.empty(shape, device="meta")


def empty_network(network_config, count):
    with torch.device("meta"):
        return model.build(network_config, count)


# --- names of the published models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["current", "released"])
@pytest.mark.parametrize(("name", "preset"), PUBLISHED.items())
def test_detectron2_names_of_full_size_models(name, preset, layout):
    """Released files lack the level `pixel_decoder.` (docs/methods/published-behaviour.md#7-3)."""
    listed = read_list("11_param_names_maskformer")["models"][name]
    tensors = {entry[0]: meta(entry[1]) for entry in listed["entries"]}
    given = tensors
    if layout == "released":
        given = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): x for name, x in tensors.items()}
        assert set(given) != set(tensors)
    view = OurView(DETECTRON2, given)
    found, notes = infer(view)
    assert found.method == "maskformer" and "heads" in notes[0] and num_classes(view) == listed["num_classes"]
    assert same_network(found, config.load(f"maskformer-{preset}").model)
    network = empty_network(found, listed["num_classes"])
    assert sum(p.numel() for p in network.parameters()) == listed["n_params"]
    back = from_m2f(DETECTRON2, to_m2f(DETECTRON2, given, shapes_of(network)))
    assert all(tensor.shape == tensors[name].shape for name, tensor in back.items())
    left = {entry[0] for entry in listed["entries"]} - set(back)
    assert all(n.endswith(("relative_position_index", "criterion.empty_weight")) for n in left)


@pytest.mark.parametrize("keys", ["module_keys", "on_disk_keys"])
@pytest.mark.parametrize("name", [*SWIN, "resnet_50"])
def test_huggingface_names_of_full_size_models(keys, name):
    lists = read_list("12_hf_key_lists")["models"]["maskformer"][name]
    tensors = {entry[0]: meta(entry[1]) for entry in lists[keys]}
    found, _ = infer(OurView(HUGGINGFACE, tensors))
    if name in SWIN:
        assert same_network(found, config.load(f"maskformer-coco-panoptic-{SWIN[name]}").model)
    network = empty_network(found, lists["num_labels"])
    back = from_m2f(HUGGINGFACE, to_m2f(HUGGINGFACE, tensors, shapes_of(network)))
    if keys == "on_disk_keys":
        unused = set(tensors) - set(back)
        assert all("layernorm" in n or "criterion" in n or "num_batches" in n or "_index" in n for n in unused)
        assert set(back) <= set(tensors)


@pytest.mark.parametrize(
    ("table", "preset"), [("maskformer", "coco-panoptic-swin-t"), ("maskformer_resnet", "ade20k-r50")]
)
def test_the_two_tables_agree_with_the_table_of_names(table, preset):
    rows = read_list("12_hf_name_table")["tables"][table]["rows"]
    network = empty_network(config.load(f"maskformer-{preset}").model, 133)
    wanted = {
        (original, theirs, part and part[1])
        for original, theirs, part in rows
        if "relative_position_index" not in original and not original.startswith("criterion")
    }
    found = set()
    for ours, tensor in network.state_dict().items():
        (original,), _ = DETECTRON2.find(ours)
        theirs = [*from_m2f(HUGGINGFACE, {ours: tensor, "decoder.blocks.0.norm1.bias": tensor})]
        theirs = theirs[:-1] if ours != "decoder.blocks.0.norm1.bias" else theirs
        parts = [None] if len(theirs) == 1 else range(len(theirs))
        found |= {(original, name, part) for name, part in zip(theirs, parts, strict=True)}
    assert found == wanted


@pytest.mark.parametrize("backbone", [None, RESNET], ids=["swin", "resnet"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("pixel_decoder", PIXEL_DECODERS)
@pytest.mark.parametrize("table", [DETECTRON2, OPENMMLAB, HUGGINGFACE], ids=lambda table: table.format)
def test_there_and_back(table, pixel_decoder, decoder, backbone):
    if (pixel_decoder, decoder) != ("fpn", "plain") and table is HUGGINGFACE:
        pytest.skip("transformers has neither")
    if decoder == "per_pixel" and table is OPENMMLAB:
        pytest.skip("OpenMMLab has it not")
    settings = tiny(pixel_decoder, decoder, backbone)
    network = network_of(settings)
    theirs = from_m2f(table, network.state_dict())
    assert_equal(to_m2f(table, theirs, shapes_of(network)), network.state_dict())
    view = OurView(table, theirs)
    found, _ = infer(view)
    assert same_network(found, settings.model)
    assert num_classes(view) == len(CATEGORIES)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("pixel_decoder.top.norm.weight", "decode_head.pixel_decoder.last_feat_conv.gn.weight"),
        ("pixel_decoder.laterals.0.conv.weight", "decode_head.pixel_decoder.lateral_convs.2.conv.weight"),
        ("pixel_decoder.outputs.2.norm.bias", "decode_head.pixel_decoder.output_convs.0.gn.bias"),
        ("pixel_decoder.input_proj.bias", "decode_head.pixel_decoder.encoder_in_proj.bias"),
        (
            "pixel_decoder.layers.5.attn.in_proj.bias",
            "decode_head.pixel_decoder.encoder.layers.5.self_attn.attn.in_proj_bias",
        ),
        ("decoder.input_proj.weight", "decode_head.decoder_input_proj.weight"),
        ("decoder.blocks.5.norm1.bias", "decode_head.transformer_decoder.layers.5.norms.0.bias"),
        (
            "decoder.blocks.0.cross_attn.out_proj.bias",
            "decode_head.transformer_decoder.layers.0.cross_attn.attn.out_proj.bias",
        ),
        ("decoder.output_norm.bias", "decode_head.transformer_decoder.post_norm.bias"),
    ],
)
def test_names_of_openmmlab_are_translated(ours, theirs):
    """mmdet/models/layers/pixel_decoder.py, dense_heads/maskformer_head.py; laterals are fine to coarse there."""
    assert OPENMMLAB.find(ours)[0] == [theirs]


def test_openmmlab_before_3_0_lists_self_attention_first():
    """The order of Mask2Former is the other one: the same names must not be read alike."""
    network = network_of(tiny("transformer_fpn"))
    old = {}
    for name, tensor in from_m2f(OPENMMLAB, network.state_dict()).items():
        name = name.replace("decode_head.", "panoptic_head.").replace("last_feat_conv", "encoder_out_proj")
        if name.startswith("panoptic_head."):
            name = name.replace(".self_attn.", ".attentions.0.").replace(".cross_attn.", ".attentions.1.")
            name = name.replace(".ffn.layers", ".ffns.0.layers")
        old[name] = tensor
    assert any("attentions.1" in name for name in old)
    assert_equal(to_m2f(OPENMMLAB, old, shapes_of(network)), network.state_dict())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_as_released_runs(tmp_path, decoder):
    """Names without the level `pixel_decoder.`, as in the model zoo, beside what else such a file holds."""
    network = network_of(tiny("transformer_fpn" if decoder == "plain" else "fpn", decoder))
    names = from_m2f(DETECTRON2, network.state_dict())
    tensors = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): x for name, x in names.items()}
    torch.save({"model": {**tensors, "criterion.empty_weight": torch.ones(5)}}, tmp_path / "model_final.pth")
    loaded = load_model(tmp_path / "model_final.pth")
    assert_equal(loaded.model.state_dict(), network.state_dict())
    test, per_pixel = loaded.config.test, decoder != "plain"
    assert test.tasks == (("semantic",) if per_pixel else ("panoptic", "semantic"))
    assert (test.semantic_scores, test.only_sure_pixels) == ("logits" if per_pixel else "probabilities", False)
    segmenter = Segmenter(loaded.model, loaded.config, loaded.categories)
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    result = segmenter(image, task="semantic")
    assert result.labels_HW.shape == (60, 70) and result.labels_HW.max() < len(CATEGORIES)
    if per_pixel:
        raw = segmenter.infer([segmenter.prepare(image)])[0]
        logits = segmenter.semantic_scores(raw)(0, 60)
        assert np.array_equal(result.labels_HW, logits.argmax(0).numpy())
        assert logits.min() < 0 and len(logits) == len(CATEGORIES)


# --- transformers -----------------------------------------------------------------------------------------------------

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
BACKBONES = {
    "swin": {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 2, 2, 1],
        "num_heads": [1, 2, 4, 4],
        "window_size": 4,
        **STAGES,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [32, 64, 128, 256],
        "depths": [3, 4, 6, 3],
        **STAGES,
    },
}
SIZES = [(64, 64), (65, 97), (96, 33), (30, 128)]  # also odd, no multiple of 32, of the window, or of 4
TOLERANCE = 1e-4  # of the spread of the logits, as for Mask2Former


def theirs_of(backbone: str, seed: int) -> MaskFormerForInstanceSegmentation:
    settings = MaskFormerConfig(
        backbone_config=BACKBONES[backbone],
        fpn_feature_size=32,
        mask_feature_size=64,
        decoder_config={
            "model_type": "detr",
            "d_model": 32,
            "decoder_layers": 3,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 40,
            "num_queries": 9,
        },
        id2label={i: f"class {i}" for i in range(5)},
    )
    torch.manual_seed(seed)
    return randomise(MaskFormerForInstanceSegmentation(settings), seed).eval()


@torch.no_grad()
def assert_same_answers(theirs, ours, sizes=SIZES):
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected, found = theirs(images), ours(images)
        pairs = (
            (found.last.class_logits_BQK, expected.class_queries_logits),
            (found.render(), expected.masks_queries_logits),
        )
        for mine, their in pairs:
            assert their.std() > 0.2
            assert (mine - their).abs().max() < TOLERANCE * their.std()


@pytest.mark.parametrize(("backbone", "seed"), [("swin", 3), ("swin", 5), ("resnet", 2), ("resnet", 3)])
def test_their_folder_in_our_network(tmp_path, backbone, seed):
    theirs = theirs_of(backbone, seed)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert_same_answers(theirs, loaded.model)
    assert loaded.config.model.method == "maskformer"
    assert loaded.config.test.tasks == ("panoptic", "semantic") and not loaded.config.test.only_sure_pixels
    assert [c.name for c in loaded.categories] == [f"class {i}" for i in range(5)]


@pytest.mark.parametrize("backbone", [None, RESNET, {**RESNET, "norm": "bn"}], ids=["swin", "resnet", "resnet-bn"])
def test_our_network_in_their_folder(tmp_path, backbone):
    settings = tiny(backbone=backbone)
    ours = network_of(settings, seed=1)
    folder = save_huggingface(tmp_path / "model", ours, settings, CATEGORIES)
    theirs, report = MaskFormerForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert {kind: names for kind, names in report.items() if names} == {}
    assert_same_answers(theirs.eval(), ours, SIZES[1:2])
    again = load_model(folder)
    assert same_network(again.config.model, settings.model)
    assert again.config.model.decoder == settings.model.decoder
    for name, tensor in ours.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "settings",
    [
        tiny("transformer_fpn"),
        tiny(decoder="per_pixel"),
        tiny(pre_norm=True),
        tiny(backbone={**RESNET, "stem": "deeplab"}),
    ],
    ids=["encoder", "per-pixel", "pre-norm", "deeplab"],
)
def test_networks_that_transformers_does_not_have(settings):
    with pytest.raises(ExportError):
        write_huggingface.to_config_json(settings.model, CATEGORIES)


def test_a_projection_that_transformers_would_not_make(tmp_path):
    settings = tiny(dim=128, enforce_input_proj=True)  # 128: the width of the tiny Swin's last stage
    with pytest.raises(ExportError, match="widths differ"):
        save_huggingface(tmp_path / "model", network_of(settings), settings, CATEGORIES)


# --- fine-tuning ------------------------------------------------------------------------------------------------------

OTHER = from_names(["Fat", "vessel", "nucleus"])  # of CATEGORIES: number 3, none, number 0
PER_CLASS = {  # what has a row for each class, of each decoder
    "plain": ("decoder.class_embed.weight", "decoder.class_embed.bias"),
    "per_pixel": ("decoder.classifier.weight", "decoder.classifier.bias"),
    "per_pixel_plus": ("decoder.query_embed.weight",),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_other_classes_and_queries(tmp_path, decoder):
    settings = tiny(decoder=decoder)
    state = network_of(settings).state_dict()
    path = weights.save(tmp_path / "best.safetensors", state, settings, CATEGORIES)
    changes = {"num_queries": 12} if decoder == "plain" else {}
    network = randomise(model.build(tiny(decoder=decoder, **changes).model, len(OTHER)), seed=9)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initialise(network, settings, OTHER, init=path)
    own = network.state_dict()
    for name in PER_CLASS[decoder]:
        assert torch.equal(own[name][:3], torch.stack([state[name][3], fresh[name][1], state[name][0]]))
    if decoder == "plain":
        assert torch.equal(own["decoder.class_embed.weight"][3], state["decoder.class_embed.weight"][4])
        queries = torch.cat([state["decoder.query_embed.weight"], fresh["decoder.query_embed.weight"][9:]])
        assert torch.equal(own["decoder.query_embed.weight"], queries)
    others = set(own) - {*PER_CLASS[decoder], "decoder.query_embed.weight"}
    assert_equal({name: own[name] for name in others}, {name: state[name] for name in others})
