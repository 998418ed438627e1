"""Parts of a network that take part in mixed precision."""

from __future__ import annotations

import contextlib

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute in fp32 inside, also under autocast. Without autocast this leaves no trace in an exported graph."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_half(device: torch.device) -> bool:
    """Return True if autocast is on and its format is fp16."""
    kind = device.type
    return kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
