"""Typical mistakes in a data set, which are cheaper to detect before training than after it."""

from __future__ import annotations

from .summary import Finding, SplitCounts

BACKGROUNDS = frozenset(("background", "bg", "_background_", "unlabeled", "unlabelled", "void", "ignore", "none"))
LEAST_EDGE, MOST_PIXELS = 32, 50_000_000  # 32 is the stride of the coarsest features
USUAL_QUERIES = 100
_SHOWN = 5


def check(counts: SplitCounts) -> list[Finding]:
    """Look for typical mistakes in the counts of a split."""
    return [finding for look in _CHECKS if (finding := look(counts)) is not None]


def _warning(counts: SplitCounts, kind: str, message: str, hint: str) -> Finding:
    return Finding("warning", kind, counts.split, message, hint)


def _binary(counts: SplitCounts) -> Finding | None:
    """Return a warning for masks of 0 and 255, which look like class 0 and ignored pixels."""
    only_zero = counts.task == "semantic" and counts.images_of[0] and not any(counts.images_of[1:])
    if not only_zero or not counts.ignored:
        return None
    return _warning(
        counts,
        "binary-masks",
        f"Every pixel is {counts.categories[0].name!r} (value 0) or ignored ({counts.ignored:.0%}): "
        "these look like masks of 0 and 255.",
        "If 255 is the object, say so: --label-map 0=REST,255=OBJECT, or data.label_map in a preset.",
    )


def _background(counts: SplitCounts) -> Finding | None:
    names = [category.name for category in counts.categories if category.name.casefold() in BACKGROUNDS]
    if not names:
        return None
    number = [category.name for category in counts.categories].index(names[0])
    hint = "Remove the category: what was not annotated needs none."
    if counts.task == "semantic":
        hint = f"If it means that nothing was annotated, ignore its pixels: data.ignore_index={number}."
    return _warning(counts, "background-class", f"The class {number}, {names[0]!r}, is learned like any other.", hint)


def _one_class(counts: SplitCounts) -> Finding | None:
    seen = [c.name for c, images in zip(counts.categories, counts.images_of, strict=True) if images]
    if counts.task != "semantic" or len(seen) != 1 or counts.ignored:
        return None
    return _warning(
        counts,
        "one-class",
        f"Every pixel is {seen[0]!r}: there is nothing to tell apart.",
        "Annotate the rest as another class.",
    )


def _unseen(counts: SplitCounts) -> Finding | None:
    unseen = [c.name for c, images in zip(counts.categories, counts.images_of, strict=True) if not images]
    if not unseen or not counts.looked_at:
        return None
    names = ", ".join(unseen[:_SHOWN]) + (", …" if len(unseen) > _SHOWN else "")
    return _warning(
        counts,
        "unseen-classes",
        f"{len(unseen)} of {len(counts.categories)} classes are nowhere in {counts.looked_at} images of "
        f"{counts.split}: {names}.",
        "They cannot be learned or measured here; check that ids and names belong together.",
    )


def _no_objects(counts: SplitCounts) -> Finding | None:
    empty = counts.objects.count(0)
    if 2 * empty <= counts.looked_at:
        return None
    return _warning(
        counts,
        "empty-pictures",
        f"{empty} of {counts.looked_at} images have no annotated object.",
        "If they are not really empty, leave them out, or set train.drop_empty.",
    )


def _hidden(counts: SplitCounts) -> Finding | None:
    if not counts.hidden:
        return None
    return _warning(
        counts,
        "hidden-objects",
        f"{counts.hidden} annotated regions have no pixel, the first in {counts.hidden_in}.",
        "They count as missed in evaluation; remove them.",
    )


def _many(counts: SplitCounts) -> Finding | None:
    crowded = sum(count > USUAL_QUERIES for count in counts.objects)
    if not crowded:
        return None
    return _warning(
        counts,
        "many-objects",
        f"{crowded} images have more than {USUAL_QUERIES} objects, one up to {max(counts.objects)}.",
        "A model finds no more objects than it has queries: give it more, or cut images into tiles.",
    )


def _sizes(counts: SplitCounts) -> Finding | None:
    absurd = [size for size in counts.sizes if min(size) < LEAST_EDGE or size[0] * size[1] > MOST_PIXELS]
    if not absurd:
        return None
    height, width = absurd[0]
    return _warning(
        counts,
        "absurd-sizes",
        f"{sum(counts.sizes[size] for size in absurd)} images are tiny or huge, such as {height} x {width}.",
        f"Edges below {LEAST_EDGE} pixels show nothing; above {MOST_PIXELS // 10**6} megapixels, cut tiles.",
    )


_CHECKS = (_binary, _background, _one_class, _unseen, _no_objects, _hidden, _many, _sizes)
