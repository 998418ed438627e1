"""From a reference to a network: classes, configuration, and the same answers."""

from __future__ import annotations

import pytest
import torch
from weights.models import CATEGORIES, RESNET, config_of, network_of

from m2f_cli import weights
from m2f_cli.errors import ConfigError, WeightsError
from m2f_cli.inference import load_network as loading
from m2f_cli.inference.load_network import load_model
from m2f_cli.model import build
from m2f_cli.structures.categories import load_categories
from m2f_cli.weights import Checkpoint
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import DETECTRON2, OPENMMLAB


@pytest.fixture
def saved(tmp_path):
    settings = config_of()
    network = network_of(settings)
    return weights.save(tmp_path / "best.safetensors", network.state_dict(), settings, CATEGORIES), settings, network


def answers(network):
    images = torch.randn(1, 3, 70, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prediction = network(images)
    return prediction.last.class_logits_BQK, prediction.render()


def test_a_checkpoint_of_ours_gives_the_very_same_answers(saved):
    path, settings, network = saved
    loaded = load_model(path)
    assert (loaded.config, loaded.categories, loaded.source, loaded.notes) == (settings, CATEGORIES, str(path), [])
    assert not loaded.model.training
    for found, expected in zip(answers(loaded.model), answers(network), strict=True):
        assert torch.equal(found, expected)


def test_nothing_stays_without_memory_and_all_can_be_trained(saved):
    """The network is made on the meta device: whatever the file does not fill would be left there."""
    model = load_model(saved[0]).model
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = saved[0].read_bytes()
    with torch.no_grad():
        model.decoder.norm.weight.add_(1)
    assert saved[0].read_bytes() == before


def test_constants_that_no_file_holds_are_there(tmp_path):
    """timm's Swin keeps its window masks outside the state dict."""
    backbone = {
        "name": "timm",
        "model": "swin_tiny_patch4_window7_224",
        "embed_dim": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 4, 8],
        "img_size": 64,
        "window_size": 2,
    }
    settings = config_of(backbone)
    network = build(settings.model, len(CATEGORIES)).eval()
    assert {name for name, _ in network.named_buffers()} - set(network.state_dict())
    weights.save(tmp_path / "best.safetensors", network.state_dict(), settings, CATEGORIES)
    loaded = load_model(tmp_path / "best.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images).render(), network(images).render())


def foreign(tmp_path, table, settings, **meta):
    theirs = from_m2f(table, network_of(settings).state_dict())
    key = "state_dict" if table is OPENMMLAB else "model"
    torch.save({key: theirs, **meta}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.mark.parametrize("table", [DETECTRON2, OPENMMLAB])
@pytest.mark.parametrize("backbone", [None, RESNET])
def test_files_of_others_give_the_same_answers(tmp_path, table, backbone):
    settings = config_of(backbone)
    loaded = load_model(foreign(tmp_path, table, settings))
    for found, expected in zip(answers(loaded.model), answers(network_of(settings)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert [c.name for c in loaded.categories] == ["class 0", "class 1", "class 2", "class 3"]
    assert len(loaded.notes) == 4
    assert loaded.config.test.size_divisor == 32
    assert loaded.config.test.resize.short_edge == 800
    assert loaded.config.test.resize.resampling == ("opencv" if table is OPENMMLAB else "pillow")


def test_class_names_of_a_file(tmp_path):
    path = foreign(tmp_path, OPENMMLAB, config_of(), meta={"dataset_meta": {"classes": ("a", "b", "a", "c")}})
    loaded = load_model(path)
    assert [c.name for c in loaded.categories] == ["a", "b", "a (2)", "c"]
    assert any("taken as things" in note for note in loaded.notes)


@pytest.mark.parametrize("table", ["cityscapes", "coco-panoptic", "ade20k"])
def test_known_names_bring_things_and_colours(table):
    known = load_categories(table)
    spelled = [c.name.upper().replace(" ", "_") for c in known]
    notes: list[str] = []
    assert loading.categories_from_names(spelled, notes) == (known, table)
    assert notes == []
    swapped = [spelled[1], spelled[0], *spelled[2:]]
    assert loading.categories_from_names(swapped, notes)[1] == ""


def test_a_number_of_classes_that_one_table_has():
    notes: list[str] = []
    assert loading.categories_from_count(133, notes) == (load_categories("coco-panoptic"), "coco-panoptic")
    assert "coco-panoptic has as many" in notes[0]
    categories, table = loading.categories_from_count(3, notes)
    assert (len(categories), table) == (3, "")


def test_classes_that_do_not_fit_are_refused(saved):
    path, settings, network = saved
    weights.save(path, network.state_dict(), settings, CATEGORIES[:3])
    with pytest.raises(WeightsError, match="has 4 classes, but its header names 3"):
        load_model(path)


def test_a_file_called_like_a_released_one(saved):
    _, settings, network = saved
    preset = settings.model_copy(update={"data": settings.data.model_copy(update={"classes": "cityscapes"})})
    checkpoint = Checkpoint("model_final.pkl", "m2f", network.state_dict(), settings.model, config=preset)
    with pytest.raises(WeightsError, match="has 4 classes, but cityscapes names 19"):
        loading.categories_of(checkpoint, [])


def test_the_name_of_a_semantic_model_decides_the_order_of_operations(tmp_path):
    for name, tasks in (("swin-ade-semantic", ("semantic",)), ("swin-coco", ("panoptic", "instance", "semantic"))):
        settings = config_of(heads=4)
        folder = loading.save_huggingface(tmp_path / name, network_of(settings), settings, CATEGORIES)
        config = load_model(folder).config
        assert (config.test.tasks, config.task, config.name) == (tasks, tasks[0], name)


def test_code_in_a_checkpoint(saved, tmp_path):
    path, settings, network = saved
    part = settings.model.decoder.model_copy(update={"name": "m2f_cli.model.decoders.masked:MaskedDecoder"})
    named = settings.model_copy(update={"model": settings.model.model_copy(update={"decoder": part})})
    weights.save(path, network.state_dict(), named, CATEGORIES)
    with pytest.raises(ConfigError, match="names code of its own"):
        load_model(path)
    assert load_model(path, trust_code=True).categories == CATEGORIES


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.uint16])
def test_numbers_that_are_not_real_are_refused(tmp_path, dtype):
    settings = config_of(RESNET)
    state = network_of(settings).state_dict()
    name = "decoder.class_embed.weight"
    foreign = from_m2f(DETECTRON2, state | {name: state[name].to(dtype)})
    torch.save({"model": foreign}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=rf"of the type {str(dtype)[6:]}, where the network has real numbers"):
        load_model(tmp_path / "model.pth")
