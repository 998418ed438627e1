"""A GPU is waited for where a number is needed on the host, and nowhere else.

Two ways to see it without a GPU: tensors of the meta device have no numbers, so that everything that needs one fails
(`item`, `cpu`, `bool`, `nonzero`, a mask as an index); and calls that would wait are counted.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers.parts import randomise, tiny_config
from helpers.small_segmenter import random_image, small_segmenter
from torch.overrides import TorchFunctionMode

from m2f_cli.config import presets as configuration
from m2f_cli.data.loader import Batch
from m2f_cli.inference import mask_rendering as rendering
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.loss import Pairs, make_criterion, matcher, normaliser
from m2f_cli.loss.matcher import Matching
from m2f_cli.model import build
from m2f_cli.model.pilots import piloting_of
from m2f_cli.ops import target_sampling
from m2f_cli.structures.targets import Target
from m2f_cli.training import optimizer
from m2f_cli.training.loop import losses_for, to_host
from m2f_cli.training.optimizer import clip_gradients

RESNET = {"name": "resnet", "depth": 50, "stem": "basic", "norm": "frozen_bn", "stem_channels": 16, "width": 8}
SIZE = (64, 96)


class Waits(TorchFunctionMode):
    """Names the calls inside that need numbers of a tensor on the host.

    `int` is none of them: a band looks its rows up in a table on the host.
    """

    NAMES = ("cpu", "tolist", "item", "nonzero", "unique", "bincount", "__bool__", "__float__", "masked_select")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        is_masked = name in ("__getitem__", "__setitem__") and any(
            isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8)
            for part in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in self.NAMES or is_masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def published_loss(preset="coco-panoptic-r50"):
    loss = configuration.load(preset).train.loss
    return loss.model_copy(update={"num_points": 64}) if loss.masks == "points" else loss


def batch_on(device: str, form: str, counts=(3, 0)) -> Batch:
    """An image with and one without targets."""
    height, width = SIZE
    targets = []
    for count in counts:
        labels_N = torch.zeros(count, dtype=torch.long, device=device)
        if form == "masks":
            targets.append(Target(labels_N, torch.zeros(count, height, width, dtype=torch.bool, device=device)))
        else:
            targets.append(Target(labels_N, owner_HW=torch.full(SIZE, -1, dtype=torch.int16, device=device)))
    return Batch(torch.zeros(len(counts), 3, height, width, device=device), targets, ["a", "b"])


def first_come(costs: list[torch.Tensor]) -> Matching:
    """In place of the solver, whose one transfer is allowed: query i for target i."""
    pairs = []
    for cost_LQN in costs:
        layers, _, count = cost_LQN.shape
        numbers_LM = torch.zeros(layers, count, dtype=torch.long, device=cost_LQN.device)
        pairs.append(Pairs(numbers_LM, numbers_LM))
    return Matching(pairs, 0)


def losses_of(model, criterion, batch: Batch, piloting=None):
    num_masks = normaliser(batch.targets)
    pilots = None if piloting is None else piloting(batch.targets, batch.padded_size)
    prediction = model(batch.images_BCHW, *([] if pilots is None else [pilots]))
    return losses_for(criterion, prediction, pilots, batch, num_masks)


def mask2former(preset: str, **backbone):
    return tiny_config(**backbone), published_loss(preset)


def with_pilots():
    published = configuration.load("mpformer-coco-instance-r50-50ep").model
    plain = tiny_config()
    decoder = plain.decoder.model_copy(update={"piloted": True})
    update = {"method": "mpformer", "decoder": decoder, "piloting": published.piloting}
    return plain.model_copy(update=update), published_loss()


def maskformer():
    config = configuration.load("maskformer-ade20k-r50")
    return config.model, config.train.loss


CASES = {
    "swin": lambda: mask2former("coco-panoptic-r50"),
    "resnet": lambda: mask2former("coco-panoptic-r50", **RESNET),
    "pilots": with_pilots,
    "maskformer": maskformer,
}


# Maskformer has both forms of targets in the default suite; the other networks share their loss.
MASKS = [(case, "masks") for case in CASES] + [("maskformer", "owner")]
OWNERS = [pytest.param(case, "owner", marks=pytest.mark.slow) for case in CASES if case != "maskformer"]


@pytest.mark.parametrize(("case", "form"), [*MASKS, *OWNERS])
def test_network_and_loss_never_wait(case, form, monkeypatch):
    """Forward, costs, losses, their gradients and the gradients' norm, of a network without numbers."""
    monkeypatch.setattr(matcher, "assign", first_come)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    model_config, loss_config = CASES[case]()
    with torch.device("meta"):
        model = build(model_config, 6).train()
        criterion = make_criterion(6, loss_config)
    losses = losses_of(model, criterion, batch_on("meta", form), piloting_of(model_config, 6))
    sum(losses.values()).backward()
    assert clip_gradients(model, 0.01).device.type == "meta"


def test_meta_tensors_would_tell():
    """What the test above rests on."""
    x = torch.zeros(3, device="meta")
    for waits in (x.sum().item, x.cpu, x.tolist, x.any().__bool__, x.nonzero, lambda: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()


def test_matching_waits_once_and_the_step_once_more(monkeypatch):
    """However many images and layers: all costs go to the host together, and all losses."""
    monkeypatch.setattr(target_sampling, "choose", lambda device: "pixels")  # as on a GPU
    model = build(tiny_config(), 6).train()
    criterion = make_criterion(6, published_loss())
    with Waits() as waits:
        losses = losses_of(model, criterion, batch_on("cpu", "owner", counts=(3, 0, 2, 4)))
    assert waits.found == ["cpu"]
    sum(losses.values()).backward()
    with Waits() as waits:
        to_host(losses, clip_gradients(model, 0.01))
    assert waits.found == ["tolist"]


def waits_of(segmenter, raw, task, **thresholds) -> list[str]:
    with Waits() as waits:
        segmenter.finish(raw, task, **thresholds)
    return waits.found


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_post_processing_waits_no_more_for_many_bands_or_segments(task, monkeypatch):
    segmenter = small_segmenter()
    [raw] = segmenter.infer([segmenter.prepare(random_image())])
    allowed = {
        "panoptic": ["cpu", "cpu", "nonzero", "bincount", "tolist", "tolist", "tolist", "cpu"],
        "semantic": ["cpu"],
    }[task]
    few, all_of_them = ({"object_threshold": 0.9}, {"object_threshold": 0.0}) if task == "panoptic" else ({}, {})
    assert sorted(waits_of(segmenter, raw, task, **few)) == sorted(allowed)
    monkeypatch.setattr(rendering, "BAND_ELEMENTS", 1)  # bands of 8 rows
    assert sorted(waits_of(segmenter, raw, task, **all_of_them)) == sorted(allowed)


def test_objects_wait_for_their_masks_alone(monkeypatch):
    """Masks leave the device in chunks of queries, as they are turned into run lengths; nothing else repeats."""
    segmenter = small_segmenter()
    [raw] = segmenter.infer([segmenter.prepare(random_image())])
    monkeypatch.setattr(rendering, "BAND_ELEMENTS", 1)
    chunks = {}
    for at_once in (100, 1):
        monkeypatch.setattr("m2f_cli.inference.postprocess.QUERIES_AT_ONCE", at_once)
        found = waits_of(segmenter, raw, "instance", score_threshold=0.0, top_k=100)
        chunks[at_once] = found.count("cpu")
        assert len(found) - found.count("cpu") <= 6, found
    queries = len(raw.class_logits_QK)
    assert chunks == {100: 4, 1: 3 + queries}  # probabilities, places, qualities, and one per chunk


def test_the_answer_is_checked_with_one_wait():
    segmenter = small_segmenter()
    prepared = segmenter.prepare(random_image())
    with Waits() as waits:
        segmenter.infer([prepared, dataclasses.replace(prepared)])
    assert waits.found == ["__bool__"]


# --- what is chosen on CUDA, tried on a CPU ---------------------------------------------------------------------------


def three_steps(fused: bool | None, monkeypatch) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    monkeypatch.setattr(optimizer, "is_fused", lambda _: fused)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    adamw = optimizer.make_optimizer(model, configuration.load("coco-panoptic-r50").train.optimizer)
    for _ in range(3):
        one_more_step(model, adamw)
    return model, adamw


def one_more_step(model, adamw) -> None:
    adamw.zero_grad()
    model(torch.arange(8.0).view(2, 4)).square().sum().backward()
    adamw.step()


def test_the_fused_optimiser_is_the_same(monkeypatch):
    (plain, _), (fused, adamw) = three_steps(None, monkeypatch), three_steps(True, monkeypatch)
    assert all(group["fused"] for group in adamw.param_groups)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("saved", [None, True])
def test_a_run_may_move_between_devices(saved, monkeypatch):
    """The fused optimiser stays fused, and the other one does not become it, whatever saved the state."""
    (_, before), (_, after) = three_steps(saved, monkeypatch), three_steps(not saved or None, monkeypatch)
    after.load_state_dict(before.state_dict())
    assert {group["fused"] for group in after.param_groups} == {not saved or None}
    assert {group["fused"] for group in before.param_groups} == {saved}
    step = next(iter(after.state.values()))["step"]
    assert float(step) == 3 and step.dtype == torch.float32
    after.step()


def test_the_optimiser_is_fused_where_pytorch_has_that():
    gpu, cpu, other = (SimpleNamespace(device=torch.device(name)) for name in ("cuda:1", "cpu", "mps"))
    assert optimizer.is_fused([gpu, gpu]) is True and optimizer.is_fused([cpu, cpu]) is True
    assert optimizer.is_fused([gpu, cpu]) is None and optimizer.is_fused([other]) is None


def test_channels_last_changes_the_memory_format_alone():
    plain = small_segmenter()
    model = randomise(build(tiny_config(**RESNET), len(plain.categories)), seed=1)
    prepared = plain.prepare(random_image())
    answers = []
    for channels_last in (False, True):
        segmenter = Segmenter(copy.deepcopy(model), plain.config, plain.categories, channels_last=channels_last)
        weight = segmenter.model.backbone.get_parameter(wide_weight(segmenter.model.backbone))
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        answers.append(segmenter.infer([prepared])[0])
    torch.testing.assert_close(*(raw.class_logits_QK for raw in answers), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(raw.masks.features_CHW for raw in answers), atol=1e-4, rtol=1e-4)


def wide_weight(backbone) -> str:
    """The name of a weight whose two formats differ."""
    return next(name for name, weight in backbone.named_parameters() if weight.dim() == 4 and min(weight.shape) > 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_not_waited_for(monkeypatch):
    """The real thing: PyTorch itself refuses calls that wait. Constants of these shapes are made before."""
    monkeypatch.setattr(matcher, "assign", first_come)
    model, criterion = build(tiny_config(), 6).cuda().train(), make_criterion(6, published_loss()).cuda()
    batch = batch_on("cuda", "owner")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sum(losses_of(model, criterion, batch).values()).backward()
            clip_gradients(model, 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad is not None for parameter in model.decoder.class_embed.parameters())
