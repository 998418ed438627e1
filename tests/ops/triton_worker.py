"""Triton's kernels in its interpreter, on a CPU: prints how far the named cases are from the reference, as JSON.

A process of its own: TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ops.samples import make, outputs_and_gradients

from m2f_cli.ops.deformable_attention import deform_attn
from m2f_cli.ops.deformable_attention import triton as kernels

NAMES = ("output", "value", "x", "y", "weights")
LEVELS = ((5, 7), (1, 6), (9, 1), (1, 1))
EVEN = ((4, 8), (8, 1), (1, 4), (2, 2))  # grid_sample's own coordinates are exact


def differences(inputs) -> dict[str, float]:
    """The largest difference of each result, relative to the largest of the reference."""
    ours, expected = outputs_and_gradients("triton", *inputs), outputs_and_gradients("reference", *inputs)
    return {name: float((a - b).abs().max() / b.abs().max()) for name, a, b in zip(NAMES, ours, expected, strict=True)}


def whole_pixels():
    value, shapes, x, y, weights = make(EVEN, queries=9, batch=1)
    return value, shapes, x.round(), y.round(), weights


def strided():
    """Neither input is contiguous."""
    value, shapes, *samples = make(LEVELS[:2])
    return (
        value.transpose(1, 2).contiguous().transpose(1, 2),
        shapes,
        *(t.transpose(0, 1).contiguous().transpose(0, 1) for t in samples),
    )


def narrow(dtype: torch.dtype) -> dict[str, float]:
    """Values and weights of low precision: against the reference, which gets the rounded numbers in fp32."""
    value, shapes, x, y, weights = make(LEVELS[:2], batch=1)
    value, weights = value.to(dtype), weights.to(dtype)
    inputs = [t.clone().requires_grad_() for t in (value, x, y, weights)]
    output = deform_attn(inputs[0], shapes, *inputs[1:], impl="triton")
    # Numbers that the low precision holds exactly, so that both get the same.
    cotangent = (torch.arange(output.numel()) % 9 - 4.0).view_as(output)
    (output * cotangent.to(dtype)).sum().backward()
    assert [t.grad.dtype for t in inputs] == [t.dtype for t in inputs] and output.dtype == dtype
    wide = [t.detach().float().requires_grad_() for t in inputs]
    expected = deform_attn(wide[0], shapes, *wide[1:], impl="reference")
    (expected * cotangent).sum().backward()
    pairs = [(output.detach(), expected.detach()), *((a.grad, b.grad) for a, b in zip(inputs, wide, strict=True))]
    return {name: float((a.float() - b).abs().max() / b.abs().max()) for name, (a, b) in zip(NAMES, pairs, strict=True)}


def nowhere() -> dict[str, bool]:
    """Far outside, infinite and undefined places read nothing and get no gradient."""
    value, shapes, x, y, weights = make(LEVELS[:1], batch=1, queries=3)
    for place in (1e6, -1e30, float("inf"), float("nan")):
        for moved in ((x + place, y), (x, y + place)):
            results = outputs_and_gradients("triton", value, shapes, *moved, weights)
            if any(result.any() for result in results):
                return {str(place): False}
    return {"all": True}


def registered() -> dict[str, str]:
    """PyTorch's own checks of the two operators: schema, shapes and dtypes without numbers, autograd, tracing."""
    value, shapes, x, y, weights = make(LEVELS[:2], batch=1, queries=2, heads=1, points=2)
    sizes = [length for shape in shapes for length in shape]
    inputs = [value.requires_grad_(), sizes, *(t.requires_grad_() for t in (x, y, weights))]
    checks = torch.library.opcheck(kernels.operator, tuple(inputs))
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in inputs]
    grad = torch.randn(1, 2, value.shape[-1])
    return checks | {
        f"backward {name}": state
        for name, state in torch.library.opcheck(
            kernels.operator_backward, (grad, *plain), test_utils=("test_schema", "test_faketensor")
        ).items()
    }


def compiled() -> dict[str, float]:
    """torch.compile keeps the operator whole: no break of the graph, the same numbers."""

    def twice(value, x, y, weights):
        return deform_attn(value * 2, LEVELS[:2], x, y, weights, impl="triton") + 1

    value, _, *samples = make(LEVELS[:2], batch=1)
    results = []
    for call in (twice, torch.compile(twice, backend="aot_eager", fullgraph=True)):
        inputs = [t.clone().requires_grad_() for t in (value, *samples)]
        output = call(*inputs)
        output.square().sum().backward()
        results.append([output.detach(), *(t.grad for t in inputs)])
    return {name: float((a - b).abs().max()) for name, a, b in zip(NAMES, *results, strict=True)}


CASES = {
    "levels": lambda: differences(make(LEVELS, queries=5, heads=2, points=2)),
    "whole pixels": lambda: differences(whole_pixels()),
    "strided": lambda: differences(strided()),
    **{
        f"{dim} channels": lambda dim=dim: differences(make(LEVELS[:1], dim=dim, queries=5, points=2, heads=2))
        for dim in (1, 24, 32, 128)
    },
    "many rows": lambda: differences(make(LEVELS[:1], queries=41, heads=3, batch=1, points=1)),
    "no queries": lambda: {"size": outputs_and_gradients("triton", *make(LEVELS[:1], queries=0))[0].numel()},
    "bf16": lambda: narrow(torch.bfloat16),
    "fp16": lambda: narrow(torch.float16),
    "nowhere": nowhere,
    "registered": registered,
    "compiled": compiled,
}

if __name__ == "__main__":
    json.dump({name: CASES[name]() for name in sys.argv[1:]}, sys.stdout)
