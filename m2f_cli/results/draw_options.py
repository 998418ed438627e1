"""Options of drawings: what is drawn, of which classes, in which colours."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError, unknown_name

PARTS = ("masks", "outlines", "labels", "boxes", "scores")
PALETTES = ("default", "color-blind")


@dataclass(frozen=True)
class DrawOptions:
    """Options of a drawing.

    Attributes:
        parts: names of `PARTS`: masks, outlines, labels (names of classes), boxes (of things) and scores.
        palette: name of `PALETTES`: the colours of the classes, or colours that colour-blind people can tell apart.
        opacity: opacity of masks, 0 (invisible) to 1; None: 0.5 for things and 0.35 for stuff.
        classes: names of the classes to draw, also in their short form on images; none: all. A text may hold several
            names between commas.
        legend: True for a strip below the image, with the classes that are drawn.

    Raises:
        ConfigError: a value is unknown or out of range. Names of classes are checked with the result.
    """

    parts: tuple[str, ...] = ("masks", "outlines", "labels", "scores")
    palette: str = "default"
    opacity: float | None = None
    classes: tuple[str, ...] = ()
    legend: bool = False

    def __post_init__(self) -> None:
        for key in ("parts", "classes"):
            value = getattr(self, key)
            object.__setattr__(self, key, (value,) if isinstance(value, str) else tuple(value))
        if not self.parts:
            raise ConfigError("Nothing is to be drawn.", hint=f"Name some of {', '.join(PARTS)}.")
        for part in self.parts:
            if part not in PARTS:
                raise unknown_name("part of a drawing", part, PARTS)
        if self.palette not in PALETTES:
            raise unknown_name("palette", self.palette, PALETTES)
        if self.opacity is not None and not 0 <= self.opacity <= 1:
            raise ConfigError(
                f"The opacity is {self.opacity}; it should be from 0 to 1.", hint="0 is invisible, 1 hides the image."
            )
