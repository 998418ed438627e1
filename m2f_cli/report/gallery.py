"""Data of a gallery as its script takes them, and pages that hold parts of many images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..evaluation.stored_views import ImageView
from ..results.colors import COLOR_BLIND
from ..structures import Task
from ..structures.categories import Categories
from .page import write_page

MOST = 500  # images of a page
FOLDER, INDEX = "report", "index.html"
Gallery = dict[str, Any]
Pages = list[tuple[str, int, int]]


def gallery_of(
    tasks: Sequence[Task],
    categories: Categories,
    images: Sequence[ImageView],
    *,
    alone: str = "",
    remarks: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> Gallery | None:
    """Return what the script of the gallery takes; None without images.

    Args:
        tasks: the tasks, the main one first.
        categories: the classes.
        images: the images.
        alone: what the segments are ("prediction", "annotation") where they are compared with nothing.
        remarks: kind and text of what is wrong with an image, by its name.
    """
    if not images:
        return None
    shown = [each.model_dump(mode="json", exclude_defaults=True) for each in images]
    gallery = {"tasks": list(tasks), **colored(categories), "views": shown}
    if not alone:
        return gallery
    for view in shown:
        own = (remarks or {}).get(view["name"], ())
        view["remarks"] = [{"kind": kind, "text": text} for kind, text in own]
    return {**gallery, "alone": alone, "remarked": any(view["remarks"] for view in shown)}


def colored(categories: Categories) -> Gallery:
    """Return names and colours of the classes, and the colours that colour-blind people can tell apart."""
    classes = [{"name": each.name, "color": list(each.color)} for each in categories]
    return {"categories": classes, "palette": [list(color) for color in COLOR_BLIND]}


def write_parts(
    folder: Path, galleries: Iterable[Gallery | None], title: str, ways: Mapping[str, str], most: int, count: int
) -> Pages:
    """Write a page for each part of the images, and return their names with the numbers of their images.

    Args:
        folder: the folder of the pages.
        galleries: the parts, in order.
        title: title of the whole.
        ways: kinds of errors in words.
        most: images of a part.
        count: images in all.
    """
    pages = [(f"images-{i:03}.html", at + 1, min(at + most, count)) for i, at in enumerate(range(0, count, most), 1)]
    for (name, first, last), part in zip(pages, galleries, strict=True):
        own = f"{title}: images {first} to {last}"
        write_page("images.html", folder / name, title=own, gallery=part, ways=ways, index=INDEX)
    return pages


def parts_of(images: Iterable[ImageView], most: int) -> Iterable[list[ImageView]]:
    """Yield the images in lists of at most `most`."""
    source = iter(images)
    while part := list(islice(source, most)):
        yield part
