"""Functions of rows, applied to a few rows at a time."""

from __future__ import annotations

import pytest
import torch

from m2f_cli.ops.cpu import chunking


def test_chunks_give_what_all_rows_at_once_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 40)
    seen = []

    def function(a_SX, b_SX):
        seen.append(a_SX.shape[-2])
        return a_SX * 2 + b_SX

    a, b = torch.randn(2, 10, 3), torch.randn(10, 3)
    with torch.no_grad():
        assert torch.equal(chunking.in_chunks(function, 5, a, b), a * 2 + b)
        assert seen == [4, 4, 2]  # 2 x 10 rows of 5 numbers are three chunks
        assert torch.equal(chunking.in_chunks(function, 5, a[:, :0], b[:0]), torch.zeros(2, 0, 3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (chunking.in_fp32(10, a), chunking.in_fp32(10, a.bfloat16())) == (5, 5)  # a product's format counts
        assert (chunking.in_fp32(10, a), chunking.in_fp32(10, a.bfloat16()), chunking.in_fp32(10, a.double())) == (
            10,
            5,
            20,
        )
    seen.clear()
    chunking.in_chunks(function, 5, a.requires_grad_(), b).sum().backward()
    assert seen == [10]
