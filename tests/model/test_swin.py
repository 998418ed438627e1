"""Swin's windows a few at a time give what all at once give."""

from __future__ import annotations

import pytest
import torch

from m2f_cli.model.backbones import swin


@pytest.mark.parametrize("windows_at_once", [1, 2, 5])
@pytest.mark.parametrize("size", [(28, 32), (112, 112), (60, 92)])  # padded, not padded, padded in every stage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_windows_in_pieces(size, windows_at_once, dtype, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    network = swin.Swin(8, [2, 2, 2, 2], [1, 2, 4, 8], 7, drop_path=0.0).eval()
    for name, parameter in network.named_parameters():
        if "bias" in name:
            parameter.normal_()
    images = torch.randn(2, 3, *size)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected = network(images)
        asked = []

        def few(self, tokens_RC: torch.Tensor, places: int) -> int:
            asked.append(places)
            return windows_at_once

        monkeypatch.setattr(swin.WindowAttention, "windows_at_once", few)
        found = network(images)
    assert len(asked) == 8
    for stride in expected:
        # The same sums; matrix products of other shapes may add them in another order.
        rounding = 2e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found[stride], expected[stride], atol=rounding, rtol=rounding)


@torch.no_grad()
def test_large_maps_alone_go_in_pieces(monkeypatch: pytest.MonkeyPatch):
    attention = swin.WindowAttention(8, 2, 7)
    monkeypatch.setattr(swin, "CHUNK_ELEMENTS", 3 * 8 * 49 * 2)
    tokens = torch.zeros(1, 8)
    assert attention.windows_at_once(tokens, 4 * 49) is None
    assert attention.windows_at_once(tokens, 5 * 49) == 2
    assert attention.windows_at_once(tokens.to("meta"), 5 * 49) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):  # half the memory
        assert attention.windows_at_once(tokens, 8 * 49) is None
        assert attention.windows_at_once(tokens, 9 * 49) == 4
    monkeypatch.setattr(attention, "attended_in_chunks", lambda *_: pytest.fail("in pieces"))
    with torch.enable_grad():
        attention(torch.zeros(1, 49, 8), swin.windows_of(1, 7, 7, 7, 0, tokens.device))
