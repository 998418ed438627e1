"""The same training twice, by m2f and by transformers' Mask2Former with its own loss: what is learned per step and per minute.

    python benchmarks/learning_vs_transformers.py --preset small-semantic --data DIR [--init FILE] [--steps 300]

Both sides start from the same numbers (our network's, under transformers' names), see the same batches in the same order,
use AdamW with the same groups, schedule and clipping, and freeze the same parts. They differ in how they compute, and in the
random points of their losses. Steps alternate in one process; only training is timed. Both are judged by our network and
metric with their weights (that the networks agree is shown in tests/weights/test_transformers_oracle.py).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from m2f_cli import config
from m2f_cli.data.loader import Batch
from m2f_cli.inference.evaluate import headline
from m2f_cli.training import loop, run
from m2f_cli.training.optimizer import clip_gradients, settings
from m2f_cli.training.schedule import factor
from m2f_cli.weights.huggingface import to_tensors
from m2f_cli.weights.names import to_ours, to_theirs
from m2f_cli.weights.tables import HUGGINGFACE

BASIC = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3]}


def their_model(ours: run.Run, folder: Path) -> nn.Module:
    """transformers' network with our weights, frozen where ours is."""
    from safetensors.torch import save_file
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    model, loss = ours.settings.model, ours.settings.train.loss
    backbone, pixel, decoder = (part.options for part in (model.backbone, model.pixel_decoder, model.decoder))
    tree = Mask2FormerConfig(
        backbone_config=ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=BASIC[backbone["depth"]], layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=pixel["dim"], mask_feature_size=pixel["mask_dim"], hidden_dim=decoder["dim"],
        encoder_feedforward_dim=pixel["ffn_dim"], encoder_layers=pixel["num_layers"],
        decoder_layers=decoder["num_layers"] + 1, num_attention_heads=decoder["num_heads"],
        dim_feedforward=decoder["ffn_dim"], num_queries=decoder["num_queries"], num_labels=len(ours.train_data.categories),
        class_weight=loss.class_weight, mask_weight=loss.mask_weight, dice_weight=loss.dice_weight,
        no_object_weight=loss.no_object_weight, train_num_points=loss.num_points, oversample_ratio=loss.oversample_ratio,
        importance_sample_ratio=loss.importance_ratio,
    )  # fmt: skip
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
            {"params": group, "weight_decay": setting.weight_decay, "multiplier": setting.multiplier,
             "lr": self.train.optimizer.learning_rate}
            for setting, group in groups.items()
        ]  # fmt: skip

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
        output = self.model(
            pixel_values=batch.images_BCHW, mask_labels=masks, class_labels=[target.labels_N for target in batch.targets]
        )
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
        return to_ours(HUGGINGFACE, load_file(self.folder / "state" / "model.safetensors"), shapes)


def pad(masks_NHW: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.pad(masks_NHW, (0, width - masks_NHW.shape[2], 0, height - masks_NHW.shape[1]))


def our_step(ours: run.Run, batch: Batch, rate: float) -> float:
    loop.set_learning_rate(ours.parts.optimizer, rate)
    loop.train_mode(ours.parts.model)
    losses, _ = loop.step(ours.parts, [batch])
    ours.parts.optimizer.step()
    return float(sum(losses.values()))


def judged(ours: run.Run, state: dict[str, Tensor] | None) -> float:
    """The headline figure of our network, with other weights for the moment."""
    own = {name: tensor.clone() for name, tensor in ours.parts.model.state_dict().items()}
    if state is not None:
        ours.parts.model.load_state_dict(state)
    value = ours.evaluate().figures[headline(ours.settings.task)]
    ours.parts.model.load_state_dict(own)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-semantic")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", help="weights of the backbone; random without")
    parser.add_argument("--freeze", action="append", default=[])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--limit", type=int, default=None, help="pictures to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for a machine that does other things")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--json", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    overrides = [f"train.iterations={arguments.steps}", f"train.batch={arguments.batch}", f"train.seed={arguments.seed}"]
    tree = config.load(arguments.preset, [*overrides, *arguments.overrides])
    options = run.Options(
        data=arguments.data, init=arguments.init or "random", init_partial=True, freeze=tuple(arguments.freeze),
        micro_batch=arguments.batch, val_pictures=arguments.limit,
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(arguments.seed)
        ours = run.prepare(tree, Path(scratch) / "run", options, torch.device("cpu"), run.Listener())
        theirs = Theirs(ours, Path(scratch))
        start = to_theirs(HUGGINGFACE, {"decoder.query_feat.weight": ours.parts.model.decoder.query_feat.weight})
        assert all(torch.equal(tensor, dict(theirs.model.named_parameters())[name]) for name, tensor in start.items())
        seconds = {"ours": 0.0, "theirs": 0.0}
        losses = {"ours": math.nan, "theirs": math.nan}
        batches = iter(ours.loader)
        for number in range(arguments.steps):
            batch = next(batches)
            rate = tree.train.optimizer.learning_rate * factor(number, arguments.steps, tree.train.schedule)
            for side, step in (("ours", lambda: our_step(ours, batch, rate)), ("theirs", lambda: theirs.step(batch, rate))):
                began = clock()
                losses[side] = step()
                seconds[side] += clock() - began
            if (number + 1) % arguments.every == 0 or number + 1 == arguments.steps:
                values = {"ours": judged(ours, None), "theirs": judged(ours, theirs.state())}
                rows.append({"step": number + 1, **{
                    side: {"figure": values[side], "minutes": seconds[side] / 60, "loss": losses[side]} for side in values
                }})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    name = headline(tree.task)
    print(f"\n{'step':>6} {'m2f ' + name:>12} {'minutes':>8} {'transformers ' + name:>18} {'minutes':>8}")
    for row in rows:
        print(f"{row['step']:>6} {row['ours']['figure']:>12.2f} {row['ours']['minutes']:>8.2f} "
              f"{row['theirs']['figure']:>18.2f} {row['theirs']['minutes']:>8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
