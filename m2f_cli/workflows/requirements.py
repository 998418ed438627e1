"""Requirements of our own package by its metadata, and their installed versions. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

DISTRIBUTION = "m2f-cli"
MODULES = {"opencv-python": "cv2", "pillow": "PIL.Image", "pyyaml": "yaml", "pycocotools": "pycocotools.mask"}
SAME_MODULE = {  # builds of one package under several names
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
}


@dataclass(frozen=True)
class Requirement:
    """A requirement in the metadata of our own package.

    Attributes:
        name: name of the distribution.
        minimum: least version, or "" for any.
        extra: extra that needs it, or "".
    """

    name: str
    minimum: str
    extra: str

    @classmethod
    def parse(cls, line: str) -> Requirement:
        """Read "name>=1.2; extra == 'x'", the only form that our pyproject.toml uses."""
        name, minimum = re.match(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", line).groups(default="")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line)
        return cls(name, minimum, extra[1] if extra else "")

    @property
    def module(self) -> str:
        """Name of the module to import: the compiled part, if there is one."""
        return MODULES.get(self.name, self.name.replace("-", "_"))

    def __str__(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name

    def installed(self) -> tuple[str, str] | None:
        """Return the installed distribution that provides it and its version, or None."""
        for name in (self.name, *SAME_MODULE.get(self.name, ())):
            try:
                return name, metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return None


def required_python() -> str:
    """Return the least version of Python."""
    return (metadata.metadata(DISTRIBUTION)["Requires-Python"] or "").lstrip(">= ")


def requirements() -> list[Requirement]:
    return [Requirement.parse(line) for line in metadata.requires(DISTRIBUTION) or ()]


def is_older(version: str, minimum: str) -> bool:
    """Return True if a version is below another by their numbers alone: "2.6.0+cu124" is not older than "2.6"."""
    return _numbers(version) < _numbers(minimum)


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
