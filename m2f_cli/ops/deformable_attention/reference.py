"""Deformable attention by `grid_sample`: readable, and what the other implementations are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sample(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    """See `deform_attn`."""
    B, _, A, D = value_BSAD.shape
    N, P = x_BNALP.shape[1], x_BNALP.shape[-1]
    per_level = value_BSAD.split([h * w for h, w in shapes], dim=1)
    samples = []
    for level, (h, w) in enumerate(shapes):
        image = per_level[level].permute(0, 2, 3, 1).reshape(B * A, D, h, w)
        x = 2 * (x_BNALP[:, :, :, level] + 0.5) / w - 1
        y = 2 * (y_BNALP[:, :, :, level] + 0.5) / h - 1
        grid = torch.stack([x, y], -1).transpose(1, 2).reshape(B * A, N, P, 2)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    samples_LP = torch.stack(samples, dim=-2).flatten(-2)  # (B·A, D, N, L·P)
    weights = weights_BNALP.transpose(1, 2).reshape(B * A, 1, N, len(shapes) * P)
    return (samples_LP * weights).sum(-1).reshape(B, A * D, N).transpose(1, 2)
