"""The same training twice, by m2f and by transformers' Mask2Former with its own loss: figures per step and per minute.

    python benchmarks/learning_vs_transformers.py --preset small-semantic --data DIR [--init FILE] [--steps 300]

Both sides start from the same numbers (our network's, under transformers' names), see the same batches in the same
order, use AdamW with the same groups, schedule and clipping, and freeze the same parts. They differ in how they compute
and in the random points of the losses. Steps alternate in one process; only training is timed. Both are judged by our
network and metric with their weights (that the networks agree is shown in tests/weights/test_transformers_oracle.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from m2f_cli.config import presets as config
from m2f_cli.data.loader import Batch
from m2f_cli.evaluation.evaluate import headline
from m2f_cli.training import loop, run
from m2f_cli.training.optimizer import clip_gradients, settings
from m2f_cli.training.schedule import factor
from m2f_cli.weights.key_mapping import to_m2f
from m2f_cli.weights.key_tables import HUGGINGFACE
from m2f_cli.weights.write_huggingface import to_tensors

BASIC = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}


def their_model(ours: run.Run, folder: Path) -> nn.Module:
    """transformers' network with our weights, frozen where ours is."""
    from safetensors.torch import save_file
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    model, loss = ours.settings.model, ours.settings.train.loss
    backbone, pixel, decoder = (part.options for part in (model.backbone, model.pixel_decoder, model.decoder))
    tree = Mask2FormerConfig(
        backbone_config=ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=BASIC[backbone["depth"]],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=pixel["dim"],
        mask_feature_size=pixel["mask_dim"],
        hidden_dim=decoder["dim"],
        encoder_feedforward_dim=pixel["ffn_dim"],
        encoder_layers=pixel["num_layers"],
        decoder_layers=decoder["num_layers"] + 1,
        num_attention_heads=decoder["num_heads"],
        dim_feedforward=decoder["ffn_dim"],
        num_queries=decoder["num_queries"],
        num_labels=len(ours.train_data.categories),
        class_weight=loss.class_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
        no_object_weight=loss.no_object_weight,
        train_num_points=loss.num_points,
        oversample_ratio=loss.oversample_ratio,
        importance_sample_ratio=loss.importance_ratio,
    )
    tree.save_pretrained(folder)
    save_file(to_tensors(ours.parts.model.state_dict(), model), folder / "model.safetensors", metadata={"format": "pt"})
    theirs, report = Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return theirs


class Theirs:
    """Their training, with our schedule."""

    def __init__(self, ours: run.Run, folder: Path):
        self.train, self.folder = ours.settings.train, folder
        self.model = their_model(ours, folder)
        self.ours = ours.parts.model
        self.optimizer = torch.optim.AdamW(self.groups(), betas=(0.9, 0.999), eps=1e-8)

    def groups(self) -> list[dict]:
        """Each tensor with the learning rate and decay that ours has; what ours does not train is frozen."""
        wanted = settings(self.ours, self.train.optimizer)
        places = {}
        for name in wanted:
            names, _ = HUGGINGFACE.find(name)
            places.update(dict.fromkeys(names, wanted[name]))
        tensors = dict(self.model.named_parameters())
        # In memory transformers may spell names differently from its files; files are what the tables know.
        spelled = dict(zip(self.file_names(), tensors, strict=True))
        groups: dict = {}
        for theirs, name in spelled.items():
            setting = places.get(theirs)
            tensors[name].requires_grad_(setting is not None)
            if setting is not None:
                groups.setdefault(setting, []).append(tensors[name])
        assert sum(map(len, groups.values())) == len(places), "a tensor was not found"
        return [
            {
                "params": group,
                "weight_decay": setting.weight_decay,
                "multiplier": setting.multiplier,
                "lr": self.train.optimizer.learning_rate,
            }
            for setting, group in groups.items()
        ]

    def file_names(self) -> list[str]:
        """The names of the parameters in a file, in the order of `named_parameters`: found by writing numbers."""
        from safetensors.torch import load_file

        state = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        with torch.no_grad():
            for number, parameter in enumerate(self.model.parameters()):
                parameter.fill_(number)
        self.model.save_pretrained(self.folder / "numbered")
        numbered = load_file(self.folder / "numbered" / "model.safetensors")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[name])
        owners = {int(tensor.flatten()[0]): name for name, tensor in numbered.items() if self.is_parameter(name)}
        return [owners[number] for number in range(len(state))]

    @staticmethod
    def is_parameter(name: str) -> bool:
        return not name.endswith(("running_mean", "running_var", "num_batches_tracked", "empty_weight"))

    def step(self, batch: Batch, rate: float) -> float:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # frozen, as ours
        self.optimizer.zero_grad(set_to_none=True)
        height, width = batch.padded_size
        masks = [pad(target.masks().float(), height, width) for target in batch.targets]
        labels = [target.labels_N for target in batch.targets]
        output = self.model(pixel_values=batch.images_BCHW, mask_labels=masks, class_labels=labels)
        loss = output.loss.sum()
        loss.backward()
        clip_gradients(self.model, self.train.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Tensor]:
        """Their weights under our names."""
        from safetensors.torch import load_file

        self.model.save_pretrained(self.folder / "state")
        shapes = {name: tuple(tensor.shape) for name, tensor in self.ours.state_dict().items()}
        return to_m2f(HUGGINGFACE, load_file(self.folder / "state" / "model.safetensors"), shapes)


def pad(masks_NHW: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.pad(masks_NHW, (0, width - masks_NHW.shape[2], 0, height - masks_NHW.shape[1]))


class Ours:
    """Our training, a step at a time."""

    def __init__(self, prepared: run.Run):
        self.run = prepared
        self.parts = prepared.parts

    def step(self, batch: Batch, rate: float) -> float:
        loop.set_learning_rate(self.parts.optimizer, rate)
        loop.train_mode(self.parts.model)
        losses, _ = loop.train_step(self.parts, [batch])
        self.parts.optimizer.step()
        return float(sum(losses.values()))

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.parts.model.state_dict().items()}

    def judge(self, state: dict[str, Tensor]) -> float:
        """The headline figure of our network with these weights, which it has for the moment only."""
        own = self.state()
        self.parts.model.load_state_dict(state)
        value = self.run.evaluate().figures[headline(self.run.settings.task)]
        self.parts.model.load_state_dict(own)
        return value


def compare(ours: Ours, theirs: Theirs, every: int, clock: Callable[[], float]) -> Iterator[dict]:
    """Train both; after each `every` steps and at the end, what each has learned in how many minutes."""
    train = ours.run.settings.train
    sides = {"ours": ours, "theirs": theirs}
    seconds = dict.fromkeys(sides, 0.0)
    for number, batch in enumerate(itertools.islice(ours.run.loader, train.iterations), 1):
        rate = train.optimizer.learning_rate * factor(number - 1, train.iterations, train.schedule)
        losses = {}
        for name, side in sides.items():
            began = clock()
            losses[name] = side.step(batch, rate)
            seconds[name] += clock() - began
        if number % every == 0 or number == train.iterations:
            found = {
                name: {"figure": ours.judge(side.state()), "minutes": seconds[name] / 60, "loss": losses[name]}
                for name, side in sides.items()
            }
            yield {"step": number, **found}


def show(rows: list[dict], name: str) -> None:
    print(f"\n{'step':>6} {'m2f ' + name:>12} {'minutes':>8} {'transformers ' + name:>18} {'minutes':>8}")
    for row in rows:
        ours, theirs = row["ours"], row["theirs"]
        print(
            f"{row['step']:>6} {ours['figure']:>12.2f} {ours['minutes']:>8.2f} "
            f"{theirs['figure']:>18.2f} {theirs['minutes']:>8.2f}"
        )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-semantic")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", help="weights of the backbone; random without")
    parser.add_argument("--freeze", action="append", default=[])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--limit", type=int, default=None, help="images to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for a machine that does other things")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--json", type=Path, help="where to write the table")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    given = {"iterations": arguments.steps, "batch": arguments.batch, "seed": arguments.seed}
    tree = config.load(arguments.preset, [f"train.{k}={v}" for k, v in given.items()] + arguments.overrides)
    options = run.TrainOptions(
        data=arguments.data,
        init=arguments.init or "random",
        init_partial=True,
        freeze=tuple(arguments.freeze),
        micro_batch=arguments.batch,
        val_pictures=arguments.limit,
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        ours = Ours(run.prepare(tree, Path(scratch) / "run", options, torch.device("cpu"), run.Listener()))
        theirs = Theirs(ours.run, Path(scratch))
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        for row in compare(ours, theirs, arguments.every, clock):
            rows.append(row)
            print(json.dumps(row), flush=True)
    show(rows, headline(tree.task))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
