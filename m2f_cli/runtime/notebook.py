"""Showing of images and pages: in the notebook that this process belongs to, else by a program of the system."""

from __future__ import annotations

import html
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import M2FError
from .text import visible_text

if TYPE_CHECKING:
    from PIL.Image import Image


def is_notebook() -> bool:
    """Return True in a process of IPython that has a front end, such as Jupyter; False in a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def show_image(image: Image) -> None:
    """Show an image below the cell of a notebook, or open it with the system's own viewer.

    Raises:
        M2FError: there is no viewer.
    """
    if is_notebook():
        return _display(image)
    from PIL import ImageShow

    if not ImageShow.show(image):
        raise M2FError("There is no program that shows images.", hint="Write a file instead, with save.")
    return None


def show_page(page: Path) -> None:
    """Show an HTML page in a frame below the cell of a notebook, or open it in the browser.

    Raises:
        M2FError: there is no browser.
    """
    if is_notebook():
        return _display(_Framed(framed(page.read_text(encoding="utf-8"), title="report", height=720)))
    if not webbrowser.open(page.resolve().as_uri()):
        raise M2FError(f"There is no browser to show {page}.", hint="Open that file on another machine.")
    return None


def framed(page: str, *, title: str, height: int) -> str:
    """Return HTML with a whole page in a frame of a height in pixels, where its scripts and styles are its own.

    The page cannot reach the notebook around it.
    """
    rights = "allow-scripts allow-downloads"
    style = f"width:100%;height:{height}px;border:0;grid-area:1/1"
    return f'<iframe srcdoc="{escaped(page)}" sandbox="{rights}" style="{style}" title="{title}"></iframe>'


def escaped(text: str) -> str:
    """Return text for HTML, also between quotes, with visible characters only."""
    return visible_text(html.escape(text))


@dataclass(frozen=True)
class _Framed:
    """HTML that a notebook shows. IPython's own class for that warns of frames."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def _display(shown: Any) -> None:
    sys.modules["IPython"].display.display(shown)
