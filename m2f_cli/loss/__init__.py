"""Training losses: matching queries with targets, and what a matched or unmatched query costs."""

from .criterion import Criterion, Piloted, normaliser
from .matcher import Matcher, Pairs

__all__ = ["Criterion", "Matcher", "Pairs", "Piloted", "normaliser"]
