"""EoMT and PMT against numbers of the published implementations (golden fixtures v01 to v03).

Tolerance: 8 times the distance of the published fp32 from fp64, as in test_golden.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from helpers.golden_files import for_files
from helpers.parts import weights_of
from helpers.vits import golden_vit, images_of, pmt_config, shapes_of, table_of

from m2f_cli.config.schema import LossConfig
from m2f_cli.loss import Criterion
from m2f_cli.model import build
from m2f_cli.structures.predictions import Tokens
from m2f_cli.structures.targets import Target
from m2f_cli.weights.key_mapping import from_m2f, to_m2f

NOISE_FACTOR = 8
EOMT = ("v01", "v02_")
ALL = (*EOMT, "v03_")


def assert_close(ours: torch.Tensor, file, name: str, run: str, noise_of: str = "") -> None:
    noise = file.info["fp32_noise"][run][noise_of or name.removeprefix(f"{run}/")]
    theirs = file.tensors[name]
    assert ours.shape == theirs.shape
    difference = float((ours - theirs).abs().max())
    assert difference <= NOISE_FACTOR * noise["max_abs_diff"], f"{name}: off by {difference:.2e}"


def assert_predictions(prediction, file, run: str) -> None:
    """Compare what the file has of a run with masks."""
    last, compared = len(prediction.layers) - 1, 0
    for i in range(last + 1):
        for kind, ours in (("class", prediction.layers[i].class_logits_BQK), ("mask", prediction.render(layer=i))):
            name = f"out/{kind}_logits.{i}" if run == "masked" else f"{run}/out/{kind}_logits.{i}"
            if name in file.tensors:
                assert_close(ours, file, name, run)
                compared += 1
    assert compared


def recorded(draws: Iterable[torch.Tensor]):
    """A source of random numbers that gives recorded ones, each in the shape that is asked for."""
    left: Iterator[torch.Tensor] = iter(draws)

    def rand(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        drawn = next(left)
        assert tuple(drawn.shape) == tuple(shape)
        return drawn

    return rand


def annealed(model, file, run: str):
    """Let a model draw what the file recorded, with its probabilities; the first block, always masked, draws nothing
    in the published code and anything here."""
    model.decoder.attn_mask_probs.copy_(torch.tensor([1.0, 0.55, 0.0]))
    first = file.tensors[f"{run}/rng/0"]
    model.decoder.rand = recorded([torch.zeros_like(first), first, file.tensors[f"{run}/rng/1"]])
    return model.train()


@pytest.fixture
def masks(monkeypatch):
    """The masks of attention that each block was given, (B, Q, S)."""
    seen = []

    def watch(model, file):
        queries, others = file.info["config"]["num_queries"], file.info["config"]["prefix_tokens"]
        for block in model.decoder.blocks:

            def hook(_, args, options):
                whole = options["attn_mask"].clone()
                part = whole[:, 0, :queries, queries + others :]
                seen.append(part.clone())
                part.fill_(True)
                assert whole.all(), "only queries and patches are masked"

            block.register_forward_pre_hook(hook, with_kwargs=True)
        return seen

    return watch


@for_files(*ALL)
@torch.no_grad()
def test_prediction_without_masks_is_the_published_one(golden_file):
    prediction = golden_vit(golden_file)(images_of(golden_file))
    assert len(prediction.layers) == 1
    assert_close(prediction.render(), golden_file, "plain/out/mask_logits.0", "plain")
    assert_close(prediction.last.class_logits_BQK, golden_file, "plain/out/class_logits.0", "plain")


@for_files(*ALL)
@torch.no_grad()
def test_masked_prediction_is_the_published_one_with_masks_bit_for_bit(golden_file, masks):
    model = golden_vit(golden_file)
    model.decoder.masked_prediction = True
    seen = masks(model, golden_file)
    prediction = model(images_of(golden_file))
    assert_predictions(prediction, golden_file, "masked")
    for i, mask_BQS in enumerate(seen):
        assert torch.equal(mask_BQS, golden_file.tensors[f"mid/attn_mask.{i}"])


@for_files(*EOMT)
@torch.no_grad()
def test_annealed_prediction_in_training_is_the_published_one(golden_file):
    model = annealed(golden_vit(golden_file), golden_file, "annealed")
    assert_predictions(model(images_of(golden_file)), golden_file, "annealed")


@for_files("v03_")
@torch.no_grad()
def test_training_over_a_frozen_encoder_is_the_published_one(golden_file, masks):
    model = annealed(golden_vit(golden_file), golden_file, "train")
    seen = masks(model, golden_file)
    assert_predictions(model(images_of(golden_file)), golden_file, "train")
    for i, mask_BQS in enumerate(seen):
        assert torch.equal(mask_BQS, golden_file.tensors[f"train/mid/attn_mask.{i}"])
    state = from_m2f(table_of(weights_of(golden_file.tensors)), model.state_dict())
    after = weights_of(golden_file.tensors, "train/after/")
    assert after
    for name, expected in after.items():
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=1e-6, msg=name)  # means of 58 values of 3


@for_files("v03_")
@torch.no_grad()
def test_levels_of_the_encoder_are_the_published_ones(golden_file):
    tokens = golden_vit(golden_file).backbone(images_of(golden_file))
    assert (tokens.num_prefix, tokens.grid, len(tokens.levels)) == (5, (4, 6), 4)
    for i, level in enumerate(tokens.levels):
        if f"mid/encoder_level.{i}" in golden_file.tensors:
            assert_close(level, golden_file, f"mid/encoder_level.{i}", "masked")


@for_files("v03b")
@torch.no_grad()
def test_decoder_with_positions_of_its_own_over_given_tokens(golden_file, masks):
    model = golden_vit_decoder(golden_file)
    tokens = Tokens([golden_file.tensors[f"in/encoder_level.{i}"] for i in range(4)], 5, (4, 6))
    prediction = model.decoder(model.pixel_decoder(tokens))
    assert_close(prediction.render(), golden_file, "plain/out/mask_logits.0", "plain")
    model.decoder.masked_prediction = True
    seen = masks(model, golden_file)
    assert_predictions(model.decoder(model.pixel_decoder(tokens)), golden_file, "masked")
    for i, mask_BQS in enumerate(seen):
        assert torch.equal(mask_BQS, golden_file.tensors[f"mid/attn_mask.{i}"])


def golden_vit_decoder(file):
    """The network of a file without an encoder: its weights, and random ones for that."""
    model = build(pmt_config(), file.info["config"]["num_classes"])
    weights = weights_of(file.tensors)
    shapes = {name: shape for name, shape in shapes_of(model).items() if not name.startswith("backbone.")}
    model.load_state_dict(to_m2f(table_of(weights), weights, shapes), strict=False)
    return model.eval()


@for_files(*EOMT)
def test_training_step_has_the_published_losses_matches_and_gradients(golden_file):
    tensors, step = golden_file.tensors, golden_file.info["training_step"]
    draws = [tensors[f"rng/{i:03}"] for i in range(18)]
    targets = [Target(tensors[f"in/target.{i}.labels"], masks_NHW=tensors[f"in/target.{i}.masks"]) for i in range(2)]
    model = golden_vit(golden_file).train()
    model.decoder.attn_mask_probs.copy_(torch.tensor([1.0, 0.55, 0.0]))
    model.decoder.rand = recorded([torch.zeros_like(draws[0]), *draws[:2]])
    # per output: matcher points of each image, candidates and rest of all pairs; m2f matches all outputs first
    outputs = [draws[2 + 4 * i : 6 + 4 * i] for i in range(4)]
    points = [points for _, _, *rest in outputs for points in rest]
    loss = LossConfig(
        num_points=112,
        oversample_ratio=3.0,
        importance_ratio=0.75,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
    )
    criterion = Criterion(7, loss, rand=recorded([*(x for output in outputs for x in output[:2]), *points]))
    prediction = model(images_of(golden_file))
    losses = criterion(prediction, targets, (64, 96))
    assert_published_losses(losses, step)
    torch.testing.assert_close(sum(losses.values()), tensors["loss/total"], atol=0, rtol=8e-7)  # 8 rounding errors
    sum(losses.values()).backward()
    assert_published_gradients(model, golden_file)


def assert_published_losses(losses, step) -> None:
    kinds = {"mask": ("mask", 5), "dice": ("dice", 5), "ce": ("cross_entropy", 2)}
    for ours, (theirs, weight) in kinds.items():
        for i, suffix in enumerate(("_0", "_1", "_2", "")):
            name = f"losses/train_loss_{theirs}" + (f"_block_{i - 3}" if suffix else "")
            expected = torch.tensor(weight * step["losses"][name])
            torch.testing.assert_close(losses[f"loss_{ours}{suffix}"], expected, atol=1e-6, rtol=1e-6, msg=name)


def assert_published_gradients(model, file) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    theirs = from_m2f(table_of(weights_of(file.tensors)), gradients)
    compared = [name for name in file.tensors if name.startswith("grad/")]
    assert len(compared) > 10
    for name in compared:
        noise = file.info["grad_noise"][name.removeprefix("grad/")]
        difference = float((theirs[name.removeprefix("grad/")] - file.tensors[name]).abs().max())
        assert difference <= NOISE_FACTOR * noise["max_abs_diff"], f"{name}: off by {difference:.2e}"


@for_files("v02_")
def test_rotary_positions_are_the_published_ones(golden_file):
    """Also when queries and prefix tokens, which are not rotated, stand before the patches."""
    decoder = golden_vit(golden_file).decoder
    sin, cos = decoder.rope.get_embed((4, 6)).chunk(2, dim=-1)
    # angles up to 2π in another order of products
    torch.testing.assert_close(cos, golden_file.tensors["mid/rope_cos"], atol=2e-6, rtol=0)
    torch.testing.assert_close(sin, golden_file.tensors["mid/rope_sin"], atol=2e-6, rtol=0)
