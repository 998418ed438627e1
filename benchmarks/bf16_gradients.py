"""How far gradients in bf16 are from those in fp32: ours, ours by the published rule, and transformers'.

    python benchmarks/bf16_gradients.py [--size 256 256] [--threads 2]

Swin-T with random weights, batch 1, 8 targets, the same random points. The published rule keeps the whole pixel decoder
in fp32. Printed is the norm of the difference as a share of the norm of the fp32 gradient, over all parameters.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from forward_vs_transformers import make_model
from train_step_vs_transformers import make_targets, ours, theirs


def gradients(model: torch.nn.Module, loss_of, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All of them, one after the other."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = loss_of(images)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def in_fp32(pixel_decoder: torch.nn.Module) -> None:
    """As published."""
    forward = pixel_decoder.forward

    def exact(features):
        with torch.autocast("cpu", enabled=False):
            return forward({stride: feature.float() for stride, feature in features.items()})

    pixel_decoder.forward = exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = torch.randn(1, 3, *arguments.size, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for name, side in (("ours", ours), ("transformers", theirs)):
            model, loss_of = side(folder, *make_targets(*arguments.size))
            exact = gradients(model, loss_of, images, torch.float32)
            rules = {name: lambda: None}
            if side is ours:
                rules["ours, pixel decoder in fp32"] = lambda: in_fp32(model.pixel_decoder)  # noqa: B023
            for rule, prepare in rules.items():
                prepare()
                found = gradients(model, loss_of, images, torch.bfloat16)
                print(f"{rule:30} {((found - exact).norm() / exact.norm()).item():.3f}")


if __name__ == "__main__":
    main()
