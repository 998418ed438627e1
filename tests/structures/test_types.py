"""What travels between the parts: masks as dot products."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from m2f_cli.inference.mask_rendering import MaskLogits
from m2f_cli.structures.predictions import LayerOutput, PixelFeatures, Prediction, Projection


def test_a_projection_may_go_to_the_queries():
    """Masks, chosen masks and resized masks are those of projected features."""
    g = torch.Generator().manual_seed(0)
    features, embeds = torch.randn(2, 6, 5, 7, generator=g), torch.randn(2, 3, 4, generator=g)
    projection = Projection(torch.randn(4, 6, generator=g), torch.randn(4, generator=g))
    left = Prediction(features, [LayerOutput(torch.zeros(2, 3, 2), embeds)], projection)
    done = left.projected()
    assert done.projection is None and done.projected() is done
    expected = F.conv2d(features, projection.weight_MC[..., None, None], projection.bias_M)
    torch.testing.assert_close(done.mask_features_BCHW, expected, atol=0, rtol=0)
    rounding = {"atol": 1e-5, "rtol": 1e-5}  # sums of 24 products of order one
    torch.testing.assert_close(left.render(), done.render(), **rounding)
    torch.testing.assert_close(left.render((10, 9)), done.render((10, 9)), **rounding)
    few = torch.tensor([2, 0])
    torch.testing.assert_close(left.render(image=1, queries=few), done.render()[1, few], **rounding)
    torch.testing.assert_close(left.render(image=1), done.render()[1], **rounding)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # where a query looks is decided in fp32
        found, offsets = left.of_queries()
    assert found.dtype == offsets.dtype == torch.float32


def test_features_say_what_queries_need():
    features, embeds = torch.randn(1, 6, 5, 7), torch.randn(1, 3, 4)
    plain = PixelFeatures(features, [])
    assert plain.projected() is plain and plain.of_queries(embeds) == (embeds, 0.0)
    left = PixelFeatures(features, [], Projection(torch.randn(4, 6), torch.randn(4)))
    assert left.projected().mask_features_BCHW.shape == (1, 4, 5, 7) and left.projected().projection is None


def test_offsets_belong_to_the_queries_that_are_rendered():
    masks = MaskLogits(torch.zeros(3, 4), torch.zeros(4, 2, 2), (8, 8), (8, 8), (8, 8), torch.tensor([[1.0], [2], [3]]))
    found = masks.coarse(torch.tensor([2, 0])).logits_QHW
    assert torch.equal(found, torch.tensor([3.0, 1]).view(2, 1, 1).expand(2, 2, 2))
