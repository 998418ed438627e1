"""One of two processes: the gradients of a linear "model" over half of a batch, averaged as DDP does.

python worker.py RANK WORLD STORE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loss.cases import CONFIG, random_case, same_for_all

from m2f_cli.loss import Criterion, normaliser
from m2f_cli.structures.predictions import LayerOutput, Prediction

COUNTS = {"equal": [3, 3], "unequal": [1, 5], "one empty": [0, 4]}


def gradients(counts: list[int], images: slice) -> dict[str, torch.Tensor]:
    """Of each kind of loss, for the weights of two linear layers that make features and queries."""
    fixed, targets = random_case(counts)
    torch.manual_seed(1)
    of_features, of_queries, of_classes = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 5)
    features_BCHW = of_features(fixed.mask_features_BCHW.detach()[images].movedim(1, -1)).movedim(-1, 1)
    queries = [layer.mask_embeds_BQC.detach()[images] for layer in fixed.layers]
    prediction = Prediction(features_BCHW, [LayerOutput(of_classes(x), of_queries(x)) for x in queries])
    weights = [of_features.weight, of_queries.weight, of_classes.weight]
    mine = targets[images]
    losses = Criterion(4, CONFIG, rand=same_for_all)(prediction, mine, (28, 36), normaliser(mine))
    found = {}
    for kind, parameters in (("ce", weights[2:]), ("mask", weights[:2]), ("dice", weights[:2])):
        total = sum(loss for name, loss in losses.items() if kind in name)
        per_weight = torch.autograd.grad(total, parameters, retain_graph=True)
        found[kind] = torch.cat([gradient.flatten() for gradient in per_weight])
    return found


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {name: gradients(counts, slice(rank, rank + 1)) for name, counts in COUNTS.items()}
    for kinds in found.values():
        for gradient in kinds.values():
            dist.all_reduce(gradient)
            gradient /= world
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
