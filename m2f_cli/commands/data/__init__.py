"""m2f data: prepare, check, view, convert and split folders of annotated images."""

from .check import app

__all__ = ["app"]
