"""Deformable attention by indexing, for exported graphs.

Whole rows of the table are gathered, and then summed by small matrix products. Engines of exported graphs are fast at
that, and slow at gathering single numbers.
"""

from __future__ import annotations

from .embedding_bag import table_and_bags


def sample(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    """Sample as `deform_attn` does, by gathering whole rows of the table."""
    B, N, A = x_BNALP.shape[:3]
    table, rows, weights = table_and_bags(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes)
    samples = table.index_select(0, rows.flatten()).unflatten(0, (-1, rows.shape[1]))
    return (weights.unsqueeze(1) @ samples).view(B, N, A * value_BSAD.shape[3])
