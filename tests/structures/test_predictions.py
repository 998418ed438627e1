"""What travels between the parts: masks as dot products."""

from __future__ import annotations

import pytest
import torch

from m2f_cli.structures.predictions import LayerOutput, Prediction, resize_logits


def test_some_masks_of_one_image_are_those_among_all():
    generator = torch.Generator().manual_seed(0)
    embeds, features = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 4, 5, 7, generator=generator)
    prediction = Prediction(features, [LayerOutput(torch.zeros(2, 3, 2), embeds)])
    whole, few = prediction.render(), torch.tensor([2, 0])
    rounding = {"atol": 1e-5, "rtol": 1e-5}  # sums of 4 products of order one
    torch.testing.assert_close(whole, (embeds @ features.flatten(2)).unflatten(2, (5, 7)), **rounding)
    torch.testing.assert_close(prediction.render(image=1), whole[1], **rounding)
    torch.testing.assert_close(prediction.render(image=1, queries=few), whole[1, few], **rounding)
    torch.testing.assert_close(prediction.render((10, 9)), resize_logits(whole, (10, 9)), **rounding)
    with pytest.raises(ValueError, match="needs image"):
        prediction.render(queries=few)
