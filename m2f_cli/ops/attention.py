"""Attention, softmax(q kᵀ / √D + bias) v: one function, two ways that agree to rounding.

* "sdpa": `torch.nn.functional.scaled_dot_product_attention`, the reference: never holds all weights at once.
* "products": two matrix products and a softmax between them, which holds the weights. On a CPU the first way's own
  loops run far below the speed of matrix products where heads are narrow and its gradient is slower still. Measured
  with 32 channels a head, two threads, forward and backward: 361 windows of 49 tokens and 3 heads: 27 against 44 ms in
  fp32, 17 against 32 ms in bf16; 100 queries over 4096 keys: 18 against 26 ms, 15 against 26 ms. Forward alone: faster
  for windows only, of 49 tokens 1.1 times in fp32 (of 144 slower), 1.3 to 1.7 times in bf16.

The softmax is fp32 in both. `M2F_ATTENTION` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pieces import PIECE, is_tracing
from .ways import Ways

IMPLEMENTATIONS = ("sdpa", "products")
WAYS = Ways("attention", "M2F_ATTENTION", IMPLEMENTATIONS)
# Without a gradient: many keys and few queries suit PyTorch's loops.
MAX_KEYS = {torch.float32: 64, torch.bfloat16: 256}
NEVER = 1e30  # taken from the score of what must not be attended to: its weight is 0 exactly


def choose(q: Tensor, num_keys: int) -> str:
    """The implementation that `attention` uses for queries and so many keys when nobody says otherwise.

    Raises:
        ValueError: `M2F_ATTENTION` is no implementation.
    """
    override = WAYS.override()
    if override is not None:
        return override
    if is_tracing() or q.device.type != "cpu":
        return "sdpa"
    if torch.is_grad_enabled():
        gains = q.dtype in MAX_KEYS
    else:
        gains = num_keys <= MAX_KEYS.get(q.dtype, 0)
    return "products" if gains else "sdpa"


def attention(
    q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None = None, *, may_attend: Tensor | None = None,
    dropout: float = 0.0, impl: str | None = None,
) -> Tensor:
    """(B, A, Q, D): for each query and head, the mean of the values, weighted.

    Args:
        bias: added to the scores; broadcasts to (B, A, Q, S).
        may_attend: bool, likewise: False where the weight is 0. Every query needs a place to attend to. Instead of a
            bias.
        dropout: the rate at which weights are dropped.
        impl: one of `IMPLEMENTATIONS`; None for the better one on this machine.
    """
    impl = WAYS.checked(impl or choose(q_BAQD, k_BASD.shape[2]))
    if may_attend is not None and q_BAQD.device.type == "cpu" and not is_tracing():
        # PyTorch's own way from bool to float, a fill where it is true, takes five times as long.
        bias, may_attend = (may_attend.float() - 1).mul_(NEVER), None
    if impl == "products":
        return _products(q_BAQD, k_BASD, v_BASD, bias, may_attend, dropout)
    mask = may_attend if bias is None else bias.to(q_BAQD.dtype)
    if mask is not None and mask.dim() == 4:
        mask = mask.expand(q_BAQD.shape[0], -1, -1, -1)
    return F.scaled_dot_product_attention(q_BAQD, k_BASD, v_BASD, attn_mask=mask, dropout_p=dropout)


def _products(
    q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, may_attend: Tensor | None, dropout: float
) -> Tensor:
    if may_attend is not None:
        bias = torch.where(may_attend, 0.0, -NEVER)
    if torch.is_grad_enabled() or is_tracing():
        return _of_all(q_BAQD, k_BASD, v_BASD, bias, dropout)
    B, A, Q, D = q_BAQD.shape
    step = max(1, PIECE // max(1, A * Q * k_BASD.shape[2]))  # pictures or windows at a time
    # What follows joins the heads' channels: written in that order, it need not copy.
    result_BQAD = v_BASD.new_empty((B, Q, A, D))
    for start in range(0, B, step):
        part = slice(start, start + step)
        of_part = bias if bias is None or bias.dim() < 4 or len(bias) == 1 else bias[part]
        attended = _of_all(q_BAQD[part], k_BASD[part], v_BASD[part], of_part, dropout)
        result_BQAD[part] = attended.transpose(1, 2)
    return result_BQAD.transpose(1, 2)


def _of_all(q_BAQD: Tensor, k_BASD: Tensor, v_BASD: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    scores_BAQS = ((q_BAQD * q_BAQD.shape[-1] ** -0.5) @ k_BASD.transpose(-1, -2)).float()
    if bias is not None:
        scores_BAQS = scores_BAQS + bias if torch.is_grad_enabled() else scores_BAQS.add_(bias)
    weights_BAQS = scores_BAQS.softmax(-1)
    if dropout:
        weights_BAQS = F.dropout(weights_BAQS, dropout)
    return weights_BAQS.to(v_BASD.dtype) @ v_BASD
