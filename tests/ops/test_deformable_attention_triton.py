"""Triton's deformable attention without a GPU: run in Triton's interpreter, compiled for GPUs that are not here, and
chosen where one would be."""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.fresh import Fresh
from ops.samples import make, outputs_and_gradients

from m2f_cli.errors import ConfigError, MissingDependency
from m2f_cli.ops import deformable_attention as op

pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch's CUDA builds")

EXACT = ("levels", "whole pixels", "strided", "1 channels", "24 channels", "32 channels", "128 channels", "many rows")
RESULTS = {"output", "value", "x", "y", "weights"}


OTHERS = ("bf16", "fp16", "nowhere", "no queries")
OF_PYTORCH = ("registered", "compiled")  # importing torch.compile takes most of their time


def interpreted(fresh: Fresh, *cases: str) -> dict[str, dict]:
    """Return what the worker finds in Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    worker = str(Path(__file__).with_name("triton_worker.py"))
    run = fresh(f"import runpy; runpy.run_path({worker!r}, run_name='__main__')", *cases, environment=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def found(fresh) -> dict[str, dict]:
    return interpreted(fresh, *EXACT, *OTHERS)


@pytest.fixture(scope="module")
def found_by_pytorch(fresh) -> dict[str, dict]:
    return interpreted(fresh, *OF_PYTORCH)


@pytest.mark.parametrize("case", EXACT)
def test_equals_the_reference_in_values_and_gradients(found, case):
    assert found[case].keys() == RESULTS
    assert max(found[case].values()) < 3e-6, found[case]  # of the largest number: fp32 rounding of a few dozen products


@pytest.mark.parametrize(("case", "last_digit"), [("bf16", 2**-7), ("fp16", 2**-10)])
def test_low_precision_is_rounded_once(found, case, last_digit):
    """Sums are fp32; what has the low precision is rounded at the end (the interpreter cuts off)."""
    assert {name for name, value in found[case].items() if value > 3e-6} <= {"output", "value", "weights"}
    assert max(found[case].values()) < last_digit


def test_places_that_are_nowhere(found):
    assert found["nowhere"] == {"all": True}
    assert found["no queries"] == {"size": 0}


@pytest.mark.slow
def test_pytorch_accepts_the_operators(found_by_pytorch):
    checks = found_by_pytorch["registered"]
    assert len(checks) == 6 and set(checks.values()) == {"SUCCESS"}


@pytest.mark.slow
def test_compile_keeps_the_operator_whole(found_by_pytorch):
    assert found_by_pytorch["compiled"] == dict.fromkeys(RESULTS, 0.0)


# --- compiled for a GPU -----------------------------------------------------------------------------------------------

SCALARS = ("rows", "S", "N", "A", "D")


@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(90, "fp32"), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(75, "fp16"), (80, "bf16")])],
)
def test_compiles_without_a_gpu(kernel, capability, dtype, tmp_path, monkeypatch):
    """The interpreter takes more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("Triton before 3.3 (torch 2.6) names the arguments of ASTSource otherwise")
    from m2f_cli.ops.deformable_attention import triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    function = getattr(kernels, kernel)
    constants = {"L": 3, "P": 4, "BLOCK_R": kernels.BLOCK // 32, "BLOCK_D": 32}
    types = dict.fromkeys(constants, "constexpr") | dict.fromkeys(SCALARS, "i32")
    types |= {"levels": "*i32"} | dict.fromkeys(("value", "output", "grad", "weights", "grad_weights"), f"*{dtype}")
    signature = {name: types.get(name, "*fp32") for name in function.arg_names}
    source = ASTSource(function, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


# --- who is chosen ----------------------------------------------------------------------------------------------------

CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(7)`: as if there was a GPU of that generation."""
    monkeypatch.delenv("M2F_DEFORM_ATTN", raising=False)

    def pretend(major: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))

    return pretend


def test_chosen_on_a_gpu_that_triton_knows(gpu, monkeypatch):
    gpu(9)
    assert op.choose(CUDA) == "triton" and op.implementations(CUDA) == (*op.EVERYWHERE, "triton")
    monkeypatch.setenv("M2F_DEFORM_ATTN", "reference")
    assert op.choose(CUDA) == "reference"
    monkeypatch.delenv("M2F_DEFORM_ATTN")
    gpu(6)
    assert op.choose(CUDA) == "reference" and op.implementations(CUDA) == op.EVERYWHERE
    gpu(9)
    monkeypatch.setattr(op, "HAS_TRITON", False)
    assert op.choose(CUDA) == "reference"


def test_never_chosen_for_export_or_elsewhere(gpu, monkeypatch):
    gpu(9)
    assert op.choose(torch.device("cpu")) == "bag" and op.choose(torch.device("mps")) == "reference"
    monkeypatch.setattr(op, "is_exporting", lambda: True)
    assert op.choose(CUDA) == "gather"


def test_on_a_cpu_it_says_so(monkeypatch):
    monkeypatch.setenv("M2F_DEFORM_ATTN", "triton")
    value, shapes, *samples = make(((2, 3),), queries=1)
    with pytest.raises(ConfigError, match="needs a GPU.*Unset M2F_OPS"):
        op.deform_attn(value, shapes, *samples)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "m2f_cli.ops.deformable_attention.triton", None)
    value, shapes, *samples = make(((2, 3),), queries=1)
    with pytest.raises(MissingDependency, match="triton, which is not installed"):
        op.deform_attn(value, shapes, *samples, impl="triton")


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dim", [8, 24, 32, 64, 128])
def test_on_a_gpu(dim):
    value, shapes, *samples = make(((32, 64), (16, 32), (8, 16)), dim=dim, queries=2688)
    inputs = (value.cuda(), shapes, *(t.cuda() for t in samples))
    ours, expected = (outputs_and_gradients(impl, *inputs) for impl in ("triton", "reference"))
    for name, a, b in zip(("output", "value", "x", "y", "weights"), ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
