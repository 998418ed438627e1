"""One of two processes that train with pilots, of which the second sees no target.

python piloting_worker.py RANK WORLD STORE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.parts import tiny_config

from m2f_cli.config import presets as config
from m2f_cli.config.schema import ModelConfig
from m2f_cli.data.loader import Batch
from m2f_cli.loss import Criterion
from m2f_cli.model import build
from m2f_cli.model.pilots import piloting_of
from m2f_cli.structures.targets import Target
from m2f_cli.training.loop import to_host, train_step
from m2f_cli.training.optimizer import make_optimizer
from m2f_cli.training.parts import Parts


def batch_of(count: int) -> Batch:
    owner_HW = torch.full((64, 64), -1, dtype=torch.int16)
    for i in range(count):
        owner_HW[10 * i : 10 * i + 9, 5:40] = i
    return Batch(torch.randn(1, 3, 64, 64), [Target(torch.arange(count), owner_HW=owner_HW)], ["one"])


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    settings = config.load("tiny", ["train.loss.num_points=64"])
    model_config = ModelConfig.model_validate({**tiny_config().model_dump(), "piloting": {"groups": 2}})
    torch.manual_seed(0)
    model = build(model_config, 9)
    parts = Parts(
        settings.train,
        model,
        torch.nn.parallel.DistributedDataParallel(model),
        Criterion(9, settings.train.loss),
        make_optimizer(model, settings.train.optimizer),
        torch.amp.GradScaler("cpu", enabled=False),
        None,
        torch.device("cpu"),
        2,
        piloting=piloting_of(model_config, 9),
    )
    torch.manual_seed(rank)
    losses, _ = to_host(*train_step(parts, [batch_of(3 if rank == 0 else 0), batch_of(0)]))
    torch.save({"losses": losses, "gradient": model.decoder.label_embed.weight.grad}, out)
    dist.barrier()  # whoever is first would close the connection of the other
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
