"""Attention, softmax(q kᵀ / √D + bias) v: one function, two ways that agree to rounding.

* "sdpa": `torch.nn.functional.scaled_dot_product_attention`, the reference: never holds all weights at once.
* "products": two matrix products and a softmax between them, which holds the weights. On a CPU the first way's own
  loops run far below the speed of matrix products where heads are narrow and its gradient is slower still. Measured
  with 32 channels a head, two threads, forward and backward: 361 windows of 49 tokens and 3 heads: 27 against 44 ms in
  fp32, 17 against 32 ms in bf16; 100 queries over 4096 keys: 18 against 26 ms, 15 against 26 ms. Forward alone: 297
  windows of 49 tokens and 3 heads: 5.3 against 8.5 ms, 4.5 against 7.8 ms; 101 of 144 tokens and 6 heads: 18 against 24
  ms, 20 against 23 ms; no faster for many keys. Heads go one after the other where each is much work: products then
  take them as they lie in memory, and the bias is what they add to.

The softmax is fp32 in both. `M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import OPERATORS, is_tracing
from .chunking import PIECE

IMPLEMENTATIONS = OPERATORS["attention"]
KINDS = (torch.float32, torch.bfloat16)
MAX_KEYS = 256  # without a gradient: many keys and few queries suit PyTorch's loops
BY_HEAD = {torch.float32: 2**15, torch.bfloat16: 2**18}  # weights of a head, from which on heads go one by one
NEVER = 1e30  # taken from the score of what must not be attended to: its weight is 0 exactly


def choose(q: Tensor, num_keys: int) -> str:
    """The implementation that `attention` uses for queries and so many keys when nobody says otherwise.

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
    """(B, A, Q, D): for each query and head, the mean of the values, weighted.

    Args:
        bias: added to the scores; broadcasts to (B, A, Q, S).
        may_attend: bool, likewise: False where the weight is 0. Every query needs a place to attend to. Instead of a
            bias.
        dropout: the rate at which weights are dropped.
        impl: one of `IMPLEMENTATIONS.names`; None for the better one on this machine.
        out_BQAD: where to write, in the order in which the heads' channels lie side by side; without gradients.
    """
    impl = IMPLEMENTATIONS.checked(impl or choose(q_BAQD, k_BASD.shape[2]))
    if may_attend is not None and q_BAQD.device.type == "cpu" and not is_tracing():
        # PyTorch's own way from bool to float, a fill where it is true, takes five times as long.
        bias, may_attend = (may_attend.float() - 1).mul_(NEVER), None
    if impl == "products" and not (torch.is_grad_enabled() or is_tracing()):
        if may_attend is not None:
            bias = torch.where(may_attend, 0.0, -NEVER)
        return _products(q_BAQD, k_BASD, v_BASD, bias, dropout, out_BQAD).transpose(1, 2)
    if impl == "products":
        bias = bias if may_attend is None else torch.where(may_attend, 0.0, -NEVER)
        return _of_all(q_BAQD, k_BASD, v_BASD, bias, dropout)
    mask = may_attend if bias is None else bias.to(q_BAQD.dtype)
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(q_BAQD.shape[0], -1, -1, -1)
    found_BAQD = F.scaled_dot_product_attention(q_BAQD, k_BASD, v_BASD, attn_mask=mask, dropout_p=dropout)
    return found_BAQD if out_BQAD is None else out_BQAD.copy_(found_BAQD.transpose(1, 2)).transpose(1, 2)


def _products(
    q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, dropout: float, out_BQAD: Tensor | None
) -> Tensor:
    (B, A, Q, D), S = q_BAQD.shape, k_BASD.shape[2]
    out_BQAD = v_BASD.new_empty((B, Q, A, D)) if out_BQAD is None else out_BQAD
    bias = None if bias is None else bias.expand(B, A, Q, S)
    least = BY_HEAD.get(q_BAQD.dtype)
    by_head = least is not None and least <= B * Q * S
    step = max(1, PIECE // max(1, (1 if by_head else A) * Q * S))  # pictures or windows at a time
    for start in range(0, B, step):
        part = slice(start, start + step)
        few = (q_BAQD[part], k_BASD[part], v_BASD[part], None if bias is None else bias[part])
        if by_head:
            for head in range(A):
                of_head = _of_head(*(None if each is None else each[:, head] for each in few), dropout)
                out_BQAD[part, :, head] = of_head
        else:
            out_BQAD[part] = _of_all(*few, dropout).transpose(1, 2)
    return out_BQAD


def _of_head(q_BQD: Tensor, k_BSD: Tensor, v_BSD: Tensor, bias_BQS: Tensor | None, dropout: float) -> Tensor:
    """Of views: a product of matrices takes them with any stride, where one of stacks of heads would copy."""
    scale, keys_BDS = q_BQD.shape[-1] ** -0.5, k_BSD.transpose(1, 2)
    if bias_BQS is None:
        scores_BQS = torch.bmm(q_BQD, keys_BDS).float().mul_(scale)
    elif q_BQD.dtype == torch.float32:
        scores_BQS = torch.baddbmm(bias_BQS.float(), q_BQD, keys_BDS, alpha=scale)
    else:
        scores_BQS = torch.bmm(q_BQD, keys_BDS).float().mul_(scale).add_(bias_BQS)
    weights_BQS = F.dropout(scores_BQS.softmax(-1), dropout, training=dropout > 0)
    return torch.bmm(weights_BQS.to(v_BSD.dtype), v_BSD)


def _of_all(q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores_BAQS = ((q_BAQD * q_BAQD.shape[-1] ** -0.5) @ k_BASD.transpose(-1, -2)).float()
    if bias is not None:
        scores_BAQS = scores_BAQS + bias if torch.is_grad_enabled() else scores_BAQS.add_(bias)
    weights_BAQS = scores_BAQS.softmax(-1)
    if dropout:
        weights_BAQS = F.dropout(weights_BAQS, dropout)
    return weights_BAQS.to(v_BASD.dtype) @ v_BASD
