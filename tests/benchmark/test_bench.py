"""Benchmarks: what they compute is right and what two sides do is the same; no test here looks at a clock."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.parts import randomise, tiny_config
from helpers.small_segmenter import NAMES, random_image, small_segmenter
from helpers.vits import eomt_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from m2f_cli.benchmark import interleaved as race
from m2f_cli.benchmark import process, worker
from m2f_cli.benchmark import report as results
from m2f_cli.benchmark import statistics as stats
from m2f_cli.benchmark import workloads as ours
from m2f_cli.benchmark.case import Case, image_size, network_size, training_size
from m2f_cli.benchmark.chart import chart
from m2f_cli.benchmark.flops import parameters_of
from m2f_cli.benchmark.model_under_test import KEPT, Plausible, class_logits, fixed_size, load_subject, plausible, share
from m2f_cli.benchmark.peers import huggingface
from m2f_cli.benchmark.peers import published_recipe as published
from m2f_cli.benchmark.stages import Stages
from m2f_cli.benchmark.synthetic_batch import OBJECTS, training_batch
from m2f_cli.config import presets as configuration
from m2f_cli.config.published import measured_in
from m2f_cli.config.schema import ResizeConfig
from m2f_cli.errors import ConfigError, ExportError, M2FError
from m2f_cli.inference import postprocess
from m2f_cli.inference.base import Wrapper
from m2f_cli.inference.compile import compile_parts
from m2f_cli.inference.mask_rendering import MaskLogits
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build
from m2f_cli.runtime import allocator
from m2f_cli.structures.categories import from_names

CPU = torch.device("cpu")
SIZE = (64, 96)
CASE = Case(size=SIZE, images=2)


# --- the published order ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), task=st.sampled_from(["panoptic", "instance", "semantic"]), alone=st.booleans())
def test_the_published_order_gives_what_ours_gives(seed, task, alone):
    generator = torch.Generator().manual_seed(seed)
    features = nn.functional.interpolate(torch.randn(1, 9, 3, 4, generator=generator), size=(12, 16), mode="bicubic")[0]
    size = tuple(torch.randint(5, 90, (2,), generator=generator).tolist())
    sizes = {"padded": (48, 64), "valid": (41, 59), "size": size}
    classes = torch.randn(9, 5, generator=generator) * 4
    categories = from_names(["a", "b", "c", "d"], things=["a", "b"])
    tasks = ("semantic",) if alone else ("panoptic", "instance", "semantic")
    test = small_segmenter().config.test.model_copy(update={"tasks": tasks, "object_threshold": 0.5, "top_k": 20})
    found = published.finish(task, classes, published.Rendered(features * 4, **sizes), categories, test)
    masks = MaskLogits(torch.eye(9), features * 4, **sizes)
    if task == "semantic":
        mine = postprocess.semantic(classes, masks, categories, resize_scores=alone)
        assert (mine.labels_HW != found.labels_HW).sum() <= 2  # ties to the last digit
    elif task == "panoptic":
        mine = postprocess.panoptic(
            classes, masks, categories, object_threshold=0.5, overlap_threshold=test.overlap_threshold
        )
        assert [(s.id, s.label) for s in mine.segments] == [(s.id, s.label) for s in found.segments]
        assert (mine.ids_HW != found.ids_HW).sum() <= 2
    else:
        mine = postprocess.instances(classes, masks, categories, top_k=20, only_things=not alone)
        np.testing.assert_allclose(mine.scores_N, found.scores_N, atol=1e-5)
        assert abs(int(mine.masks_NHW().sum()) - int(found.masks_NHW().sum())) <= 4


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter():
    """Six classes, tiny, on images as they are."""
    made = small_segmenter("coco-panoptic-r50")
    test = made.config.test.model_copy(update={"resize": ResizeConfig()})
    return Segmenter(made.model, made.config.model_copy(update={"test": test}), made.categories)


@pytest.fixture(scope="module")
def folder(segmenter, tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "model"
    share(segmenter, path)
    return path


def done(workload) -> dict[str, np.ndarray]:
    workload.touch()
    stages = Stages(CPU, live=True)
    with stages.watching(workload.parts, workload.methods):
        workload.run(stages)
    workload.stages = stages.seconds
    return workload.answer()


@pytest.mark.parametrize(
    ("what", "stages"),
    [
        ("forward", {"backbone", "pixel decoder", "decoder", "render"}),
        ("picture", {"preprocess", "backbone", "pixel decoder", "decoder", "render", "post"}),
        ("predict", {"read", "preprocess", "backbone", "pixel decoder", "decoder", "render", "post", "write"}),
        ("post", {"render", "post"}),
        ("load", set()),
    ],
)
def test_both_sides_do_the_same(segmenter, folder, what, stages):
    from m2f_cli import plugins

    case = dataclasses.replace(CASE, what=what)
    subject = plausible(segmenter)
    mine = plugins.get("workloads", what)(case, subject)
    theirs = plugins.get("peers", "huggingface")(case, subject, folder)
    answers = done(mine), done(theirs)
    assert set(mine.stages) == stages
    assert set(theirs.stages) == (stages - {"render"} if what == "forward" else stages)  # their decoder renders
    assert mine.images == theirs.images
    assert answers[0].keys() == answers[1].keys()
    for name in answers[0]:
        apart = stats.difference(answers[1][name], answers[0][name])
        # their image processor resizes nothing here, but rounds differently when it normalises
        assert apart.get("share", 0) < 0.01 and apart.get("largest", 0) < 5e-3, (name, apart)
    if what == "post":
        assert len(np.unique(answers[0]["segment ids"])) > 2


@pytest.mark.parametrize("what", ["forward", "picture", "predict", "post", "load", "train"])
def test_a_plain_vit_has_a_peer_for_squares_of_one_size(tmp_path, what):
    from m2f_cli import plugins

    preset = configuration.load("eomt-coco-panoptic-s-640", ["test.resize.fit=64"])
    config = preset.model_copy(update={"model": eomt_config(depth=2, first_block=1, num_blocks=1)})
    config = config.model_copy(update={"train": small_training(preset.train)})
    subject = Segmenter(randomise(build(config.model, len(NAMES))), config, from_names(NAMES, things=NAMES[:3]))
    share(subject, tmp_path / "model")
    case = Case(what=what, images=1, **({"size": (64, 64)} if what == "train" else {"image": (48, 64)}))
    mine = plugins.get("workloads", what)(case, subject)
    theirs = plugins.get("peers", "huggingface")(case, subject, tmp_path / "model")
    answers = done(mine), done(theirs)
    assert answers[0].keys() == answers[1].keys()
    for name in answers[0]:
        apart = stats.difference(answers[1][name], answers[0][name])
        # their image processor resizes and rounds differently
        assert apart.get("share", 0) < 0.02 and apart.get("largest", 0) < 1e-4, (name, apart)
    if what in ("forward", "train"):
        with pytest.raises(ConfigError, match=r"takes images of 64 x 64 only, not of 64 x 96.*--size 64 64"):
            huggingface.workload(dataclasses.replace(case, size=SIZE), subject, tmp_path / "model")


def small_training(settings):
    """Few points in the loss."""
    return settings.model_copy(update={"loss": settings.loss.model_copy(update={"num_points": 64})})


def test_predict_at_full_speed_writes_what_the_stages_write(segmenter):
    predict = ours.Predict(dataclasses.replace(CASE, what="predict"), segmenter)
    predict.run(Stages(CPU, live=False))
    predict.run(Stages(CPU, live=True))
    quick, slow = (
        sorted(p.name for p in (predict.files[0].parent / f"run-{n}" / "panoptic").glob("*.png")) for n in (0, 1)
    )
    assert quick == slow == ["picture-000.png", "picture-001.png"]


def test_images_of_ones_own(segmenter, folder, tmp_path):
    ours.write_images(tmp_path / "in", (50, 70), 3)
    case = Case(what="predict", size=SIZE, images=2, source=str(tmp_path / "in"))
    sides = ours.Predict(case, segmenter), huggingface.workload(case, segmenter, folder)
    for each in sides:
        answer = done(each)
        assert answer["segment ids"].shape == (2 * 50 * 70,)  # all of them are compared
        assert each.images == 2 and [path.parent for path in each.files] == [tmp_path / "in"] * 2
    assert sides[0].sizes == [((50, 70), (64, 96))] * 2  # what was measured, not what is usual
    assert len(list((tmp_path / "in").iterdir())) == 3  # nothing is written beside a user's images


def test_evaluate_gives_figures(segmenter):
    evaluate = ours.Evaluate(dataclasses.replace(CASE, what="eval"), segmenter)
    evaluate.run(Stages(CPU, live=False))
    answer = done(evaluate)
    network = {"preprocess", "backbone", "pixel decoder", "decoder", "render", "post"}
    assert set(evaluate.stages) == {"read", "score"} | network
    assert evaluate.last.images == 2 and 0 <= answer["pq"][0] <= 100
    with pytest.raises(ConfigError, match="nothing of transformers"):
        huggingface.workload(dataclasses.replace(CASE, what="eval"), segmenter, None)


def test_random_weights_find_as_much_as_trained_ones():
    logits = class_logits(100, 134)
    assert int((logits.softmax(-1)[:, :-1].max(-1).values > 0.8).sum()) == KEPT
    assert torch.equal(logits, class_logits(100, 134))
    made = small_segmenter("coco-panoptic-r50")
    wrapped = plausible(made)
    [raw] = wrapped.infer([wrapped.prepare(random_image())])
    assert isinstance(wrapped, Plausible) and torch.equal(raw.class_logits_QK, class_logits(12, len(NAMES) + 1))


def test_training_step_changes_both_sides(segmenter, folder):
    import copy

    from m2f_cli.benchmark.train_step import Train

    full = configuration.load("coco-panoptic-r50")
    trained = copy.deepcopy(segmenter)
    loss = full.train.loss.model_copy(update={"num_points": 64})
    trained.config = trained.config.model_copy(update={"train": full.train.model_copy(update={"loss": loss})})
    case = dataclasses.replace(CASE, what="train", batch=2)
    before = trained.model.decoder.class_embed.weight.detach().clone()
    mine, theirs = Train(case, trained), huggingface.workload(case, segmenter, folder)
    done(mine), done(theirs)
    wanted = {"backbone", "pixel decoder", "decoder", "loss", "backward", "optimizer"}
    assert set(mine.stages) == wanted == set(theirs.stages)
    assert not torch.equal(before, trained.model.decoder.class_embed.weight)
    assert theirs.net.config.use_auxiliary_loss  # all layers are supervised, as ours are


def test_batch_norms_that_are_constants_are_so_on_both_sides(segmenter, tmp_path):
    resnet = {"name": "resnet", "depth": 18, "stem": "basic", "norm": "frozen_bn", "stem_channels": 8, "width": 8}
    model = tiny_config(**resnet)
    config = segmenter.config.model_copy(update={"model": model})
    subject = Segmenter(build(model, len(NAMES)), config, segmenter.categories)
    share(subject, tmp_path / "model")
    theirs = huggingface.workload(dataclasses.replace(CASE, what="train"), subject, tmp_path / "model")
    norms = [module for module in theirs.net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and theirs.net.training and not any(module.training for module in norms)
    assert not any(parameter.requires_grad for module in norms for parameter in module.parameters())
    before = [module.running_mean.clone() for module in norms]
    done(theirs)
    assert all(torch.equal(old, module.running_mean) for old, module in zip(before, norms, strict=True))


def test_a_step_with_pilots_has_no_peer(segmenter, folder):
    case = dataclasses.replace(CASE, what="train")
    piloting = configuration.load("mpformer-coco-instance-r50-50ep").model.piloting
    model = segmenter.config.model.model_copy(update={"piloting": piloting})
    piloted = Segmenter(segmenter.model, segmenter.config.model_copy(update={"model": model}), segmenter.categories)
    with pytest.raises(ConfigError, match="trains with pilots"):
        huggingface.workload(case, piloted, folder)


def test_an_exported_file_runs_as_it_is(segmenter):
    class File(Segmenter):
        def __init__(self):
            self.config, self.categories, self.device, self.model = segmenter.config, segmenter.categories, CPU, None
            self.source = "a.onnx"

        def outputs(self, batch):
            assert [tuple(each.pixels_CHW.shape) for each in batch] == [(3, *SIZE)] * 2
            return {"class_logits": torch.zeros(2, 12, 7), "mask_logits": torch.ones(2, 12, 16, 24)}

    case = dataclasses.replace(CASE, batch=2)
    work = ours.forward(case, File())
    answer = done(work)
    assert work.images == 2 and answer["class logits"].shape == (12, 7) and answer["mask logits"].shape == (12, 16, 24)
    assert isinstance(ours.forward(case, segmenter), ours.Forward) and parameters_of(None) == {}
    for function in (compile_parts, lambda each: share(each, Path("nowhere"))):
        with pytest.raises(ConfigError, match="exported file"):
            function(File())
    with pytest.raises(ConfigError, match="--engine onnx"):
        load_subject(Case(engine="onnx"))


def test_an_exported_file_of_one_size_is_timed_at_that_size(segmenter):
    config = segmenter.config
    assert network_size(Case(), config, (256, 384)) == network_size(Case(size=(256, 384)), config, (256, 384))
    assert network_size(Case(), config, (256, 384)) == (256, 384) != network_size(Case(), config)
    with pytest.raises(ConfigError, match="takes images of 256 x 384, not of 64 x 64"):
        network_size(Case(size=(64, 64)), config, (256, 384))
    assert fixed_size(segmenter) is None
    segmenter = Wrapper(SimpleNamespace(description=SimpleNamespace(size=(256, 384))))
    assert fixed_size(segmenter) == (256, 384)


def test_training_batch_has_the_objects_it_promises():
    images, targets = training_batch(2, size=SIZE, classes=5)
    assert images.shape == (2, 3, *SIZE) and len(targets) == 2
    assert targets[0].masks().flatten(1).any(1).tolist() == [True] * OBJECTS and int(targets[0].labels_N.max()) < 5


def test_sizes_are_those_of_the_preset_unless_somebody_says_otherwise():
    cityscapes, ade = configuration.load("cityscapes-swin-t"), configuration.load("ade20k-swin-t")
    assert image_size(Case(), cityscapes) == network_size(Case(), cityscapes) == (1024, 2048)
    assert image_size(Case(), ade) == (512, 683) and network_size(Case(), ade)[1] % 32 == 0
    assert training_size(Case(), cityscapes) == (512, 1024)
    odd = Case(size=(65, 100))
    assert network_size(odd, cityscapes) == training_size(odd, cityscapes) == (96, 128)


# --- the race ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, segmenter):
    """A preset of one's own: the tiny network, with the classes of Cityscapes."""
    config = segmenter.config.model_copy(update={"data": configuration.load("cityscapes-swin-t").data})
    path = tmp_path / "tiny.yaml"
    path.write_text(configuration.dump(config, named=False))
    return str(path)


@pytest.mark.slow
def test_a_race_in_processes_of_their_own(tiny, tmp_path):
    seen = []
    case = Case(what="forward", preset=tiny, device="cpu", size=SIZE, threads=1, keep_memory=allocator.is_glibc())
    tree = race.bench(case, race.BenchOptions(rounds=3, warm_up=0, watched=1, peer="huggingface"), seen.append)
    keeping = {name: bool(side["allocator"]["settings"]) for name, side in tree["sides"].items()}
    assert keeping == {"m2f": allocator.is_glibc(), "huggingface": False}  # and it says so
    assert ("(m2f keeps freed memory)" in results.headline(tree)) == allocator.is_glibc()
    assert [(each.side, each.phase) for each in seen] == [
        (name, "timed") for name in ("huggingface", "m2f", "m2f", "huggingface", "huggingface", "m2f")
    ] + [("huggingface", "stages"), ("m2f", "stages")]
    assert tree["model"]["name"] == "tiny" and tree["network_input"] == [*SIZE] and tree["threads"] == 1
    assert all(len(side["seconds"]) == 3 for side in tree["sides"].values())
    assert tree["ratio"]["time"]["low"] <= tree["ratio"]["time"]["value"] <= tree["ratio"]["time"]["high"]
    assert tree["difference"]["mask logits"]["largest"] < 1e-3  # the same weights, converted
    assert set(tree["sides"]["m2f"]["stages"]) == {"backbone", "pixel decoder", "decoder", "render", "other"}
    assert tree["flops"]["total"] > 0 and tree["share_of_peak"] > 0
    files = results.write(tree, tmp_path / "out")
    name = "tiny-forward-fp32-64x96-b1-vs-huggingface"
    assert [path.name for path in files] == [f"{name}.json", f"{name}.png"]
    assert results.write(tree, tmp_path / "out")[0].name == f"{name}-2.json"


@pytest.mark.slow
def test_a_race_times_the_work_of_scripts_in_processes_of_their_own():
    work = functools.partial(process.Work, run=os.getpid, tell=functools.partial(dict.fromkeys, ("pid",)))
    found = race.race({"a": work, "b": work}, rounds=3)
    assert all(len(side.seconds) == len(side.cpu_seconds) == 3 for side in found.values())
    assert len({os.getpid(), *(side.first["pid"] for side in found.values())}) == 3
    assert all(side.first.keys() == {"growth", "pid"} for side in found.values())
    with pytest.raises(M2FError, match="'start' failed in the timed process: ValueError"):
        race.race({"a": work, "b": functools.partial(process.Work, run=functools.partial(int, "x"))}, rounds=1)


def test_sides_take_turns_at_being_first():
    assert [(number, side) for number, side in race.in_turns("ab", 2)] == [(0, "b"), (0, "a"), (1, "a"), (1, "b")]


def test_errors_of_a_worker_are_those_of_the_command():
    with pytest.raises(ConfigError, match="cityscapes-swin-t") as caught:
        race.bench(Case(preset="cityscapes-swin-tt", device="cpu"), race.BenchOptions())
    assert "Did you mean" in caught.value.hint
    assert isinstance(process.error_from("ExportError", "a", "b"), ExportError)
    assert str(process.error_from("MissingDependency", "a", "b")) == "a b"
    with pytest.raises(ConfigError, match="rounds = 0"):
        race.BenchOptions(rounds=0)


@pytest.mark.slow
def test_what_a_library_raises_is_one_sentence():
    with pytest.raises(M2FError, match="'start' failed in the timed process: RuntimeError") as caught:
        race.bench(Case(preset="small-panoptic", device="cpu", size=(0, 64)), race.BenchOptions())
    assert "M2F_DEBUG" in caught.value.hint
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes.\n\nmore")
    kind, message, hint = process.error_record(error, "run")
    assert (kind, message) == ("M2FError", "Not enough memory: DefaultCPUAllocator: can't allocate memory: 9 bytes.")
    assert "--size" in hint and process.error_record(MemoryError(), "run")[1] == "Not enough memory: no reason given."


def test_an_exported_file_is_described_as_it_is(segmenter):
    """Its own precision and device; code that its description names is not run to count FLOPs."""
    host = worker.Host.__new__(worker.Host)
    named = segmenter.config.model.backbone.model_copy(update={"name": "os:system"})
    model = segmenter.config.model.model_copy(update={"backbone": named})
    config = segmenter.config.model_copy(update={"model": model})
    host.segmenter = SimpleNamespace(config=config, precision="int8", source="a.onnx", categories=segmenter.categories)
    host.case, host.device, host.parameters = Case(model="a.onnx", size=SIZE), CPU, {}
    host.workload = SimpleNamespace(sizes=None)
    found = host.describe()
    assert found["precision"] == "int8" and found["matmul_peak"] is None and found["network_input"] == [*SIZE]
    assert found["flops"] is None and "os:system" in found["flops_missing"]


# --- results ----------------------------------------------------------------------------------------------------------


def a_tree(case: Case, *, peer: bool = False) -> dict:
    side = {
        "seconds": [0.5, 0.5],
        "median": 0.5,
        "low": 0.4,
        "high": 0.6,
        "images_per_second": 2.0,
        "cpu_seconds": 1.0,
        "other_cores": None,
        "joules_per_image": None,
        "stages": {"backbone": 0.3, "other": 0.1},
        "memory": {
            "resident_growth_mib": 512.0,
            "resident_peak_mib": 1024.0,
            "device_peak_mib": None,
            "device_reserved_mib": None,
        },
    }
    sides = {"m2f": side, **({"huggingface": {**side, "stages": None}} if peer else {})}
    return {
        "schema_version": 1,
        "what": case.what,
        "precision": case.precision,
        "batch": case.batch,
        "compile": False,
        "engine": None,
        "threads": 1,
        "rounds": 2,
        "warm_up": 1,
        "device": "a cpu",
        "protocol": "…",
        "model": {"name": case.preset, "source": "", "weights": "random", "parameters": {"backbone": 10**6}},
        "picture": [64, 96],
        "network_input": [64, 96],
        "matmul_peak": 1e9,
        "share_of_peak": 0.5,
        "machine": {
            "allocator": {"name": "glibc", "settings": {}},
            "torch": "2",
            "load_before": 0.1,
            "load_after": 0.2,
            "energy": "not told",
        },
        "sides": sides,
        "peer": {"name": "huggingface", "compile": False, "precision": "fp32", "batch": 1} if peer else None,
        "ratio": {"time": {"value": 2.0, "low": 1.9, "high": 2.1, "interval": "95 %"}} if peer else None,
        "difference": {"mask logits": {"largest": 1e-4}} if peer else None,
        "flops": {"backbone": 10**9, "total": 10**9, "not_counted": "…"},
    }


def test_what_people_read():
    tree = a_tree(Case(preset="a-b"), peer=True)
    columns, rows = results.rows(tree)
    assert [row[0] for row in rows] == ["m2f", "huggingface"] and all(len(row) == len(columns) for row in rows)
    assert rows[0][columns.index("J/image")] == "not told" and rows[0][columns.index("resident MiB")] == "512"
    assert results.stage_rows(tree)[1][0] == ["backbone", "300.0", "1.0", "1.0 M"]
    assert any("huggingface / m2f = 2.00 (95 %: 1.90 to 2.10)" in line for line in results.findings(tree))
    assert "1 x 3 x 64 x 96, fp32, on a cpu" in results.headline(tree)
    several = {**tree, "network_input": None, "sizes": [[[50, 60], [800, 1088]], [[9, 9], [96, 64]]], "batch": 2}
    assert "2 images, 2 at a time, that the network sees as 96 x 64 to 800 x 1088" in results.headline(several)
    assert "huggingface takes 1 image at a time, m2f 2" in results.findings(several)
    assert results.name_of(several) == "a-b-forward-fp32-several-sizes-b2-vs-huggingface" and chart(several)
    image = chart(tree)
    assert image.getpixel((200, 100)) == (0x4E, 0x79, 0xA7)  # the first stage of the first bar


def test_the_table_is_measured_once_for_each_work_and_read_again(monkeypatch, tmp_path):
    cases = []

    def fake(case, options, on_round=None):
        cases.append(case)
        if case.preset == "maskformer-ade20k-r50":
            raise ExportError("no.")
        return a_tree(case)

    monkeypatch.setattr(results, "bench", fake)
    names = ["mpformer-ade20k-r50", "cityscapes-swin-t", "maskformer-ade20k-r50", "cityscapes-swin-b-in1k"]
    names = [name for name in names if name in configuration.preset_names()]
    twin = configuration.load("cityscapes-swin-t").model_copy(update={"name": "twin"})
    presets = [*map(configuration.load, names), twin]
    out = tmp_path / "bench"
    case, options = Case(what="picture", precision="bf16", batch=7, size=(1, 1)), results.table_options("picture")
    found = dict(results.sweep(case, presets, out, options))
    assert [case.preset for case in cases] == names and all((c.batch, c.size) == (1, None) for c in cases)
    assert found["twin"]["model"]["measured_as"] == "cityscapes-swin-t"
    costs = measured_in(tmp_path).costs
    assert costs["twin"] == costs["cityscapes-swin-t"] == {"images_per_second": (2.0, "a cpu, 1 thread, bf16")}
    assert set(costs) == {*found} - {"maskformer-ade20k-r50"}
    if "maskformer-ade20k-r50" in names:
        assert isinstance(found["maskformer-ade20k-r50"], ExportError)
    with pytest.raises(ConfigError, match="'forward'"):
        results.table_options("forward")
    del cases[:]
    again = dict(results.sweep(case, presets, out, options, skip_existing=True))
    assert [case.preset for case in cases] == ["maskformer-ade20k-r50"]  # it had failed
    assert again.keys() == found.keys()
    assert again["twin"]["model"]["measured_as"] == "cityscapes-swin-t" and len([*out.glob("*.json")]) == len(found) - 1
    exact = dataclasses.replace(case, precision="fp32")
    assert dict(results.sweep(exact, presets[:1], out, options, skip_existing=True)) and len(cases) == 2  # other work
    compiled = dataclasses.replace(case, compile=True)
    assert dict(results.sweep(compiled, presets[:1], out, options, skip_existing=True)) and len(cases) == 3
    assert (results.table_options("picture", 3).rounds, results.table_options("train", None, 0).warm_up) == (3, 0)


def test_training_gives_memory_and_no_speed(tmp_path):
    tree = results.for_table(a_tree(Case(what="train", preset="a")))
    results.write(tree, tmp_path / "bench")
    assert measured_in(tmp_path).costs == {"a": {"train_memory_gib": (1.0, "a cpu, 1 thread")}}
    results.write(results.for_table({**a_tree(Case(what="picture", preset="a")), "device": "b"}), tmp_path / "bench")
    assert measured_in(tmp_path).costs["a"]["train_memory_gib"] == (1.0, "a cpu, 1 thread")  # and not "b"
