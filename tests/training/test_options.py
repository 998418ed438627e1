"""Every option of `m2f train` reaches the run: each test fails if its option is ignored."""

from __future__ import annotations

import functools

import pytest
import torch

from m2f_cli import cli
from m2f_cli.evaluation import evaluate as evaluation
from m2f_cli.inference.load_network import load_model
from m2f_cli.training import loop, prepare, run
from m2f_cli.training import resume as state
from m2f_cli.training.run import TrainOutcome

SMALL = [
    "train",
    "--preset",
    "tiny",
    "--init",
    "random",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--batch",
    "2",
    *(
        word
        for pair in (
            "model.backbone.depth=18",
            "model.pixel_decoder.num_layers=1",
            "data.scenes.train=8",
            "data.scenes.val=2",
            "data.scenes.size=[64, 96]",
            "train.loss.num_points=32",
            "train.iterations=2",
            "train.schedule.warmup_iterations=0",
        )
        for word in ("--set", pair)
    ),
]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """`prepared(*options)` is the run that `m2f train` would begin."""
    monkeypatch.chdir(tmp_path)

    def prepare(*options: str) -> run.Run:
        seen = []

        def stop_here(made, *_):
            seen.append(made)
            return TrainOutcome(made.folder, 0, 0, {}, 0, 0.0)

        with monkeypatch.context() as patch:
            patch.setattr(run, "execute", stop_here)
            assert cli.run([*SMALL, "--out", f"run{len(list(tmp_path.iterdir()))}", *options]) == 0
        return seen[0]

    return prepare


def one_step(made: run.Run) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    stream = iter(made.loader)
    return loop.train_step(made.parts, [next(stream) for _ in range(made.parts.accumulate)])[0]


def gradients(made: run.Run) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in made.parts.model.named_parameters() if p.grad is not None}


def test_frozen_parts_get_no_gradients(prepared):
    made = prepared("--freeze", "backbone", "--freeze", "decoder.class_embed")
    one_step(made)
    trained = gradients(made)
    assert not [name for name in trained if name.startswith(("backbone.", "decoder.class_embed."))]
    assert any(name.startswith("pixel_decoder.") for name in trained) and "decoder.query_feat.weight" in trained
    assert {part: count for part, count, _ in made.trainable()}["backbone"] == 0


def test_class_weights_change_the_class_loss_alone(prepared):
    weights = [5.0, *[0.2] * 8]
    plain, weighted = prepared(), prepared("--set", f"train.class_weights={weights}")
    assert weighted.parts.criterion.class_weights_K.tolist() == pytest.approx([*weights, 0.1])
    losses = one_step(plain), one_step(weighted)
    assert abs(losses[0]["loss_ce"] - losses[1]["loss_ce"]) > 0.01 * losses[0]["loss_ce"]
    assert losses[0]["loss_dice_0"] == losses[1]["loss_dice_0"], "only classes are weighted"


def test_class_weights_of_other_classes_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, "--set", "train.class_weights=[1.0, 2.0]"]) == 2
    assert "train.class_weights has 2 numbers for 9 classes" in capsys.readouterr().err


def test_repeat_factor_sampling(prepared):
    """LVIS: a class in a share f of the images asks for sqrt(threshold / f) times."""
    assert prepared().loader.stream.repeats is None
    made = prepared("--set", "train.repeat_factor_threshold=1.0", "--set", "data.scenes.train=40")
    labels = [{segment.label for segment in record.read_annotation().segments} for record in made.train_data.records]
    share = {label: sum(label in each for each in labels) / 40 for label in set().union(*labels)}
    expected = [max(share[label] ** -0.5 for label in each) for each in labels]
    assert made.loader.stream.repeats.tolist() == pytest.approx(expected)
    drawn = sum(len(made.loader.stream.epoch(number)) for number in range(200)) / 200
    assert drawn == pytest.approx(sum(expected), rel=0.01) and drawn > 44


def test_the_average_is_what_is_evaluated_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def evaluate(segmenter, records, metrics, **options):
        seen.append({name: tensor.clone() for name, tensor in segmenter.model.state_dict().items()})
        return evaluation.evaluate(segmenter, records, metrics, **options)

    monkeypatch.setattr(prepare, "evaluate", evaluate)
    assert cli.run([*SMALL, "--set", "train.ema_decay=0.999", "--set", "train.iterations=3", "--out", "r"]) == 0
    kept = tmp_path / "r" / "checkpoints"
    tree = state.read(kept / "resume.pt")
    average, own = tree["ema"]["average"], tree["model"]
    assert tree["ema"]["updates"] == 3
    name = "decoder.class_embed.weight"
    assert (average[name] - own[name]).abs().max() > 1e-5
    for found in (seen[-1], *(load_model(kept / f"{n}.safetensors").model.state_dict() for n in ("best", "last"))):
        assert all(torch.equal(found[name], average[name]) for name in average)


def test_recomputed_activations_give_the_same_gradients(prepared):
    """The same gradients, with layers that are run again on the way back."""
    found = []
    for options in ((), ("--checkpoint-activations",)):
        made = prepared(*options)
        calls = []
        made.parts.model.decoder.layers[0].ffn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        one_step(made)
        found.append((len(calls), gradients(made)))
    assert [calls for calls, _ in found] == [1, 2]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_computes_in_the_chosen_precision(prepared, precision, dtype):
    made = prepared("--precision", precision)
    seen = []
    made.parts.model.backbone.stages[3].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    assert all(loss.dtype == torch.float32 for loss in one_step(made).values())
    assert seen == [dtype]
    assert all(gradient.dtype == torch.float32 for gradient in gradients(made).values())


def test_batch_and_micro_batch(prepared):
    made = prepared("--batch", "6", "--micro-batch", "3")
    assert made.parts.accumulate == 2 and len(next(iter(made.loader))) == 3
    made = prepared("--batch", "auto", "--set", "train.batch=4")
    assert made.parts.accumulate * len(next(iter(made.loader))) == 4
    assert any("--batch auto: " in note for note in made.notes)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_losses(prepared, monkeypatch):
    """The compiled network has the losses of the other. The backend that needs no compiler is enough to prove it."""
    plain = one_step(prepared())
    calls = []

    def counted(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    compiled = one_step(prepared("--compile"))
    assert calls, "nothing was compiled"
    for name, loss in plain.items():
        torch.testing.assert_close(compiled[name], loss, rtol=1e-3, atol=1e-3)


def test_fine_tuning_with_other_classes_and_queries(prepared):
    """From nine panoptic classes and 12 queries to the four things and 15 queries: what fits is taken, row by row."""
    first = prepared()
    first.save()
    source = str(first.folder)
    made = prepared("--init", source, "--set", "model.decoder.num_queries=15", "--set", "task=instance")
    ours, theirs = made.parts.model.state_dict(), first.parts.model.state_dict()
    for i, category in enumerate(made.train_data.categories):
        [there] = [k for k, c in enumerate(first.train_data.categories) if c.name == category.name]
        assert torch.equal(ours["decoder.class_embed.weight"][i], theirs["decoder.class_embed.weight"][there])
    assert len(ours["decoder.class_embed.weight"]) == 4 + 1
    assert torch.equal(ours["decoder.class_embed.bias"][-1], theirs["decoder.class_embed.bias"][-1]), "no object"
    assert torch.equal(ours["decoder.query_feat.weight"][:12], theirs["decoder.query_feat.weight"])
    assert ours["decoder.query_feat.weight"].shape[0] == 15
    same = [n for n in ours if n.startswith(("backbone.", "pixel_decoder."))]
    assert same and all(torch.equal(ours[name], theirs[name]) for name in same)
    assert any("12 queries, the network 15" in note for note in made.notes)
    assert all(loss.isfinite() for loss in one_step(made).values())
