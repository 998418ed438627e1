"""The version of m2f. pyproject.toml reads it from here, so that no file imports upward for it."""

__version__ = "0.1.0"
