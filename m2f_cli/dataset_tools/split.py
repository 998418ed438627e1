"""Division of a data set's images into splits: random but reproducible, with whole groups and similar class shares.

Classes are divided by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011). It takes the rarest class first
and gives each of its images to the split that still lacks most of it. Then single groups move as long as that brings
the shares closer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from .. import plugins
from ..data import records as data_records
from ..data.records import Record
from ..errors import ConfigError, DataError, unknown_name
from ..storage.uris import place_of
from ..structures import Task
from .convert.run import Conversion, check_destination, write_out
from .convert.source import ConvertSource, open_source
from .convert.write import ConvertOutcome

TRAIN, VAL, TEST = "train", "val", "test"
BY_FOLDER = "folder"
# Replacements, by task, for formats that are read but not written.
_SUBSTITUTES: dict[Task, str] = {"panoptic": "coco-panoptic", "instance": "coco-instance", "semantic": "label-maps"}
_EVERYTHING = "images"  # a label that every image has


@dataclass(frozen=True)
class SplitItem:
    """Image to be assigned to a split.

    Attributes:
        name: name of the image.
        group: images of one group stay together.
        labels: the classes that the image shows.
    """

    name: str
    group: str
    labels: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Division:
    """Assignment of images to splits.

    Attributes:
        split_of: the split of each image, by its name.
        groups: the number of groups in each split.
    """

    split_of: Mapping[str, str]
    groups: Mapping[str, int]

    @property
    def images(self) -> Counter[str]:
        return Counter(self.split_of.values())

    def to_dict(self) -> dict[str, Any]:
        images = self.images
        return {
            split: {
                "pictures": images[split],
                "groups": self.groups[split],
                "share": images[split] / len(self.split_of),
            }
            for split in self.groups
        }


# --- the decision -----------------------------------------------------------------------------------------------------


def divide(
    items: Sequence[SplitItem],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    stratify: bool = False,
    pinned: Mapping[str, Sequence[str]] | None = None,
) -> Division:
    """Divide images into splits. The order of `items` does not matter.

    Args:
        shares: split to the share of the images, 0 to 1; "train" gets the rest.
        seed: seed of the random choice.
        stratify: True if the classes in `labels` should have the same shares in each split.
        pinned: split to the groups that it consists of; such a split gets no others.

    Raises:
        ConfigError: shares are out of range, groups are unknown or claimed twice, or a split would be empty.
    """
    pinned = dict(pinned or {})
    _check(items, shares, pinned)
    groups: dict[str, list[SplitItem]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    split_of_group = _pin(groups, pinned)
    free = {key: members for key, members in groups.items() if key not in split_of_group}
    free_shares = {split: share for split, share in shares.items() if split not in pinned}
    total = sum(map(len, free.values()))
    target_counts = {
        TRAIN: max(0.0, total - sum(free_shares.values()) * len(items)),
        **{split: share * len(items) for split, share in free_shares.items()},
    }
    split_of_group |= _stratified(free, target_counts, seed, stratify)
    names = (TRAIN, *dict.fromkeys((*shares, *pinned)))
    counts = Counter(split_of_group.values())
    _refuse_empty(names, counts, len(items), len(groups))
    return Division({item.name: split_of_group[item.group] for item in items}, {name: counts[name] for name in names})


def _check(items: Sequence[SplitItem], shares: Mapping[str, float], pinned: Mapping[str, Sequence[str]]) -> None:
    if not shares and not pinned:
        raise ConfigError(
            "There is no share and no group for val or test.", hint="Pass --val 0.1, or --val-groups NAME."
        )
    if not items:
        raise ConfigError("There are no images to share out.")
    in_both = shares.keys() & pinned.keys()
    if in_both:
        raise ConfigError(f"The split {min(in_both)!r} has a share and groups.", hint="Pass one of the two.")
    if any(not 0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        listed = ", ".join(f"{split} {share:g}" for split, share in shares.items())
        raise ConfigError(f"The shares ({listed}) should each be more than 0 and together less than 1.")


def _pin(groups: Mapping[str, Any], pinned: Mapping[str, Sequence[str]]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for split, names in pinned.items():
        for name in names:
            if name not in groups:
                raise unknown_name("group", name, groups)
            if split_of.setdefault(name, split) != split:
                raise ConfigError(f"The group {name!r} is claimed by {split_of[name]} and by {split}.")
    return split_of


def _stratified(
    groups: Mapping[str, Sequence[SplitItem]], asked: Mapping[str, float], seed: int, stratify: bool
) -> dict[str, str]:
    """Return the split of each group by algorithm 1 of Sechidis et al. (2011), with groups as examples.

    A group weighs as much as its number of images.

    Args:
        asked: split to its number of images.
    """
    weights = {key: Counter(_labels(members, stratify)) for key, members in groups.items()}
    totals = sum(weights.values(), Counter())
    images = totals[_EVERYTHING] or 1
    lacking = {
        split: {label: count * number / images for label, count in totals.items()} for split, number in asked.items()
    }
    left = {label: {key for key, weight in weights.items() if label in weight} for label in totals}
    chosen: dict[str, str] = {}
    while left := {label: keys for label, keys in left.items() if keys}:
        rarest = min(left, key=lambda label: (len(left[label]), label == _EVERYTHING, _chance(seed, label)))
        for key in sorted(left[rarest], key=lambda key: (-weights[key][rarest], _chance(seed, key))):
            chosen[key] = max(
                asked,
                key=lambda split: (lacking[split][rarest], lacking[split][_EVERYTHING], _chance(seed, key, split)),
            )
            for label, count in weights[key].items():
                lacking[chosen[key]][label] -= count
                left[label].discard(key)
    order = sorted(chosen, key=lambda key: _chance(seed, key))
    while any([_move(key, chosen, weights[key], lacking) for key in order]):
        pass
    return chosen


def _move(
    key: str, chosen: dict[str, str], weight: Mapping[Hashable, int], lacking: dict[str, dict[Hashable, float]]
) -> bool:
    """Move a group to the split that reduces the sum of squares of `lacking` most. Return True if it moved.

    The group stays if no split reduces the sum. If classes appear together, the greedy order alone leaves several
    images misplaced. Every move lowers the sum, so the moves come to an end.
    """
    lacking_now = lacking[chosen[key]]

    def change(split: str) -> float:
        return sum(count * (lacking_now[label] - lacking[split][label] + count) for label, count in weight.items())

    best = min(lacking, key=change)  # the current split never wins, because the group would weigh twice
    if change(best) > -1e-6:  # rounding errors must not move a group back and forth
        return False
    for label, count in weight.items():
        lacking_now[label] += count
        lacking[best][label] -= count
    chosen[key] = best
    return True


def _labels(members: Iterable[SplitItem], stratify: bool) -> list[Hashable]:
    """Return the classes of each image, and the label that all images have.

    Images that show nothing are a class of their own, so that they are divided as well.
    """
    classes = ((set(item.labels) or {None}) if stratify else () for item in members)
    # Sorted, so that sums of floats do not depend on the order of files either.
    return sorted((label for shown in classes for label in (*shown, _EVERYTHING)), key=repr)


def _chance(*what: Any) -> bytes:
    """Return a pseudo-random value that depends on nothing but the arguments."""
    return hashlib.sha256(repr(what).encode()).digest()


def _refuse_empty(names: Iterable[str], counts: Counter[str], images: int, groups: int) -> None:
    empty = [name for name in names if not counts[name]]
    if empty:
        raise ConfigError(
            f"The split {empty[0]!r} would be empty: its share of {images} images in {groups} groups is less than "
            "one group.",
            hint="Ask for a larger share, for smaller groups, or name its groups with --val-groups or --test-groups.",
        )


# --- groups and labels ------------------------------------------------------------------------------------------------


def grouping(group_by: str | None) -> Callable[[str], str]:
    """Return the function from an image's name to its group.

    With None, each image is its own group; with "folder", the folder is the group. Otherwise `group_by` is a regular
    expression that is searched for in the name. The group is the match of its first group, or the whole match if it has
    none.

    Raises:
        ConfigError: `group_by` is not a regular expression. The returned function raises it for a name without a match.
    """
    if group_by is None:
        return lambda name: name
    if group_by == BY_FOLDER:
        return lambda name: PurePosixPath(name).parent.as_posix()
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ConfigError(f"--group-by {group_by!r} is no regular expression: {error}.") from error

    def find(name: str) -> str:
        match = pattern.search(name)
        if match is None or not match[bool(pattern.groups)]:
            raise ConfigError(
                f"--group-by {group_by!r} is not found in the name {name!r}.",
                hint="Names are paths below the folder of images, without suffix.",
            )
        return match[bool(pattern.groups)]

    return find


def labels_of(record: Record) -> tuple[int, ...]:
    """Return the classes in an image; an empty result if its annotation is damaged, which is reported on writing."""
    try:
        return data_records.labels_of(record)
    except DataError:
        return ()


# --- a folder ---------------------------------------------------------------------------------------------------------


def split(
    source: str | Path,
    destination: str | Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    stratify: bool = False,
    group_by: str | None = None,
    pinned: Mapping[str, Sequence[str]] | None = None,
    splits: Sequence[str] = (),
    link: bool = False,
    workers: int | None = 1,
    on_start: Callable[[int], None] | None = None,
    on_image: Callable[[ConvertOutcome], None] | None = None,
    **options: Any,
) -> tuple[Division, Conversion]:
    """Write a data set of the same format whose images are divided anew.

    Args:
        shares: as in `divide`.
        seed: as in `divide`.
        stratify: as in `divide`.
        group_by: as in `grouping`.
        pinned: as in `divide`.
        splits: splits of the source that are divided, together. It may be left out if there is only one. Other splits
            are written without change.
        link: as in `convert.run.convert`.
        workers: as in `convert.run.convert`.
        on_start: as in `convert.run.convert`.
        on_image: as in `convert.run.convert`.
        options: as in `open_dataset.open_data`.

    Raises:
        ConfigError: as for `divide`, or the destination exists, or none of several splits was chosen.
        DataError: the source cannot be opened.
    """
    source, destination = place_of(source), Path(destination)
    check_destination(source, destination)
    opened = open_source(source, None, also=splits, **options)
    pooled, kept = _choose(opened, splits, (TRAIN, *shares, *(pinned or {})))
    records = _pooled(pooled)
    find = grouping(group_by)
    items = [SplitItem(record.name, find(record.name), labels_of(record) if stratify else ()) for record in records]
    division = divide(items, shares, seed=seed, stratify=stratify, pinned=pinned)
    parts = {name: [record for record in records if division.split_of[record.name] == name] for name in division.groups}
    to = opened.format if opened.format in plugins.names("converters") else _SUBSTITUTES[opened.task]
    written = write_out(
        opened, {**parts, **kept}, destination, to, link=link, workers=workers, on_start=on_start, on_image=on_image
    )
    return division, written


def _choose(
    opened: ConvertSource, splits: Sequence[str], new_splits: Iterable[str]
) -> tuple[dict[str, Sequence[Record]], dict[str, Sequence[Record]]]:
    """Return the records of the splits to divide, and of those that stay as they are."""
    records_of = {data.split: data.records for data in opened.splits}
    for name in splits:
        if name not in records_of:
            raise unknown_name("split", name, records_of, error=DataError)
    if not splits and len(records_of) > 1:
        raise ConfigError(
            f"{opened.folder} has the splits {', '.join(records_of)}.",
            hint="Say which of them to share out: --split train, or --split train --split val.",
        )
    chosen = {name: records for name, records in records_of.items() if name in (splits or records_of)}
    unchanged = {name: records for name, records in records_of.items() if name not in chosen}
    duplicate = next((name for name in new_splits if name in unchanged), None)
    if duplicate is not None:
        raise ConfigError(
            f"{opened.folder} has a split {duplicate!r} already.",
            hint=f"Share it out as well, with --split {duplicate}, or hold back another one.",
        )
    return chosen, unchanged


def _pooled(parts: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Return the records of all parts. If a name would occur twice, all get the folder of their split as a prefix."""
    names = Counter(record.name for records in parts.values() for record in records)
    if max(names.values()) == 1:
        return [record for records in parts.values() for record in records]
    return [replace(record, name=f"{part}/{record.name}") for part, records in parts.items() for record in records]
