"""ImageNet weights of backbones: the released layouts give the released networks' features."""

from __future__ import annotations

import hashlib
import json
import pickle
import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers.golden_files import for_files, read_list
from helpers.parts import features_of as golden_features
from helpers.parts import published_weights, randomise
from model.test_golden import resnet_of
from safetensors.torch import save_file
from weights.models import RESNET, config_of, network_of
from weights.servers import FileHost, serving

from m2f_cli import weights
from m2f_cli.config import presets as config
from m2f_cli.config.schema import Component
from m2f_cli.errors import ConfigError, WeightsError
from m2f_cli.model.backbones.resnet import ResNet
from m2f_cli.model.backbones.swin import Swin
from m2f_cli.model.backbones.timm import Timm
from m2f_cli.structures.categories import from_names
from m2f_cli.weights import download, hub, pretrained, timm_weights
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import DETECTRON2
from m2f_cli.weights.pretrained import load_alone, load_backbone, resize_bias_table

SWIN = {"embed_dim": 16, "depths": [2, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 7, "drop_path": 0.0}


def shapes_of(backbone):
    return {f"backbone.{name}": tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}


def fill(backbone, state, *, strict=True):
    backbone.load_state_dict({name.removeprefix("backbone."): x for name, x in state.items()}, strict=strict)
    return backbone.eval()


def features(backbone, size=(64, 96)):
    with torch.no_grad():
        return list(backbone(image(size)).values())


def image(size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def component(name, path, **options):
    return Component(name=name, pretrained=str(path), **options)


# --- ResNet -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_resnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(torchvision.models.resnet50(weights=None)).eval()


@pytest.fixture(scope="module")
def torchvision_file(torchvision_resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "resnet50.pth"
    torch.save(torchvision_resnet.state_dict(), path)
    return path


def torchvision_features(net):
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(image((64, 96))))))
        maps = []
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            maps.append(x)
    return maps


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn"])
def test_torchvision_gives_torchvisions_features(torchvision_resnet, torchvision_file, norm):
    ours = ResNet(50, "basic", norm)
    fill(ours, load_backbone(component("resnet", torchvision_file), shapes_of(ours)))
    for found, expected in zip(features(ours), torchvision_features(torchvision_resnet), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """torchvision's network, a file of it, and a file without its last stage."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = randomise(torchvision.models.resnet18(weights=None)).eval()
    folder = tmp_path_factory.mktemp("resnet18")
    torch.save(net.state_dict(), folder / "whole.pth")
    torch.save({k: v for k, v in net.state_dict().items() if "layer4" not in k}, folder / "part.pth")
    return net, folder / "whole.pth", folder / "part.pth"


def test_the_small_resnet_is_torchvisions_too(resnet18):
    net, whole, _ = resnet18
    ours = ResNet(18, "basic", "frozen_bn")
    fill(ours, load_backbone(component("resnet", whole), shapes_of(ours)))
    for found, expected in zip(features(ours), torchvision_features(net), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_part_of_a_backbone_only_when_asked_for(resnet18):
    net, _, part = resnet18
    shapes = shapes_of(ResNet(18, "basic", "frozen_bn"))
    with pytest.raises(WeightsError, match="missing: backbone.layer4.0.conv1.weight.*") as caught:
        load_alone(part, shapes)
    assert "--init-partial" in caught.value.hint
    state = load_alone(part, shapes, partial=True)
    assert set(shapes) - set(state) == {name for name in shapes if name.startswith("backbone.stages.3.")}
    assert torch.equal(state["backbone.stages.2.1.conv2.conv.weight"], net.layer3[1].conv2.weight)


def test_a_part_of_another_backbone_is_refused(resnet18):
    with pytest.raises(WeightsError):
        load_alone(resnet18[2], shapes_of(ResNet(50, "basic", "frozen_bn")), partial=True)


def as_detectron2(name):
    """The renaming of the published conversion (docs/methods/published-behaviour.md#7-1)."""
    name = name if "layer" in name else f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    return (
        re.sub(r"bn(\d)", r"conv\1.norm", name)
        .replace("downsample.0", "shortcut")
        .replace("downsample.1", "shortcut.norm")
    )


def test_detectron2s_pickle_of_it_holds_the_same(torchvision_resnet, torchvision_file, tmp_path):
    arrays = {as_detectron2(name): tensor.numpy() for name, tensor in torchvision_resnet.state_dict().items()}
    assert {"stem.fc.weight", "stem.conv1.norm.running_var", "res2.0.shortcut.norm.bias"} <= set(arrays)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision", "matching_heuristics": True}))
    shapes = shapes_of(ResNet(50, "basic", "frozen_bn"))
    found, expected = (load_alone(file, shapes) for file in (path, torchvision_file))
    assert set(found) == set(expected) == set(shapes)
    assert all(torch.equal(found[name], expected[name]) for name in shapes)


def test_every_tensor_of_resnet101_has_its_place():
    with torch.device("meta"):
        theirs = set(torchvision.models.resnet101(weights=None).state_dict()) - {"fc.weight", "fc.bias"}
        ours = shapes_of(ResNet(101, "basic", "sync_bn"))
    table = pretrained.table_of(dict.fromkeys(theirs))
    named = [table.find(name)[0][0].removeprefix("backbone.") for name in ours]
    counters = {name for name in theirs if name.endswith("num_batches_tracked")}
    assert {name for name in named if not name.endswith("num_batches_tracked")} == theirs - counters
    assert len(named) == len(set(named)) == len(theirs)


@for_files("02")
def test_the_published_resnets_under_detectron2s_bare_names(golden_file, tmp_path):
    ours = resnet_of(golden_file)
    tensors = published_weights(ours, "backbone", golden_file)
    path = tmp_path / "R-103.pkl"
    path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in tensors.items()}, "__author__": "third"}))
    fill(ours, load_backbone(component("resnet", path), shapes_of(ours)))
    with torch.no_grad():
        maps = ours(golden_file.tensors["in/image"])
    expected = golden_features(golden_file.tensors, "out/")
    assert expected
    for stride, features in expected.items():
        torch.testing.assert_close(maps[stride], features, atol=1e-4, rtol=1e-4)


# --- Swin -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm_swin():
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=16, depths=SWIN["depths"], num_heads=SWIN["num_heads"], img_size=224
    )
    masks = {name: mask.clone() for name, mask in net.named_buffers()}  # timm keeps the masks of shifted windows
    randomise(net)
    for name, mask in net.named_buffers():
        mask.copy_(masks[name])
    return net.eval()


def as_released(state):
    """The Swin authors' names: their merging belongs to the stage before, their classifier is called otherwise."""
    moved = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in state.items()
    }
    return {name.replace("head.fc.", "head."): tensor for name, tensor in moved.items()}


def swin_file(net, folder, released):
    if not released:
        save_file(net.state_dict(), folder / "model.safetensors")
        return folder / "model.safetensors"
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    state = {**as_released(net.state_dict()), **extra}
    assert "layers.0.downsample.reduction.weight" in state
    torch.save({"model": state}, folder / "swin.pth")
    return folder / "swin.pth"


@pytest.mark.parametrize("released", [True, False])
def test_swin_gives_timms_features(timm_swin, tmp_path, released):
    ours = Swin(**SWIN)
    state = load_backbone(component("swin", swin_file(timm_swin, tmp_path, released)), shapes_of(ours))
    norms = {f"backbone.norms.{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert set(shapes_of(ours)) - set(state) == norms
    fill(ours, state, strict=False)
    with torch.no_grad():
        theirs = timm_swin.forward_intermediates(image((224, 224)), intermediates_only=True)
    for found, raw in zip(features(ours, (224, 224)), theirs, strict=True):
        expected = F.layer_norm(raw.movedim(1, -1), raw.shape[1:2]).movedim(-1, 1)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_the_published_names_of_swin():
    """What a whole model of the published code calls its backbone is what the releases call theirs."""
    names = read_list("11_param_names_mask2former")
    backbone = {name for name in re.findall(r"backbone\.[\w.]+", json.dumps(names)) if ".layers." in name}
    table = pretrained.BACKBONE_TABLES[2]
    found = {table.find(name)[0][0] for name in shapes_of(Swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 0.0))}
    assert {name for name in found if ".layers." in name} <= backbone


def test_windows_of_another_size_are_resized_only_when_asked(timm_swin, tmp_path):
    path = swin_file(timm_swin, tmp_path, released=True)
    shapes = shapes_of(Swin(**{**SWIN, "window_size": 4}))
    with pytest.raises(WeightsError, match="6 of another shape: .*bias_table is 169x2 and should be 49x2"):
        load_alone(path, shapes)
    state = load_alone(path, shapes, resize_windows=True)
    name = "backbone.stages.0.blocks.1.attn.relative_position_bias_table"
    assert tuple(state[name].shape) == (49, 2)
    theirs = timm_swin.layers[0].blocks[1].attn.relative_position_bias_table.detach()
    torch.testing.assert_close(state[name][24], theirs[84])  # no displacement stays no displacement


def test_a_smooth_table_keeps_its_values():
    """A plane comes through, as nearly as torch's bicubic weights reproduce one; rows are (dy, dx)."""

    def plane(side):
        places = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(places, places, indexing="ij")
        return torch.stack([2 * y + x, -y], dim=-1)

    resized = resize_bias_table(plane(13).flatten(0, 1), 23**2).view(23, 23, 2)
    torch.testing.assert_close(resized[4:-4, 4:-4], plane(23)[4:-4, 4:-4], atol=0.015, rtol=0)
    assert resize_bias_table(torch.zeros(5, 2), 9).shape == (5, 2)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A small ResNet and its tensors under detectron2's names, to be spoilt."""
    ours = randomise(ResNet(50, "basic", "frozen_bn", stem_channels=8, width=8))
    theirs = from_m2f(DETECTRON2, {f"backbone.{name}": tensor for name, tensor in ours.state_dict().items()})
    return shapes_of(ours), {name.removeprefix("backbone."): tensor for name, tensor in theirs.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"res4.5.conv2.norm.running_mean": None}, "1 missing: backbone.res4.5.conv2.norm.running_mean"),
        ({"res4.6.conv1.weight": torch.zeros(1)}, "1 left over: backbone.res4.6.conv1.weight."),
        ({"res2.0.conv1.weight": torch.zeros(8, 9, 1, 1)}, "res2.0.conv1.weight is 8x9x1x1 and should be 8x8x1x1"),
        ({"res2.0.conv1.weight": torch.full((8, 8, 1, 1), torch.nan)}, "64 of 64 values of .* are NaN or infinite"),
    ],
)
def test_nothing_may_be_missing_or_left_over(small, tmp_path, changes, says):
    shapes, tensors = small
    torch.save({k: v for k, v in {**tensors, **changes}.items() if v is not None}, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match=says):
        load_backbone(component("resnet", tmp_path / "backbone.pth"), shapes)


def test_another_kind_of_backbone(small, tmp_path):
    _, tensors = small
    torch.save(tensors, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match="is of another kind than that of the network"):
        load_alone(tmp_path / "backbone.pth", shapes_of(Swin(**SWIN)))


def test_half_precision_becomes_single(small, tmp_path):
    shapes, tensors = small
    torch.save({f"module.{name}": tensor.half() for name, tensor in tensors.items()}, tmp_path / "backbone.pth")
    state = load_alone(tmp_path / "backbone.pth", shapes)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    expected = tensors["res3.0.shortcut.weight"].half().float()
    assert torch.equal(state["backbone.stages.1.0.shortcut.conv.weight"], expected)


# --- names and downloads ----------------------------------------------------------------------------------------------


def test_the_presets_name_sources_that_are_known():
    for name in config.preset_names():
        backbone = config.load(name).model.backbone
        source = backbone.options.get("pretrained")
        if source == "timm":
            released = timm.get_pretrained_cfg(backbone.options["model"])
            assert released is not None and (released.url or released.hf_hub_id), name
        elif source is not None:
            assert pretrained.release_name(backbone, source) in pretrained.SOURCES, name


def test_sources_have_the_hash_that_is_in_their_name():
    for name, release in pretrained.SOURCES.items():
        stem = release.url.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        assert stem == name if release.hash_prefix is None else stem == f"{name}-{release.hash_prefix}"
        assert release.url.startswith("https://")


@pytest.fixture
def host(small, tmp_path, monkeypatch):
    """`torchvision`'s file of depth 50 lies on a server of this machine."""
    _, tensors = small
    torch.save(tensors, tmp_path / "source.pth")
    content = (tmp_path / "source.pth").read_bytes()
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "home"))
    for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(FileHost, files={"/r.pth": content}, cuts=[], ranges=True, etags=True) as server:
        server.release = pretrained.Release(server.url + "/r.pth", "MIT", hashlib.sha256(content).hexdigest()[:8])
        monkeypatch.setitem(pretrained.SOURCES, "resnet50", server.release)
        yield server


def test_a_release_is_fetched_by_depth_and_once(small, host):
    shapes, tensors = small
    records = []
    named = Component(**{**RESNET, "pretrained": "torchvision"})
    for _ in range(2):
        state = load_backbone(named, shapes, progress=records.append)
    assert torch.equal(state["backbone.stem.0.conv.weight"], tensors["stem.conv1.weight"])
    assert len(host.requests) == 1
    assert records[-1].name == "r.pth" and records[-1].received == records[-1].total


def test_a_release_of_another_content_is_refused(small, host, monkeypatch):
    monkeypatch.setitem(pretrained.SOURCES, "resnet50", pretrained.Release(host.release.url, "MIT", "abcdef12"))
    with pytest.raises(WeightsError, match="begins with abcdef12"):
        load_alone("resnet50", small[0])
    assert not (download.weights_dir() / "r.pth").exists()


def test_a_release_without_network(small, host, monkeypatch):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    with pytest.raises(WeightsError, match="the network is switched off"):
        load_alone("resnet50", small[0])
    assert host.requests == []


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("resnet51", ConfigError, "Did you mean.* resnet50"),
        ("torchvision", ConfigError, "pretrained=R-103"),
        ("gone/resnet50.pth", WeightsError, "no file or folder 'gone/resnet50.pth'"),
    ],
)
def test_names_of_nothing(small, value, error, says):
    with pytest.raises(error, match=says):
        load_backbone(component("resnet", value, depth=50, stem="deeplab"), small[0])


@pytest.mark.parametrize("foreign", [False, True])
def test_the_backbone_of_a_whole_model(tmp_path, foreign):
    """Also of one whose batch norm counted where ours is frozen."""
    settings = config_of({**RESNET, "norm": "sync_bn"})
    network = network_of(settings)
    if foreign:
        path = tmp_path / "model.pth"
        torch.save({"model": from_m2f(DETECTRON2, network.state_dict())}, path)
    else:
        classes = from_names(["a", "b", "c", "d"])
        path = weights.save(tmp_path / "best.safetensors", network.state_dict(), settings, classes)
    shapes = shapes_of(ResNet(50, "basic", "frozen_bn", stem_channels=8, width=8))
    state = load_backbone(component("resnet", path), shapes)
    assert set(state) == set(shapes)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())


# --- timm -------------------------------------------------------------------------------------------------------------

TIMM = {"model": "test_convnext"}  # timm's smallest ConvNeXt


@pytest.fixture
def timm_file(tmp_path):
    torch.manual_seed(3)
    net = randomise(timm.create_model("test_convnext")).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", net


def assert_timms(state, net):
    ours = Timm(**TIMM)
    fill(ours, state)
    with torch.no_grad():
        theirs = net.forward_intermediates(image((64, 96)), intermediates_only=True)
    for found, expected in zip(features(ours), theirs[-4:], strict=True):
        torch.testing.assert_close(found, expected)


def test_timms_file_gives_timms_features(timm_file):
    path, net = timm_file
    assert_timms(load_backbone(component("timm", path, **TIMM), shapes_of(Timm(**TIMM))), net)


def test_what_timm_released_comes_from_the_hub(timm_file, monkeypatch):
    path, net = timm_file
    asked = []
    monkeypatch.setattr(hub, "fetch_repo", lambda repo, progress: asked.append(repo) or path.parent)
    assert_timms(load_backbone(component("timm", "timm", **TIMM), shapes_of(Timm(**TIMM))), net)
    assert asked == ["timm/test_convnext.r160_in1k"]


def test_timm_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="test_convnext.*network is switched off"):
        load_backbone(component("timm", "timm", **TIMM), shapes_of(Timm(**TIMM)))


def test_a_file_that_timm_cannot_place(timm_file, tmp_path):
    path, net = timm_file
    state = net.state_dict()
    del state["stages.0.blocks.0.norm.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match="not fit the timm model 'test_convnext'.*stages.0.blocks.0.norm.weight"):
        load_backbone(component("timm", path, **TIMM), shapes_of(Timm(**TIMM)))
    with pytest.raises(WeightsError, match="no file 'gone.pth'"):
        load_backbone(component("timm", "gone.pth", **TIMM), shapes_of(Timm(**TIMM)))


def test_timm_features_without_a_source():
    with pytest.raises(WeightsError, match="1 of another shape: backbone.net.stem_0.w.* 1 missing: backbone.net.a"):
        timm_weights.from_whole_timm(
            {"stem.0.weight": torch.zeros(2)}, {"backbone.net.a": (2,), "backbone.net.stem_0.weight": (3,)}
        )
