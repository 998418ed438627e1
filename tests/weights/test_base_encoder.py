"""Weights of plain ViTs that are not whole: differences from DINOv3, decoders alone, and encoders to start from."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.golden_files import OURS, for_files, read, read_list
from helpers.parts import weights_of
from helpers.vits import DINOV2, DINOV3, eomt_config, golden_vit, images_of, pmt_config, shapes_of, table_of
from safetensors.torch import save_file
from torch import Tensor

from m2f_cli import model
from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import Component
from m2f_cli.errors import WeightsError
from m2f_cli.model.backbones.vit import Pyramid
from m2f_cli.weights import base_encoder, hub, resolve
from m2f_cli.weights.infer_config import infer
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.pretrained import load_backbone
from m2f_cli.weights.vit_tables import EOMT_DINOV3, PMT

ENCODER = "network.encoder.backbone."
BASE_NAMES = (("patch_embed.cls", "embeddings.cls"), ("patch_embed.", "embeddings."), ("blocks.", "layer."))


def as_base(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a published file under the names of transformers, with what its own training needed."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(ENCODER):
            short = name.removeprefix(ENCODER)
            short = next(
                (short.replace(ours, theirs, 1) for ours, theirs in BASE_NAMES if short.startswith(ours)), short
            )
            found[short] = tensor.clone()
    width = found["embeddings.cls_token"].shape[-1]
    return found | {"embeddings.mask_token": torch.zeros(1, 1, width, device=found["embeddings.cls_token"].device)}


# --- differences ------------------------------------------------------------------------------------------------------


@for_files("v02b")
def test_differences_and_base_give_the_published_sum(golden_file, tmp_path):
    delta = weights_of(golden_file.tensors, "delta/")
    save_file(weights_of(golden_file.tensors, "base/"), tmp_path / "base.safetensors")
    found = base_encoder.completed(delta, tmp_path / "delta.bin")
    expected = weights_of(golden_file.tensors, "combined/")
    assert sum(name.startswith(ENCODER) for name in expected) > 20
    for name in expected:
        if name.startswith(ENCODER):
            torch.testing.assert_close(found[name], expected[name], atol=0, rtol=0, msg=name)
    for name in ("network.q.weight", "network.class_head.weight", "network.upscale.1.conv2.weight"):
        assert torch.equal(found[name], delta[name]), "other tensors are absolute"
    assert not found["network.attn_mask_probs"].any()
    assert table_of(found) is EOMT_DINOV3


@pytest.fixture
def delta(tmp_path):
    """A file of differences, whose base is missing."""
    file = read(OURS / "v02b_eomt_dinov3_delta.json")
    torch.save(weights_of(file.tensors, "delta/"), tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin", weights_of(file.tensors, "base/")


def test_differences_without_their_base_are_one_sentence(delta):
    path, _ = delta
    with pytest.raises(
        WeightsError, match=r"lacks the encoder .* 12 wide.*Put the encoder beside it, as base\.safetensors"
    ):
        resolve.load(path)


@pytest.mark.parametrize("queries", [None, torch.zeros(()), torch.zeros(3)], ids=["none", "number", "row"])
def test_differences_without_queries_are_one_sentence(delta, queries):
    path, _ = delta
    tensors = torch.load(path, weights_only=True)
    del tensors["network.q.weight"]
    torch.save(tensors if queries is None else {**tensors, "network.q.weight": queries}, path)
    with pytest.raises(WeightsError, match=r"lacks its encoder, and network\.q\.weight, .* is no matrix"):
        resolve.load(path)


def test_differences_from_another_base_are_one_sentence(delta, tmp_path):
    path, base = delta
    del base["layer.1.norm1.weight"]
    base["norm.weight"] = torch.zeros(13)
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match=r"1 of another shape: norm.weight.*1 missing: blocks.1.norm1.weight"):
        resolve.load(path)


def test_a_base_of_another_kind_is_one_sentence(delta, tmp_path):
    path, _ = delta
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match="holds no DINOv3 encoder with the names of transformers"):
        resolve.load(path)


def test_a_base_behind_a_licence_says_where_to_accept_it(tmp_path, monkeypatch):
    def gated(repo, *, progress):
        raise WeightsError(f"The hub repository {repo!r} wants you to accept its terms first.")

    monkeypatch.setattr(hub, "fetch_repo", gated)
    torch.save(small_delta(), tmp_path / "pytorch_model.bin")
    says = r"lacks the encoder facebook/dinov3-vits16.*accept its terms.*DINOv3 licence.*hf auth login"
    with pytest.raises(WeightsError, match=says):
        resolve.load(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("preset", ["eomt-coco-panoptic-s-dinov3-640", "pmt-coco-panoptic-s-640"])
def test_a_preset_states_the_base_of_its_weights(tmp_path, monkeypatch, preset):
    """Not the width of the file, which is for files that no preset knows."""
    [stated] = (source for source in configuration.load(preset).weights if source.base)
    decoder = {"network.decoder.q.weight": torch.zeros(4, 12)}
    torch.save(decoder if stated.kind == "decoder_only" else small_delta(), tmp_path / "pytorch_model.bin")
    asked = []

    def fetch(repo, *, progress, needs_config=True):
        asked.append(repo)
        if repo == stated.base:
            raise WeightsError("no network")
        return tmp_path

    monkeypatch.setattr(hub, "fetch_repo", fetch)
    monkeypatch.setattr(base_encoder, "BASES", {})
    with pytest.raises(WeightsError, match=f"lacks the encoder {stated.base}"):
        resolve.load(preset)
    assert asked == [stated.hub, stated.base]


def published_state(config, classes: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(0)
    table = PMT if config.method == "pmt" else EOMT_DINOV3
    return from_m2f(table, model.build(config, classes).state_dict())


FULL_WIDTH = {"embed_dim": 384, "num_heads": 6, "depth": 12}


def small_eomt():
    return eomt_config(DINOV3, 640, first_block=9, levels=[8], **FULL_WIDTH)


def small_delta() -> dict[str, Tensor]:
    state = published_state(small_eomt())
    zero = {name: torch.zeros(1, 3, 1, 1) for name in ("network.encoder.pixel_mean", "network.encoder.pixel_std")}
    return {**state, **zero}


def test_differences_beside_their_base_are_a_network(tmp_path):
    state = published_state(small_eomt())
    delta = {name: torch.full_like(x, 0.25) if name.startswith(ENCODER) else x for name, x in small_delta().items()}
    torch.save({name: x.half() for name, x in delta.items()}, tmp_path / "pytorch_model.bin")
    save_file(as_base(state), tmp_path / "dinov3-vits16-pretrain-lvd1689m.safetensors")
    checkpoint = resolve.load(tmp_path / "pytorch_model.bin")
    assert checkpoint.format == "eomt-dinov3" and checkpoint.model.backbone.options["model"] == DINOV3
    network = model.build(checkpoint.model, checkpoint.num_classes)
    network.load_state_dict(checkpoint.state_for(shapes_of(network)))
    found = from_m2f(EOMT_DINOV3, network.state_dict())
    assert torch.equal(found[ENCODER + "norm.weight"], state[ENCODER + "norm.weight"] + 0.25)
    assert torch.equal(found["network.q.weight"], delta["network.q.weight"].half().float())


# --- decoders alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(read_list("v06_param_names_pmt")["entries"]))
def test_published_names_of_full_size_decoders(name):
    """With the names of their encoder, which the files lack."""
    lists = read_list("v06_param_names_pmt")["entries"]
    trained = name.removesuffix("_published_by_convert_script")
    shape_of = {key: shape for key, shape, _ in lists[trained]}
    keys = lists[name] if name != trained else shape_of
    tensors = {key: torch.empty(shape_of[key], device="meta") for key in keys}
    size = next(size for size in ("small", "base", "large") if size in name)
    depth = 24 if size == "large" else 12
    levels = [5, 11, 17, 23] if size == "large" else [2, 5, 8, 11]
    vit = Component(name="vit_tokens", model=f"vit_{size}_patch16_dinov3_qkvb", img_size=640, levels=levels, norm=True)
    whole = model.build_shapes(pmt_config().model_copy(update={"backbone": vit}), 133).state_dict()
    encoder = {key: x for key, x in whole.items() if key.startswith("backbone.")}
    assert sum(".norm1.weight" in key for key in encoder) == depth
    tensors |= from_m2f(PMT, encoder)
    assert table_of(tensors) is PMT
    config, _ = infer(OurView(PMT, tensors))
    network = model.build_shapes(config, 133)
    parameters = read_list("v06_param_names_pmt")["parameters"][trained]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == parameters["trained"]
    state = to_m2f(PMT, tensors, shapes_of(network))
    left = set(tensors) - set(from_m2f(PMT, state))
    assert all(key.endswith(("pixel_mean", "pixel_std", "criterion.empty_weight", "_fallback")) for key in left)


@for_files("v03_")
def test_a_decoder_beside_its_encoder_is_a_network(golden_file, tmp_path):
    weights = weights_of(golden_file.tensors)
    alone = {name: x for name, x in weights.items() if not name.startswith(ENCODER)}
    save_file(as_base(weights), tmp_path / "base.safetensors")
    found = base_encoder.completed(alone, tmp_path / "decoder.bin")
    expected = golden_vit(golden_file)
    again = golden_vit(golden_file)
    again.load_state_dict(to_m2f(PMT, found, shapes_of(again)))
    images = images_of(golden_file)
    assert torch.equal(again(images).render(), expected(images).render())


# --- encoders to start from -------------------------------------------------------------------------------------------


def whole_vit(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(1)
    net = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.02)
    return net


TINY = {"embed_dim": 48, "num_heads": 3, "depth": 4}


def test_a_start_from_dinov2_fills_both_parts_of_the_vit(tmp_path):
    """The kernel of patches of 14 pixels and the positions are resampled as timm's own loading does."""
    source = whole_vit(DINOV2, img_size=56, **TINY)
    save_file(source.state_dict(), tmp_path / "dinov2.safetensors")
    config = eomt_config(img_size=96, **TINY)
    network = model.build(config, 5)
    backbone = Component(**{**config.backbone.model_dump(), "pretrained": str(tmp_path / "dinov2.safetensors")})
    state = load_backbone(backbone, shapes_of(network))
    assert {name for name in shapes_of(network) if name.startswith(("backbone.", "decoder.vit."))} == set(state)
    theirs = source.state_dict()
    assert torch.equal(state["backbone.net.blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert torch.equal(state["decoder.vit.blocks.3.mlp.fc2.weight"], theirs["blocks.3.mlp.fc2.weight"])
    assert torch.equal(state["decoder.vit.norm.weight"], theirs["norm.weight"])
    # The pseudo-inverse of the bicubic resize of a patch: what the old kernel sees in a patch, the new one sees in the
    # resized patch.
    unit_patches = torch.eye(14 * 14).view(196, 1, 14, 14)
    resize = F.interpolate(unit_patches, size=(16, 16), mode="bicubic", antialias=True, align_corners=False)
    kernel = theirs["patch_embed.proj.weight"].flatten(2) @ torch.linalg.pinv(resize.flatten(1).T)
    found = state["backbone.net.patch_embed.proj.weight"].flatten(2)
    torch.testing.assert_close(found, kernel, atol=1e-5, rtol=1e-4)  # a pseudo-inverse of condition 10 in fp32
    grid = theirs["pos_embed"].transpose(1, 2).unflatten(2, (4, 4))
    grid = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(state["backbone.net.pos_embed"], grid.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-6)


def test_a_start_from_transformers_dinov3(tmp_path):
    config = eomt_config(DINOV3, **TINY)
    published = from_m2f(EOMT_DINOV3, model.build(config, 5).state_dict())
    save_file(as_base(published), tmp_path / "base.safetensors")
    backbone = Component(**{**config.backbone.model_dump(), "pretrained": str(tmp_path / "base.safetensors")})
    state = load_backbone(backbone, shapes_of(model.build(config, 5)))
    again = from_m2f(EOMT_DINOV3, state)
    assert again and all(torch.equal(x, published[name]) for name, x in again.items())
    without_bias = {**backbone.model_dump(), "model": "vit_small_patch16_dinov3"}
    vit = Pyramid("vit_small_patch16_dinov3", 64, **TINY)
    shapes = {f"backbone.{name}": shape for name, shape in shapes_of(vit).items()}
    load_backbone(Component(**without_bias), shapes)  # biases of 0 are none
    base = as_base(published)
    base["layer.0.attention.v_proj.bias"] += 1
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match="has 1 biases of attention that the network lacks.*_qkvb"):
        load_backbone(Component(**without_bias), shapes)


def test_a_pyramid_starts_with_its_vit_alone(tmp_path):
    source = whole_vit("vit_base_patch16_224", img_size=64, **TINY)
    save_file(source.state_dict(), tmp_path / "mae.safetensors")
    vit = Pyramid("vit_base_patch16_224", 64, **TINY)
    shapes = {f"backbone.{name}": shape for name, shape in shapes_of(vit).items()}
    backbone = Component(
        name="vit",
        model="vit_base_patch16_224",
        img_size=64,
        num_classes=0,
        pretrained=str(tmp_path / "mae.safetensors"),
        **TINY,
    )
    state = load_backbone(backbone, shapes)
    assert set(state) == {name for name in shapes if name.startswith("backbone.net.")}
    assert torch.equal(state["backbone.net.pos_embed"], source.pos_embed)
