"""Attention, softmax(q kᵀ / √D + bias) v: one function, two implementations that agree to rounding.

* "sdpa": `torch.nn.functional.scaled_dot_product_attention`, the reference, which never holds all weights at once.
* "products": two matrix products and a softmax between them, which hold the weights. On a CPU, the loops of "sdpa" are
  slow where heads are narrow, and their gradient is slower still.

The softmax is fp32 in both. `M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import OPERATORS, is_tracing
from .chunking import CHUNK_ELEMENTS

IMPLEMENTATIONS = OPERATORS["attention"]
KINDS = (torch.float32, torch.bfloat16)
MAX_KEYS = 256  # without a gradient; PyTorch's loops are good at many keys
NEVER = 1e30  # taken from the score of what must not be attended to: its weight is 0 exactly


def choose(q: Tensor, num_keys: int) -> str:
    """Return the implementation that `attention` uses by default for queries and a number of keys.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or q.device.type != "cpu":
        return "sdpa"
    if torch.is_grad_enabled():
        return "products" if q.dtype in KINDS else "sdpa"
    return "products" if q.dtype in KINDS and num_keys <= MAX_KEYS else "sdpa"


def attention(
    q_BAQD: Tensor,
    k_BASD: Tensor,
    v_BASD: Tensor,
    bias: Tensor | None = None,
    *,
    may_attend: Tensor | None = None,
    dropout: float = 0.0,
    impl: str | None = None,
    out_BQAD: Tensor | None = None,
) -> Tensor:
    """Return the weighted mean of the values for each query and head, (B, A, Q, D).

    Args:
        bias: added to the scores; broadcasts to (B, A, Q, S).
        may_attend: bool, of the same shape, instead of a bias: False where the weight is 0. Every query needs at least
            one True.
        dropout: the rate at which weights are dropped.
        impl: one of `IMPLEMENTATIONS.names`; None for the better one on this machine.
        out_BQAD: where to write the result; without gradients only.
    """
    impl = IMPLEMENTATIONS.checked(impl or choose(q_BAQD, k_BASD.shape[2]))
    if may_attend is not None and q_BAQD.device.type == "cpu" and not is_tracing():
        # PyTorch's own conversion of a mask from bool to float is slow.
        bias, may_attend = (may_attend.float() - 1).mul_(NEVER), None
    if impl == "products" and not (torch.is_grad_enabled() or is_tracing()):
        if may_attend is not None:
            bias = torch.where(may_attend, 0.0, -NEVER)
        return _attend_in_chunks(q_BAQD, k_BASD, v_BASD, bias, dropout, out_BQAD).transpose(1, 2)
    if impl == "products":
        bias = bias if may_attend is None else torch.where(may_attend, 0.0, -NEVER)
        return _attend(q_BAQD, k_BASD, v_BASD, bias, dropout)
    mask = may_attend if bias is None else bias.to(q_BAQD.dtype)
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(q_BAQD.shape[0], -1, -1, -1)
    attended_BAQD = F.scaled_dot_product_attention(q_BAQD, k_BASD, v_BASD, attn_mask=mask, dropout_p=dropout)
    return attended_BAQD if out_BQAD is None else out_BQAD.copy_(attended_BAQD.transpose(1, 2)).transpose(1, 2)


def _attend_in_chunks(
    q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, dropout: float, out_BQAD: Tensor | None
) -> Tensor:
    (B, A, Q, D), S = q_BAQD.shape, k_BASD.shape[2]
    out_BQAD = v_BASD.new_empty((B, Q, A, D)) if out_BQAD is None else out_BQAD
    bias = None if bias is None else bias.expand(B, A, Q, S)
    step = max(1, CHUNK_ELEMENTS // max(1, A * Q * S))  # images or windows at a time
    for start in range(0, B, step):
        part = slice(start, start + step)
        chunk = (q_BAQD[part], k_BASD[part], v_BASD[part], None if bias is None else bias[part])
        out_BQAD[part] = _attend(*chunk, dropout).transpose(1, 2)
    return out_BQAD


def _attend(q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores_BAQS = ((q_BAQD * q_BAQD.shape[-1] ** -0.5) @ k_BASD.transpose(-1, -2)).float()
    if bias is not None:
        scores_BAQS = scores_BAQS + bias if torch.is_grad_enabled() else scores_BAQS.add_(bias)
    weights_BAQS = scores_BAQS.softmax(-1)
    if dropout:
        weights_BAQS = F.dropout(weights_BAQS, dropout)
    return weights_BAQS.to(v_BASD.dtype) @ v_BASD
