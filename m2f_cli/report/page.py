"""Rendering of one self-contained HTML page from a template.

jinja2 escapes every value; no template and no code marks data as safe. Marks that turn the direction of writing and
other unseen characters are shown as escapes. A content security policy forbids the page to contact anybody, and to
run or apply anything but its own script and style, which it names by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from ..errors import DataError
from ..runtime.files import read_file, write_text
from ..runtime.text import visible_text
from ..version import __version__
from .tables import finite

TEMPLATES = Path(__file__).parent / "templates"
STYLE, SCRIPT = "page.css", "page.js"
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Render a template and write the page.

    Args:
        template: name of a file in `templates/`.
        path: the HTML file.
        values: values of the template, as plain text, numbers and records. Text is escaped.

    Raises:
        M2FError: the file cannot be written.
    """
    write_text(path, render(template, **values))
    return path


def render(template: str, **values: Any) -> str:
    """Return the page that a template and its values make; see `write_page`."""
    return visible_text(_environment().get_template(template).render(**values))


def image_uri(path: Path) -> str:
    """Return a PNG or JPEG file as a data: URI. An image that is missing is an empty text; the page says so.

    Raises:
        DataError: the file exists and cannot be read.
    """
    if not path.exists():
        return ""
    try:
        content = read_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return f"data:{_MEDIA_TYPES[path.suffix.lower()]};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment of all templates. A value that a template misses is an error, not an empty text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.globals |= {"version": __version__, "policy": _policy(environment)}
    return environment


def figure(value: Any, digits: int = 1) -> str:
    """Return a number as text; a dash where there is none, or where it is NaN or infinite."""
    number = finite(value)
    return "–" if number is None else f"{number:.{digits}f}"


def _policy(environment: jinja2.Environment) -> str:
    style, script = (_hash_of(environment.get_template(name).render()) for name in (STYLE, SCRIPT))
    return (
        f"default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
