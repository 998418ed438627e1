"""Folders of this machine for downloaded weights, and for results on their way to a store.

Environment: `M2F_HOME` (default ~/.cache/m2f) is the folder of files; huggingface_hub has folders of its own.
"""

from __future__ import annotations

import os
from pathlib import Path


def weights_dir() -> Path:
    """Return the folder of downloaded weights."""
    return _home() / "weights"


def staging_dir() -> Path:
    """Return the folder of results that are uploaded to a store."""
    return _home() / "staging"


def _home() -> Path:
    return Path(os.environ.get("M2F_HOME") or Path.home() / ".cache" / "m2f").expanduser()


def hub_dir() -> Path:
    """Return the cache of huggingface_hub, without importing it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
