"""What our own package asks for, by its metadata, and what of it is installed. Standard library only."""

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
    """A line of our own package's metadata: the distribution, its least version ("" for any), and the extra."""

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
        """What is imported of it: where it has a compiled part, that part."""
        return MODULES.get(self.name, self.name.replace("-", "_"))

    def __str__(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name

    def installed(self) -> tuple[str, str] | None:
        """The distribution that provides it and its version; None where there is none."""
        for name in (self.name, *SAME_MODULE.get(self.name, ())):
            try:
                return name, metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return None


def required_python() -> str:
    """The least version of Python."""
    return (metadata.metadata(DISTRIBUTION)["Requires-Python"] or "").lstrip(">= ")


def requirements() -> list[Requirement]:
    return [Requirement.parse(line) for line in metadata.requires(DISTRIBUTION) or ()]


def is_older(version: str, minimum: str) -> bool:
    """Whether a version comes before another, by their numbers alone: "2.6.0+cu124" is no older than "2.6"."""
    return _numbers(version) < _numbers(minimum)


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
