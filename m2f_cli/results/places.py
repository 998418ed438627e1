"""Names of the files of a run, kept apart: no two images share a file, and no input image is overwritten."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import ConfigError
from ..runtime.files import Distinct
from .server_formats import FRAMED, frame_of
from .writers import folder_of, stem_for


class Named(Protocol):
    """Protocol of an item that has a name."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


class Places:
    """Register of the names of a run's images. Ask it for each image before a file of that image is written.

    Args:
        out: the folder of results.
        formats: names of writers.

    Attributes:
        folders: paths of the folders of the formats, which may be no links themselves.
        plain: the names that are taken.
        frames: the names of Cityscapes frames that are taken.
        framed: the first of `formats` that names its files by the frame, or None.
    """

    def __init__(self, out: Path, formats: Sequence[str]):
        self.formats = tuple(dict.fromkeys(formats))
        root = Path(os.path.realpath(out))
        self.folders = {str(folder_of(root, name)) for name in formats}
        self.plain, self.frames = Distinct("images"), Distinct("images")
        self.framed = next((name for name in formats if name in FRAMED), None)
        self.out = out

    def claim(self, name: str, image: Path | None) -> None:
        """Take the files of one image's results.

        Raises:
            DataError: another image has them.
            ConfigError: the image itself lies where results are written, or a link leads them elsewhere.
        """
        self.plain.add(name)
        frame = frame_of(stem_for(self.out, self.framed, name)) if self.framed is not None else None
        if frame is not None:
            self.frames.add(name, frame.relative_to(self.out).as_posix())
        for place in (stem_for(self.out, each, name) for each in self.formats):
            if not self._holds(os.path.realpath(place)):
                raise ConfigError(f"A link leads {place} out of the folder of results.", hint="Remove the link.")
        if image is not None and self._holds(folder := _real_folder(image.parent)):
            raise ConfigError(
                f"The image {image} lies in {folder}, where results would be written over it.",
                hint="Choose another --out.",
            )

    def _holds(self, folder: str) -> bool:
        return any(folder == each or folder.startswith(each + os.sep) for each in self.folders)

    def claimed(self, items: Iterable[Item], path: str) -> Iterator[Item]:
        """Yield items once their files are taken.

        Args:
            items: items with a name.
            path: the attribute of an item that holds the path of its image.
        """
        for item in items:
            self.claim(item.name, getattr(item, path, None))
            yield item


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)
