"""The networks."""

from .build import build, build_shapes, checkpoint_activations
from .mask_classifier import MaskClassifier

__all__ = ["MaskClassifier", "build", "build_shapes", "checkpoint_activations"]
