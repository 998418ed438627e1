"""transformers as an oracle: the same weights, images, targets and random points give its loss and gradient."""

from __future__ import annotations

import torch
from helpers.parts import randomise
from loss.cases import CONFIG, by_image, our_order
from torch.testing import assert_close
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from m2f_cli.inference.load_network import load_model
from m2f_cli.loss import Criterion
from m2f_cli.structures.targets import Target

SIZE = (64, 96)
COUNTS = [3, 5]


def theirs_of() -> Mask2FormerForUniversalSegmentation:
    swin = {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 2, 2, 1],
        "num_heads": [1, 2, 4, 4],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        dim_feedforward=40,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=9,
        id2label={i: f"class {i}" for i in range(5)},
        train_num_points=CONFIG.num_points,
    )
    torch.manual_seed(3)
    model = Mask2FormerForUniversalSegmentation(config)
    class_weights = model.criterion.empty_weight.clone()
    randomise(model, 3).criterion.empty_weight.copy_(class_weights)
    return model.eval()


def test_loss_and_gradient(tmp_path, monkeypatch):
    theirs = theirs_of()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).model
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *SIZE, generator=generator)
    labels = [torch.randint(5, (n,), generator=generator) for n in COUNTS]
    masks = [torch.rand(n, *SIZE, generator=generator) < 0.4 for n in COUNTS]

    draws = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: draws.append(rand(*shape, **options)) or draws[-1])
    their_images = images.clone().requires_grad_()
    expected = theirs(pixel_values=their_images, class_labels=labels, mask_labels=[mask.float() for mask in masks]).loss
    expected.sum().backward()
    monkeypatch.undo()

    layers = len(theirs.model.transformer_module.decoder.layers) + 1
    assert len(draws) == 4 * layers  # of each layer, the last first: two images' points, candidates, random ones
    main, *earlier = [draws[4 * i : 4 * i + 4] for i in range(layers)]
    points_0, points_1, candidates, anywhere = zip(*earlier, main, strict=True)
    replay = our_order([points_0, points_1], [[by_image(candidates, COUNTS), by_image(anywhere, COUNTS)]])

    our_images = images.clone().requires_grad_()
    targets = [Target(label, mask) for label, mask in zip(labels, masks, strict=True)]
    losses = Criterion(5, CONFIG, rand=replay)(ours(our_images), targets, SIZE)
    found = sum(losses.values())
    found.backward()
    assert len(losses) == 3 * layers
    assert_close(found, expected.sum(), atol=0, rtol=1e-5)
    scale = their_images.grad.abs().max()
    assert scale > 0
    # The whole network forward and backward in float32, group norms of few pixels included.
    assert (our_images.grad - their_images.grad).abs().max() < 1e-3 * scale
