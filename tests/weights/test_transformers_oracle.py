"""transformers as an oracle: tiny random networks through our names give the same logits, both ways."""

from __future__ import annotations

import pytest
import torch
from helpers.parts import randomise
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from weights.models import CATEGORIES, RESNET, config_of, network_of

from m2f_cli.errors import ExportError
from m2f_cli.inference.load_network import load_model, save_huggingface
from m2f_cli.weights import write_huggingface

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
    "resnet18": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 32, 64],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        **STAGES,
    },
}
SIZES = [(64, 64), (65, 97), (96, 33), (30, 128)]  # also odd, no multiple of 32, of the window, or of 4
TOLERANCE = 1e-4  # of the spread of the logits; group norm over maps of four pixels amplifies rounding


def theirs_of(backbone: str, seed: int, feature_size: int = 32) -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone],
        feature_size=feature_size,
        mask_feature_size=64,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        dim_feedforward=40,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        num_queries=9,
        id2label={i: f"class {i}" for i in range(5)},
    )
    torch.manual_seed(seed)
    return randomise(Mask2FormerForUniversalSegmentation(config), seed).eval()


def image(size, seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_answers(theirs, ours, sizes=SIZES):
    for size in sizes:
        images = image(size)
        expected, found = theirs(images), ours(images)
        logits = expected.masks_queries_logits
        share = (logits > 0).float().mean()
        assert 0.05 < share < 0.95, "masks that are all of one sign would hide the masked attention"
        for mine, their in ((found.last.class_logits_BQK, expected.class_queries_logits), (found.render(), logits)):
            assert their.std() > 0.3
            assert (mine - their).abs().max() < TOLERANCE * their.std()


@pytest.mark.parametrize(
    ("backbone", "seed", "feature_size"),
    # with 64 and a decoder of 32, 1x1 convolutions lie between the two
    [
        ("swin", 3, 32),
        ("swin", 5, 32),
        ("resnet", 2, 32),
        ("resnet", 3, 32),
        ("swin", 5, 64),
        ("resnet", 3, 64),
        ("resnet18", 2, 32),
    ],
)
def test_their_folder_in_our_network(tmp_path, backbone, seed, feature_size):
    theirs = theirs_of(backbone, seed, feature_size)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert_same_answers(theirs, loaded.model)
    assert [c.name for c in loaded.categories] == [f"class {i}" for i in range(5)]


@torch.no_grad()
def test_with_their_own_initialisation_logits_agree_to_1e_4(tmp_path):
    """The absolute bound, on weights of the magnitude that training starts from, with offsets that are not whole."""
    config = Mask2FormerConfig(
        backbone_config=BACKBONES["swin"],
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_layers=3,
        decoder_layers=7,
        num_attention_heads=4,
        num_queries=20,
        id2label={i: f"class {i}" for i in range(5)},
    )
    torch.manual_seed(0)
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    for name, parameter in theirs.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name or "bias_table" in name:
            parameter.normal_(0, 0.5 if name.endswith("bias") else 0.05)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).model
    for size in SIZES:
        expected, found = theirs(image(size)), ours(image(size))
        torch.testing.assert_close(found.last.class_logits_BQK, expected.class_queries_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.render(), expected.masks_queries_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_both_spellings_are_read(tmp_path, backbone):
    """On disk transformers writes other names than its running model has; either may be in a file."""
    theirs = theirs_of(backbone, 3)
    theirs.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    in_memory = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert (set(on_disk) != set(in_memory)) == (backbone == "swin")
    save_file(in_memory, tmp_path / "model.safetensors")
    assert_same_answers(theirs, load_model(tmp_path).model, SIZES[:1])
    (tmp_path / "model.safetensors").unlink()
    torch.save(in_memory, tmp_path / "pytorch_model.bin")
    assert_same_answers(theirs, load_model(tmp_path).model, SIZES[:1])


def test_shards_of_transformers_are_read(tmp_path):
    theirs = theirs_of("swin", 3)
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_answers(theirs, load_model(tmp_path).model, SIZES[:1])


@pytest.mark.parametrize("piloted", [False, True])
@pytest.mark.parametrize("backbone", [None, RESNET, {**RESNET, "norm": "bn"}], ids=["swin", "resnet", "resnet-bn"])
def test_our_network_in_their_folder(tmp_path, backbone, piloted):
    settings = config_of(backbone, heads=4, piloted=piloted)
    ours = network_of(settings, seed=1)
    folder = save_huggingface(tmp_path / "out" / "model", ours, settings, CATEGORIES)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    theirs, report = Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    assert {kind: names for kind, names in report.items() if names} == {}
    assert theirs.config.id2label == {i: category.name for i, category in enumerate(CATEGORIES)}
    assert_same_answers(theirs.eval(), ours, SIZES[1:2])
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (96, 160)


def test_there_and_back_again(tmp_path):
    settings = config_of(heads=4)
    ours = network_of(settings)
    loaded = load_model(save_huggingface(tmp_path / "model", ours, settings, CATEGORIES))
    assert loaded.config.model == settings.model
    assert loaded.config.input == settings.input
    assert loaded.config.test.resize == settings.test.resize
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_a_folder_is_not_overwritten(tmp_path):
    settings = config_of(heads=4)
    (tmp_path / "model.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        save_huggingface(tmp_path, network_of(settings), settings, CATEGORIES)
    with pytest.raises(ExportError, match="exists already"):
        save_huggingface(tmp_path / "model.txt", network_of(settings), settings, CATEGORIES)


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    settings = config_of(heads=4)

    def fail(*_):
        raise ExportError("no")

    monkeypatch.setattr(write_huggingface, "to_processor_json", fail)
    with pytest.raises(ExportError, match="no"):
        save_huggingface(tmp_path / "model", network_of(settings), settings, CATEGORIES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("backbone", {"name": "timm", "model": "resnet50"}),
        ("backbone", {**RESNET, "stem": "deeplab"}),
        ("pixel_decoder", {"num_heads": 8}),
        ("pixel_decoder", {"num_points": 8}),
        ("decoder", {"name": "plain"}),
    ],
)
def test_networks_that_transformers_does_not_have(part, change):
    settings = config_of(heads=4)
    component = getattr(settings.model, part)
    changed = type(component)(**({} if part == "backbone" else component.model_dump()) | change)
    with pytest.raises(ExportError):
        write_huggingface.to_config_json(settings.model.model_copy(update={part: changed}), CATEGORIES)
