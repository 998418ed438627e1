"""Random inputs of deformable attention, and what comes of them."""

from __future__ import annotations

import torch

from m2f_cli.ops.deformable_attention import deform_attn


def outputs_and_gradients(impl, value, shapes, x, y, weights):
    inputs = [t.detach().clone().requires_grad_() for t in (value, x, y, weights)]
    output = deform_attn(inputs[0], shapes, *inputs[1:], impl=impl)
    cotangent = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    (output * cotangent).sum().backward()
    return [output.detach(), *(t.grad for t in inputs)]


def make(shapes, seed=0, batch=2, heads=3, dim=8, queries=11, points=4):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator)
    size = (batch, queries, heads, len(shapes), points)
    x, y = (torch.rand(size, generator=generator) * 14 - 3 for _ in range(2))
    return value, shapes, x, y, torch.rand(size, generator=generator)
