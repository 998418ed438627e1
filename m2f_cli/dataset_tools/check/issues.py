"""Findings about a data set, as sentences for the user. An error stops training, a warning impairs its result."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import DataError
from .inspect_image import Problem
from .mistakes import check
from .near_duplicates import DuplicatePair
from .orphans import Orphan
from .summary import Finding, SplitReport

_FOLLOW_FROM_NOTHING = ("unseen-classes", "empty-pictures")  # consequences of a split without annotations


# --- of the folder ----------------------------------------------------------------------------------------------------


def no_split_issues(split: str, error: DataError) -> Finding:
    """Return the finding for a missing split. Training needs its split; without val it runs, but evaluates nothing."""
    level = "error" if split == "train" else "warning"
    return Finding(
        level,
        f"no-{split}-split",
        split,
        f"{split} cannot be used: {error.message}",
        error.hint or "Look at the splits that there are with --split.",
    )


def orphan_issue(orphan: Orphan) -> Finding:
    where = f"in {orphan.folder}"
    if orphan.kind == "pictures":
        message = f"{_counted(orphan.count, 'image')} {where} {_is(orphan.count)} in no split, such as {orphan.first}."
        return Finding(
            "warning", "unused-pictures", orphan.split, message, "Annotate or remove them, or check that names agree."
        )
    belong = "belongs" if orphan.count == 1 else "belong"
    message = f"{_counted(orphan.count, 'annotation file')} {where} {belong} to no image, such as {orphan.first}."
    return Finding(
        "warning",
        "unused-annotations",
        orphan.split,
        message,
        "Copy the images there, or check that both have the same names.",
    )


def class_issues(splits: Sequence[SplitReport]) -> list[Finding]:
    """Return an error for each split whose classes differ from those of the first. Training refuses such splits."""
    first = [each.name for each in splits[0].classes]
    findings = []
    for split in splits[1:]:
        names = [each.name for each in split.classes]
        if names != first:
            strange = [name for name in names if name not in first] or [name for name in first if name not in names]
            message = (
                f"{split.split} has {len(names)} classes and {splits[0].split} {len(first)}; "
                f"they differ in {', '.join(strange[:5]) or 'their order'}."
            )
            findings.append(Finding("error", "other-classes", split.split, message, "Both need the same class list."))
    return findings


# --- of a split -------------------------------------------------------------------------------------------------------


def split_issues(split: SplitReport) -> list[Finding]:
    return [
        *_of_problems(split),
        *_of_passed_over(split),
        *_of_labels(split),
        *_of_mistakes(split),
        *_of_repeats(split),
    ]


def _of_problems(split: SplitReport) -> list[Finding]:
    """Return findings for unusable images. Training stops at them; its evaluation continues with the others, if any."""
    level = "error" if split.split == "train" or not split.description.looked_at else "warning"
    by_kind: dict[str, list[Problem]] = {}
    for problem in split.problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    return [
        Finding(
            level,
            kind,
            split.split,
            f"{_counted(len(problems), 'image')} of {split.description.images} cannot "
            f"be used; the first: {problems[0].message}",
            "Repair them, leave them out, or train with --skip-broken.",
        )
        for kind, problems in by_kind.items()
    ]


def _of_passed_over(split: SplitReport) -> list[Finding]:
    if not split.passed_over:
        return []
    return [
        Finding(
            "warning",
            "passed-over",
            split.split,
            split.passed_over.sentence,
            "Nothing is learned from them: annotate them again, or remove them.",
        )
    ]


def _of_labels(split: SplitReport) -> list[Finding]:
    """Return a warning if no object is annotated. Training runs then, and learns that there is nothing."""
    if not _is_bare(split):
        return []
    crowds = split.description.crowds
    why = f": all {crowds} regions are crowds (iscrowd = 1)" if crowds else ""
    return [
        Finding(
            "warning",
            "nothing-annotated",
            split.split,
            f"No image of {split.split} has an annotated object{why}; nothing can be learned.",
            "Check that annotations and images belong together.",
        )
    ]


def _is_bare(split: SplitReport) -> bool:
    return bool(split.description.looked_at) and not any(split.description.objects_of)


def _of_mistakes(split: SplitReport) -> list[Finding]:
    follow = _FOLLOW_FROM_NOTHING if _is_bare(split) else ()
    return [finding for finding in check(split.description) if finding.kind not in follow]


def _of_repeats(split: SplitReport) -> list[Finding]:
    count = len(split.repeats)
    if not count:
        return []
    repeat, first = "repeats" if count == 1 else "repeat", split.repeats[0]
    return [
        Finding(
            "warning",
            "repeated-pictures",
            split.split,
            f"{_counted(count, 'image')} of {split.split} {repeat} another, such as {first.name} and {first.other}.",
            "Remove the copies.",
        )
    ]


# --- of two splits ----------------------------------------------------------------------------------------------------


def duplicate_issues(shared: Sequence[DuplicatePair]) -> list[Finding]:
    groups: dict[tuple[str, str, bool], list[DuplicatePair]] = {}
    for pair in shared:
        groups.setdefault((pair.split, pair.other_split, pair.identical), []).append(pair)
    return [_duplicate_issue(*key, members) for key, members in groups.items()]


def _duplicate_issue(split: str, other: str, identical: bool, pairs: list[DuplicatePair]) -> Finding:
    count, first = len(pairs), pairs[0]
    which, such = f"{_counted(count, 'image')} of {split}", f"such as {first.name} and {first.other}."
    if identical:
        return Finding(
            "warning",
            "shared-pictures",
            split,
            f"{which} {_is(count)} in {other} too, {such}",
            "Results on images that were trained on mean nothing: remove them from one.",
        )
    look = "looks like an image" if count == 1 else "look like images"
    return Finding(
        "warning",
        "near-duplicates",
        split,
        f"{which} {look} of {other}, {such}",
        "Keep copies and frames of one scene in one split, or the results will flatter.",
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
