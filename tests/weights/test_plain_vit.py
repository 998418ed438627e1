"""EoMT and PMT under the names of others: full-size lists, the table of names, transformers as an oracle."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import read_list
from helpers.vits import eomt_config, shapes_of, table_of
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, EomtConfig, EomtDinov3Config
from transformers import EomtDinov3ForUniversalSegmentation as TheirDinov3
from transformers import EomtForUniversalSegmentation as Theirs
from weights.models import CATEGORIES, config_of

from m2f_cli import model
from m2f_cli.errors import ExportError, WeightsError
from m2f_cli.inference.load_network import load_model, save_huggingface
from m2f_cli.weights.infer_config import infer, num_classes
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.vit_tables import EOMT, EOMT_DINOV3, HF_EOMT, HF_EOMT_DINOV3, HF_EOMT_GATED

V06, V07 = read_list("v06_param_names_eomt"), read_list("v07_hf_key_lists")
NOT_IN_NETWORKS = ("pixel_mean", "pixel_std", "criterion.empty_weight")


def on_meta(entries) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape, *_ in entries}


# --- full-size lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", V06["entries"])
def test_published_names_of_full_size_models(name):
    tensors = on_meta(V06["entries"][name])
    table = table_of(tensors)
    assert table is (EOMT_DINOV3 if "dinov3" in name else EOMT)
    view = OurView(table, tensors)
    config, notes = infer(view)
    assert config.method == "eomt" and notes == [] and num_classes(view) == 133
    network = model.build_shapes(config, 133)
    assert sum(p.numel() for p in network.parameters()) == V06["parameters"][name]["total"]
    assert config.backbone.options["model"].split("_")[1] in name
    back = from_m2f(table, to_m2f(table, tensors, shapes_of(network)))
    assert {key: tuple(x.shape) for key, x in back.items()} == {
        key: tuple(x.shape) for key, x in tensors.items() if not key.endswith(NOT_IN_NETWORKS)
    }


@pytest.mark.parametrize("name", V07["lists"])
def test_names_of_transformers_of_full_size_models(name):
    tensors = on_meta(V07["lists"][name])
    table = table_of(tensors)
    wanted = HF_EOMT_DINOV3 if "dinov3" in name else HF_EOMT_GATED if "giant" in name else HF_EOMT
    assert table is wanted
    config, _ = infer(OurView(table, tensors))
    network = model.build_shapes(config, num_classes(OurView(table, tensors)))
    back = from_m2f(table, to_m2f(table, tensors, shapes_of(network)))
    assert {key for key in tensors if not key.startswith("criterion.")} == set(back)


def test_a_released_file_of_the_giant_has_its_gated_networks_in_one_tensor():
    name = next(name for name in V07["lists"] if "giant" in name)
    tensors = on_meta(V07["lists"][name])
    for key in [key for key in tensors if ".gate_proj." in key]:
        gate, up = tensors.pop(key), tensors.pop(key.replace("gate_proj", "up_proj"))
        tensors[key.replace("gate_proj", "weights_in")] = torch.cat([gate, up])
        down = key.replace("gate_proj", "down_proj")
        tensors[down.replace("down_proj", "weights_out")] = tensors.pop(down)
    table = table_of(tensors)
    config, _ = infer(OurView(table, tensors))
    shapes = shapes_of(model.build_shapes(config, 133))
    placed = to_m2f(table, tensors, shapes)
    gated = [name for name in shapes if ".mlp.fc" in name]
    assert len(gated) == 4 * 40  # weights and biases of two layers in each of 40 blocks
    assert {name: tuple(placed[name].shape) for name in gated} == {name: shapes[name] for name in gated}


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"), [("eomt", EOMT, HF_EOMT), ("eomt_dinov3", EOMT_DINOV3, HF_EOMT_DINOV3)]
)
def test_the_tables_agree_with_the_table_of_names(kind, ours, theirs):
    """published → ours → transformers gives the very pairs of names that the reference lists."""
    rows = [row for row in read_list("v07_hf_name_table")[kind] if row[1] and not row[0].startswith("criterion.")]
    config = eomt_config() if kind == "eomt" else eomt_config("vit_small_patch16_dinov3_qkvb")
    found = set()
    for name in model.build_shapes(config, 7).state_dict():
        published, others = ours.find(name)[0], theirs.find(name)[0]
        if len(published) == len(others):
            found |= {(one, other, None) for one, other in zip(published, others, strict=True)}
        else:
            [one] = published
            found |= {(one, other, part) for part, other in enumerate(others)}
    assert found == {tuple(row) for row in rows}


# --- transformers -----------------------------------------------------------------------------------------------------

SIZE = 64
COMMON = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "num_blocks": 3,
    "num_queries": 12,
    "id2label": {i: f"class {i}" for i in range(7)},
}
KINDS = {
    "dinov2": lambda more: Theirs(EomtConfig(**COMMON | more, layer_norm_eps=1e-6)),
    "dinov2-gated": lambda more: Theirs(EomtConfig(**COMMON | more, layer_norm_eps=1e-6, use_swiglu_ffn=True)),
    "dinov3": lambda more: TheirDinov3(EomtDinov3Config(**COMMON | more, layer_norm_eps=1e-5, intermediate_size=100)),
}


def theirs_of(kind: str, seed: int = 0, **more) -> torch.nn.Module:
    """A network of transformers whose every number matters: fresh ones have registers of 0 and layer scales of 1."""
    torch.manual_seed(seed)
    network = KINDS[kind](more).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in network.named_parameters():
            if "lambda1" in name:
                x.uniform_(0.25, 0.85, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                x.uniform_(0.8, 1.2, generator=generator)
            elif name.endswith("bias"):
                x.normal_(0, 0.1, generator=generator)
            elif x.dim() >= 2 and "token" not in name and "position" not in name and "query" not in name:
                x.normal_(0, x[0].numel() ** -0.5, generator=generator)
            else:
                x.normal_(0, 1.0 if name.startswith("query") else 0.6, generator=generator)
        network.attn_mask_probs.fill_(0)
    return network


def images(seed: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_same_answers(theirs, ours, size: int = SIZE) -> None:
    for seed in range(3):
        expected, found = theirs(images(seed, size)), ours(images(seed, size))
        for mine, their in (
            (found.render(), expected.masks_queries_logits),
            (found.last.class_logits_BQK, expected.class_queries_logits),
        ):
            assert their.std() > 0.5
            torch.testing.assert_close(mine, their, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, 96, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_their_folder_in_our_network(tmp_path, kind, size):
    theirs = theirs_of(kind, image_size=size)
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert [category.name for category in loaded.categories] == [f"class {i}" for i in range(7)]
    assert_same_answers(theirs, loaded.model, size)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@torch.no_grad()
def test_masks_of_their_network_are_ours(tmp_path, kind):
    theirs = theirs_of(kind)
    theirs.attn_mask_probs.fill_(1)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).model
    ours.decoder.masked_prediction = True
    assert_same_answers(theirs, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_our_network_in_their_class_and_back_again(tmp_path, kind):
    theirs_of(kind).save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    folder = save_huggingface(tmp_path / "ours", loaded.model, loaded.config, loaded.categories)
    auto = TheirDinov3 if kind == "dinov3" else Theirs
    again, report = auto.from_pretrained(folder, output_loading_info=True)
    assert {name: keys for name, keys in report.items() if keys} == {}
    assert_same_answers(again.eval(), loaded.model)
    assert load_model(folder).config.model == loaded.config.model
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor).__name__.startswith("Eomt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_upscale_blocks": 1}, "num_upscale_blocks = 1; m2f has networks of this kind with 2"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps = 0.001"),
    ],
)
def test_a_variant_is_one_sentence(tmp_path, change, says):
    Theirs(EomtConfig(**{**COMMON, **change})).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=says):
        load_model(tmp_path)


def test_what_transformers_does_not_have_is_one_sentence(tmp_path):
    for change, says in (
        ({"img_size": [64, 96]}, "takes squares"),
        ({"model": "vit_base_patch16_siglip_224"}, "has a DINO"),
    ):
        network = eomt_config(**change)
        settings = config_of().model_copy(update={"model": network})
        with pytest.raises(ExportError, match=says):
            save_huggingface(tmp_path / "x", model.build(network, len(CATEGORIES)), settings, CATEGORIES)


def test_a_file_of_transformers_alone_says_that_the_size_is_unknown(tmp_path):
    save_file({name: x.clone() for name, x in theirs_of("dinov2").state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"is 48 wide and 4 blocks deep; the published ones are 384 x 12"):
        load_model(tmp_path / "model.safetensors")


def test_a_backbone_alone_is_no_network(tmp_path):
    tensors = {"embeddings.cls_token": torch.zeros(1, 1, 384), "embeddings.register_tokens": torch.zeros(1, 4, 384)}
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match="of no format that m2f knows"):
        load_model(tmp_path / "base.safetensors")
