"""Permission of this process to contact other machines.

Environment: `M2F_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids it, as `m2f --offline` does.
"""

from __future__ import annotations

import os

VARIABLE = "M2F_OFFLINE"
SWITCHED_OFF = "the network is switched off (--offline, M2F_OFFLINE or HF_HUB_OFFLINE)"
# What other packages understand, before they are imported.
_OF_OTHERS = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}


def is_offline() -> bool:
    """Return True if nothing may be contacted."""
    values = [os.environ.get(name, "") for name in (VARIABLE, "HF_HUB_OFFLINE")]
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def go_offline() -> None:
    """Forbid this process, those that it starts, and the packages that they import to contact anything."""
    os.environ.update({VARIABLE: "1", **_OF_OTHERS})
