"""The networks."""

from .build import build
from .classifier import MaskClassifier

__all__ = ["MaskClassifier", "build"]
