"""Rendering of one self-contained HTML page from a template.

jinja2 escapes every value; no template and no code marks data as safe. Marks that turn the direction of writing and
other unseen characters are shown as escapes, also in the JSON that scripts read. A content security policy forbids the
page to contact anybody, and to run or apply anything but its own scripts and styles, which it names by their hashes.

A template names them as `scripts` and `styles`: files of `templates/`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ..errors import DataError
from ..runtime.files import read_file, write_text
from ..runtime.text import visible_line, visible_text
from ..version import __version__
from .tables import finite

TEMPLATES = Path(__file__).parent / "templates"
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


def jpeg_uri(image: Image.Image) -> str:
    """Return an image as a JPEG in a data: URI."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


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
    environment.filters |= {"figure": figure, "signed": signed, "short": short}
    environment.policies["json.dumps_function"] = _json
    environment.globals |= {"version": __version__, "policy": functools.partial(_policy, environment)}
    return environment


def figure(value: Any, digits: int = 1) -> str:
    """Return a number as text; a dash where there is none, or where it is NaN or infinite."""
    number = finite(value)
    return "–" if number is None else f"{number:.{digits}f}"


def signed(value: Any) -> str:
    """Return a difference as text with its sign."""
    number = finite(value)
    return "–" if number is None else f"{number:+.1f}"


def short(count: int) -> str:
    """Return a count in at most five letters, such as 1,234, 56k or 78M."""
    for limit, unit in ((10_000_000, 1_000_000), (10_000, 1000)):
        if count >= limit:
            return f"{count / unit:.0f}{'M' if unit == 1_000_000 else 'k'}"
    return f"{count:,}"


def _policy(environment: jinja2.Environment, scripts: Sequence[str], styles: Sequence[str]) -> str:
    """Return the content security policy of a page with these scripts and styles."""

    def hashes(names: Sequence[str]) -> str:
        return " ".join(f"'{_hash_of(environment.get_template(name).render())}'" for name in names)

    return (
        f"default-src 'none'; img-src data:; style-src {hashes(styles)}; script-src {hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(tree: Any, **options: Any) -> str:
    """Return JSON whose texts show unseen characters as escapes, and in which NaN and infinity are null."""
    return json.dumps(_visible(tree), separators=(",", ":"), **options)


def _visible(tree: Any) -> Any:
    if isinstance(tree, str):
        return visible_line(tree)
    if isinstance(tree, float):
        return finite(tree)
    if isinstance(tree, Mapping):
        return {visible_line(str(key)): _visible(value) for key, value in tree.items()}
    return [_visible(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def _hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
