"""Fixtures that every test may use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of facts, golden numbers and data packs that lies beside the checkout of the project's makers."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}: reference material of the project's makers, not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared_dir):
    """`golden("06_mask2former_full_swin")` gives `.info` (the json) and `.tensors` (name → tensor)."""
    from safetensors.torch import load_file

    def read(name: str) -> SimpleNamespace:
        info = json.loads((shared_dir / "golden" / f"{name}.json").read_text())
        return SimpleNamespace(info=info, tensors=load_file(shared_dir / "golden" / f"{name}.safetensors"))

    return read
