"""One training step of Mask2Former on a CPU, ours against transformers', same weights, one run on one machine.

    python benchmarks/train_step_vs_transformers.py [--size 512 512] [--rounds 5] [--threads 2] [--precision bf16]
        [--sides theirs ours ours:keep ours:keep:compile theirs:keep] [--profile]

Forward, loss and backward of Swin-T, batch 1, 8 targets, fp32 or all under bf16 autocast, without drop path and
without the optimiser. A side is "theirs" (transformers) or "ours", and what is different about it: "keep" (`m2f
--keep-memory`: glibc keeps freed memory), "compile" (a few operators, as `m2f predict --compile`). The
others are compared with the first side. Each runs in a process of its own, so memory can be told; rounds alternate.
Losses differ by their random points; that the gradients are the same given the same points is shown in
tests/loss/test_transformers_oracle.py. On a machine that does other things only the CPU time of --threads 1 means
anything.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from pathlib import Path

from forward_vs_transformers import make_model

TARGETS = 8


def make_targets(height: int, width: int):
    """Eight rectangles, each inside a vertical strip of its own: labels and boolean masks."""
    import torch

    owner_HW = torch.full((height, width), -1, dtype=torch.int16)
    for i in range(TARGETS):
        left, right = i * width // TARGETS, (i + 1) * width // TARGETS
        owner_HW[height * i // 20 : height * (i + 10) // 20, left + 2 : right - 2] = i
    labels = torch.arange(TARGETS) * 16
    return labels, owner_HW[None] == torch.arange(TARGETS)[:, None, None]


def ours(folder: str, labels, masks):
    from m2f_cli.config.schema import LossConfig
    from m2f_cli.inference.load_network import load_model
    from m2f_cli.loss import Criterion
    from m2f_cli.structures.targets import Target

    model = load_model(folder).model.requires_grad_().train()  # of what tells training apart, all but drop path
    for module in model.modules():
        if hasattr(module, "drop_path_rate"):
            module.drop_path_rate = 0.0
    criterion = Criterion(
        133,
        LossConfig(
            class_weight=2,
            mask_weight=5,
            dice_weight=5,
            no_object_weight=0.1,
            num_points=12544,
            oversample_ratio=3,
            importance_ratio=0.75,
        ),
    )

    def loss_of(images):
        size = images.shape[-2:]
        losses = criterion(model(images), [Target(labels, masks[:, : size[0], : size[1]])], tuple(size))
        return sum(losses.values())

    return model, loss_of


def theirs(folder: str, labels, masks):
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    masks = masks.float()

    def loss_of(images):
        size = images.shape[-2:]
        output = model(pixel_values=images, class_labels=[labels], mask_labels=[masks[:, : size[0], : size[1]]])
        return output.loss.sum()

    return model, loss_of


def make_side(side: str, folder: str, arguments: argparse.Namespace):
    """The work of one side, in its process."""
    name, *settings = side.split(":")
    if "keep" in settings:
        from m2f_cli.runtime.allocator import keep_memory

        keep_memory()
    if "compile" in settings:
        from m2f_cli.inference.compile import compile_operators

        compile_operators()
    import torch

    from m2f_cli.benchmark.process import Work

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, loss_of = {"ours": ours, "theirs": theirs}[name](folder, *make_targets(*arguments.size))
    images = torch.randn(1, 3, *arguments.size, generator=torch.Generator().manual_seed(1))

    def step(images):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = loss_of(images)
        loss.backward()
        return loss.item()

    def tell(loss):
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
        if arguments.profile:
            with torch.profiler.profile() as profile:
                step(images)
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
            print(table, file=sys.stderr)
        return {"loss": loss, "norm": norm}

    return Work(functools.partial(step, images), functools.partial(step, images[..., :64, :64]), tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sides", nargs="+", default=["theirs", "ours"])
    parser.add_argument("--profile", action="store_true", help="print where a second step of each side spends its time")
    arguments = parser.parse_args()

    from m2f_cli.benchmark.interleaved import race
    from m2f_cli.benchmark.machine import summary
    from m2f_cli.benchmark.statistics import between, ratio, share

    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        make = functools.partial(make_side, folder=folder, arguments=arguments)
        sides = race({name: functools.partial(make, name) for name in arguments.sides}, arguments.rounds)
    height, width = arguments.size
    print(
        f"Mask2Former Swin-T, forward + loss + backward, 1 x 3 x {height} x {width}, {TARGETS} targets, "
        f"{arguments.precision}, {summary(arguments.threads, arguments.rounds)}"
    )
    print(f"{'':18}{'seconds':>9}{'CPU':>9}{'growth MiB':>12}{'loss':>10}{'gradient':>10}{'memory':>9}{'time':>7}")
    first = sides[arguments.sides[0]]
    for name, side in sides.items():
        time = ratio(side.seconds, first.seconds)
        median, cpu = statistics.median(side.seconds), statistics.median(side.cpu_seconds)
        growth = "not told" if side.first["growth"] is None else f"{side.first['growth']:.0f}"
        print(
            f"{name:18}{median:9.3f}{cpu:9.3f}{growth:>12}"
            f"{side.first['loss']:10.3f}{side.first['norm']:10.3f}"
            f"{share(side.first['growth'], first.first['growth']):>9}{time['value']:7.2f}{between(time)}"
        )


if __name__ == "__main__":
    main()
