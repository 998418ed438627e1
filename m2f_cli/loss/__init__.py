"""Training losses: matching queries with targets, and what a matched or unmatched query costs."""

from .criterion import Criterion, Piloted, make_criterion, normaliser
from .matcher import Matcher, Pairs
from .per_pixel import PerPixelCriterion

__all__ = ["Criterion", "Matcher", "Pairs", "PerPixelCriterion", "Piloted", "make_criterion", "normaliser"]
