"""The networks."""

from .build import build, checkpoint_activations
from .classifier import MaskClassifier

__all__ = ["MaskClassifier", "build", "checkpoint_activations"]
