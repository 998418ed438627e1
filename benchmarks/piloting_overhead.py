"""What one group of pilots costs: a training step of MP-Former against one of Mask2Former, one run on one machine.

    python benchmarks/piloting_overhead.py [--preset coco-panoptic-swin-t] [--size 512 512] [--targets 8] [--groups 1]
                                           [--rounds 5] [--threads 2] [--device cpu]

Forward, losses and backward as the training loop does them, batch 1, fp32, random weights and rectangles as targets,
without the optimiser. Each side runs in a process of its own, so that memory can be measured; rounds alternate. On a
machine that does other things only the CPU time of --threads 1 means anything. The goal is a ratio of at most 1.15.
"""

from __future__ import annotations

import argparse
import functools
import statistics

GOAL = 1.15


def make_parts(arguments: argparse.Namespace, piloted: bool):
    """What `losses_of` needs, of a network with or without pilots."""
    import torch

    from m2f_cli.config import presets as config
    from m2f_cli.loss import Criterion
    from m2f_cli.model import build
    from m2f_cli.model.pilots import piloting_of
    from m2f_cli.training.loop import Parts

    settings = config.load(
        arguments.preset,
        [
            "model.backbone.drop_path=0",
            "train.precision=fp32",
            *([f"model.piloting.groups={arguments.groups}", "model.piloting.query_positions=false"] if piloted else []),
        ],
    )
    device = torch.device(arguments.device)
    model = build(settings.model, arguments.classes).to(device).train()
    criterion = Criterion(arguments.classes, settings.train.loss).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    piloting = piloting_of(settings.model, arguments.classes)
    return Parts(settings.train, model, model, criterion, None, scaler, None, device, 1, piloting=piloting)


def make_batch(height: int, width: int, targets: int, device: str):
    """Rectangles, each inside a vertical strip of its own, as an id map."""
    import torch

    from m2f_cli.data.loader import Batch
    from m2f_cli.structures.targets import Target

    owner_HW = torch.full((height, width), -1, dtype=torch.int16)
    for i in range(targets):
        left, right = i * width // targets, (i + 1) * width // targets
        owner_HW[height * i // (3 * targets) : height * (i + targets) // (3 * targets), left + 1 : right - 1] = i
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    return Batch(images, [Target(torch.arange(targets), owner_HW=owner_HW)], ["rectangles"]).to(device)


def make_side(piloted: bool, arguments: argparse.Namespace):
    """The work of one side, in its process."""
    import torch

    from m2f_cli.benchmark.process import Work
    from m2f_cli.training.loop import losses_of

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    parts = make_parts(arguments, piloted)
    batch = make_batch(*arguments.size, arguments.targets, arguments.device)
    small = make_batch(64, 64, min(8, arguments.targets), arguments.device)

    def step(batch):
        parts.model.zero_grad(set_to_none=True)
        loss = sum(losses_of(parts, batch, None).values())
        loss.backward()
        return loss.item()  # waits for the GPU

    def touch():
        step(small)
        if parts.device.type == "cuda":
            parts.model.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()

    def tell(loss):
        if parts.device.type != "cuda":
            return {"loss": loss}
        before = sum(p.nbytes for p in (*parts.model.parameters(), batch.images_BCHW))
        return {"loss": loss, "growth": (torch.cuda.max_memory_allocated() - before) / 2**20}

    return Work(functools.partial(step, batch), touch, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="coco-panoptic-swin-t", help="a Mask2Former preset; Swin backbones only")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--classes", type=int, default=133)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    from m2f_cli.benchmark.interleaved import race
    from m2f_cli.benchmark.machine import summary
    from m2f_cli.benchmark.statistics import between, ratio, share

    make = {name: functools.partial(make_side, name == "piloted", arguments) for name in ("plain", "piloted")}
    sides = race(make, arguments.rounds)
    height, width = arguments.size
    print(
        f"{arguments.preset}, forward + losses + backward, 1 x 3 x {height} x {width}, {arguments.targets} targets, "
        f"{arguments.groups} groups of pilots, fp32, {arguments.device}, "
        f"{summary(arguments.threads, arguments.rounds)}"
    )
    print(f"{'':10}{'seconds':>10}{'CPU seconds':>14}{'peak growth MiB':>18}{'loss':>12}")
    for name, side in sides.items():
        growth = "not told" if side.first["growth"] is None else f"{side.first['growth']:.0f}"
        print(
            f"{name:10}{statistics.median(side.seconds):10.3f}{statistics.median(side.cpu_seconds):14.3f}{growth:>18}"
            f"{side.first['loss']:12.3f}"
        )
    both = sides["piloted"], sides["plain"]
    time = ratio(*(side.seconds for side in both))
    cpu = ratio(*(side.cpu_seconds for side in both))
    memory = share(*(side.first["growth"] for side in both))
    print(
        f"piloted / plain: time {time['value']:.2f}{between(time)} (CPU {cpu['value']:.2f}), memory {memory}; "
        f"goal {GOAL}"
    )


if __name__ == "__main__":
    main()
