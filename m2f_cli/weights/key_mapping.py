"""Conversion between foreign tensors and m2f's: one mechanism for every name table (the tables are in `key_tables.py`).

A rule gives the foreign name and layout of one of m2f's tensors. Every conversion starts from m2f's names, so a load is
strict by construction. Each of m2f's tensors has a source, and the rest of the file has to be on the table's list of
harmless tensors.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightsError, nearest

Shape = tuple[int, ...]
SHOWN = 5  # names of each kind in an error message


# --- layouts ----------------------------------------------------------------------------------------------------------


class Same:
    """Layout that is the same in both formats, and the base class of the layouts that differ."""

    def their_shapes(self, ours: Shape) -> list[Shape]:
        return [ours]

    def fitted(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        """Return the foreign tensors in the shapes that are needed, where numbers of another size can be resampled."""
        return theirs

    def to_m2f(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0]

    def from_m2f(self, ours: Tensor) -> list[Tensor]:
        return [ours]


@dataclass(frozen=True)
class Packed(Same):
    """Layout in which m2f's tensor is `parts` foreign ones, one below the other.

    Query, key and value rows of one projection are stored like this.
    """

    parts: int = 3

    def their_shapes(self, ours: Shape) -> list[Shape]:
        return [(ours[0] // self.parts, *ours[1:])] * self.parts

    def to_m2f(self, theirs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(theirs))

    def from_m2f(self, ours: Tensor) -> list[Tensor]:
        return list(ours.chunk(self.parts))


class LastPairFirst(Same):
    """Layout of `sampling_offsets`, whose foreign rows are ordered (…, xy) and m2f's (xy, …)."""

    def to_m2f(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0].unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)

    def from_m2f(self, ours: Tensor) -> list[Tensor]:
        return [ours.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)]


class ChannelMajor(Same):
    """Layout of OpenMMLab's patch merging.

    The last axis is (channel, row, column) there and (column, row, channel) in m2f.
    """

    def to_m2f(self, theirs: Sequence[Tensor]) -> Tensor:
        return self._turn(theirs[0].unflatten(-1, (-1, 2, 2)))

    def from_m2f(self, ours: Tensor) -> list[Tensor]:
        return [self._turn(ours.unflatten(-1, (2, 2, -1)))]

    @staticmethod
    def _turn(x: Tensor) -> Tensor:
        return x.transpose(-1, -3).flatten(-3)


SAME = Same()


# --- rules and tables -------------------------------------------------------------------------------------------------


class Rule:
    """Pattern of m2f's names, with the foreign names and the foreign layout.

    In m2f's pattern `{i}`, `{j}`, `{k}` stand for numbers, `{rest}` for anything, and every other `{word}` for one
    component. The foreign patterns may use the same words and, for a number, `{i-1}`, `{i+1}`, `{i+2}`, `{2i}`, `{2-i}`
    and `{3-i}`.
    """

    def __init__(self, ours: str, *theirs: str, layout: Same = SAME):
        self.theirs, self.layout = theirs, layout
        kinds = {"i": r"\d+", "j": r"\d+", "k": r"\d+", "rest": ".+"}
        parts = re.split(r"\{(\w+)\}", ours)
        words = [f"(?P<{word}>{kinds.get(word, '[^.]+')})" for word in parts[1::2]]
        literals = [re.escape(text) for text in parts[0::2]]
        self.pattern = re.compile("".join(a + b for a, b in zip(literals, [*words, ""], strict=True)))

    def names(self, ours: str) -> list[str] | None:
        """Return the foreign names of one of m2f's names, or None if it does not match this rule."""
        match = self.pattern.fullmatch(ours)
        if match is None:
            return None
        values: dict[str, str | int] = {}
        for word, text in match.groupdict().items():
            values[word] = text
            if text.isdigit():
                number = int(text)
                values.update({f"{word}{shift:+}": number + shift for shift in (-1, 1, 2)})
                values.update({f"2{word}": 2 * number, f"2-{word}": 2 - number, f"3-{word}": 3 - number})
        return [re.sub(r"\{([^}]+)\}", lambda m: str(values[m[1]]), pattern) for pattern in self.theirs]


@dataclass(frozen=True, eq=False)
class Table:
    """Name table of a foreign format.

    Attributes:
        format: name of the format.
        marks: a name that begins with one of these identifies the format.
        also: beginnings of which each must begin a name, too, where formats share their marks.
        rules: the rules, of which the first match counts.
        spellings: (pattern, replacement) pairs that turn older and other spellings into that of the rules, in order.
        harmless: (pattern, reason) of tensors that a file may hold and no network needs.
        maskformer_spellings: pairs that precede the others in a file without `query_feat`, such as a MaskFormer's.
        maskformer_names: pairs that turn names of the rules into the spelling of MaskFormer's files.
    """

    format: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    also: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    harmless: tuple[tuple[str, str], ...] = ()
    maskformer_spellings: tuple[tuple[str, str], ...] = ()
    maskformer_names: tuple[tuple[str, str], ...] = ()

    def find(self, ours: str) -> tuple[list[str], Same]:
        """Return the foreign names of m2f's name `ours`, and the layout.

        Raises:
            WeightsError: the format has no name for it.
        """
        match = _find(self, ours)
        if match is None:
            raise WeightsError(
                f"The {self.format} format has no place for {ours!r}.",
                hint="It holds the published networks only, with a backbone swin or resnet.",
            )
        return match

    def spell(self, names: Iterable[str]) -> dict[str, str]:
        """Return each name of a file with its spelling in the rules."""
        names = list(names)
        is_mask2former = any(".query_feat." in name for name in names)
        pairs = self.spellings if is_mask2former else (*self.maskformer_spellings, *self.spellings)
        return {name: _respelled(name, pairs) for name in names}

    def recognises(self, names: Iterable[str]) -> bool:
        """Return True if names of a file, without a common prefix, are of this format."""
        names = list(names)
        needed = (self.marks, *self.also) if self.marks else ()
        return bool(needed) and all(any(name.startswith(start) for name in names) for start in needed)

    def is_harmless(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern, _ in self.harmless)


def _respelled(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


@functools.lru_cache(maxsize=8192)
def _find(table: Table, ours: str) -> tuple[list[str], Same] | None:
    for rule in table.rules:
        names = rule.names(ours)
        if names is not None:
            return names, rule.layout
    return None


def spelled(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the spelling of the table's rules.

    Raises:
        WeightsError: two names of the file mean the same tensor.
    """
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    spelling = table.spell(tensors)
    for name, tensor in tensors.items():
        key = spelling[name]
        if key in result:
            raise WeightsError(f"The file has two tensors for the same place: {origin[key]!r} and {name!r}.")
        result[key], origin[key] = tensor, name
    return result


def to_m2f(table: Table, tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return the foreign tensors under m2f's names, exactly those of `shapes`.

    `num_batches_tracked` may be missing from a file (frozen batch norm has none); it is then zero.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape. The message names the first of them.
    """
    source_state = spelled(table, tensors)
    left_over = set(source_state)
    state: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for ours, shape in shapes.items():
        names, layout = table.find(ours)
        absent = [name for name in names if name not in source_state]
        if absent:
            if ours.endswith("num_batches_tracked"):
                state[ours] = torch.zeros((), dtype=torch.long)
            else:
                missing += absent
            continue
        left_over -= set(names)
        their_shapes = layout.their_shapes(tuple(shape))
        parts = layout.fitted([source_state[name] for name in names], their_shapes)
        wrong = [
            f"{name} is {_text(part.shape)} and should be {_text(wanted)}"
            for name, part, wanted in zip(names, parts, their_shapes, strict=True)
            if tuple(part.shape) != wanted
        ]
        if wrong:
            misshapen += wrong
        else:
            state[ours] = layout.to_m2f(parts)
    left_over = {name for name in left_over if not table.is_harmless(name)}
    refuse(missing, sorted(left_over), misshapen)
    return state


def from_m2f(table: Table, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return m2f's tensors under the foreign names, in the foreign layout.

    Raises:
        WeightsError: the format has no name for one of them.
    """
    tensors = {}
    for ours, tensor in state.items():
        names, layout = table.find(ours)
        tensors.update(zip(names, layout.from_m2f(tensor), strict=True))
    if any(ours.startswith("decoder.blocks.") for ours in state):
        tensors = {_respelled(name, table.maskformer_names): tensor for name, tensor in tensors.items()}
    return tensors


def refuse(missing: Sequence[str], left_over: Sequence[str], misshapen: Sequence[str]) -> None:
    """Refuse weights that do not fit.

    Raises:
        WeightsError: any of the three arguments is not empty.
    """
    problems = []
    if misshapen:
        problems.append(f"{len(misshapen)} of another shape: {_some(misshapen, '; ')}")
    if missing:
        shown = [_with_nearest(name, left_over) for name in missing[:SHOWN]]
        problems.append(f"{len(missing)} missing: {_some([*shown, *missing[SHOWN:]])}")
    if left_over:
        problems.append(f"{len(left_over)} left over: {_some(left_over)}")
    if problems:
        raise WeightsError(f"The weights do not fit the network: {'. '.join(problems)}.")


def _with_nearest(name: str, left_over: Sequence[str]) -> str:
    close = nearest(name, left_over, count=1)
    return f"{name} (nearest left over: {close[0]})" if close else name


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


# --- wrappers ---------------------------------------------------------------------------------------------------------

# Parts that torch.compile, fully sharded training and recomputation insert into names.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrapped(tensors: Mapping[str, Tensor], marks: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without the prefixes that trainers add to names, such as "module." or "model._orig_mod.".

    Args:
        marks: beginnings of names in the known formats. The text before one of them is the prefix.

    Returns:
        The tensors, and notes for the user. If a file holds several copies (a model and its average), a note names the
            one that was taken.

    Raises:
        WeightsError: two names of the file mean the same tensor.
    """
    plain = _renamed(tensors, lambda name: _INNER.sub("", name))
    before_mark = re.compile(rf"(?:.+?\.)??(?={'|'.join(map(re.escape, marks))})")
    counts: dict[str, int] = {}
    for match in filter(None, map(before_mark.match, plain)):
        counts[match.group()] = counts.get(match.group(), 0) + 1
    if not counts:
        return plain, []
    chosen = "" if "" in counts else max(counts, key=counts.__getitem__)  # the first of the largest
    others = [prefix for prefix in counts if prefix != chosen]
    by_length = sorted(counts, key=len, reverse=True)

    def is_other(name: str) -> bool:
        return next((prefix for prefix in by_length if name.startswith(prefix)), chosen) != chosen

    kept = {name: tensor for name, tensor in plain.items() if not is_other(name)} if others else plain
    taken = f"that under {chosen!r}" if chosen else "that without a prefix"
    notes = [f"The file holds several networks: {taken} was taken, not {', '.join(map(repr, others))}."]
    return _renamed(kept, lambda name: name.removeprefix(chosen)), notes if others else []


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = rename(name)
        if short in result:
            raise WeightsError(f"The file has two tensors for the same place: {short!r} and {name!r}.")
        result[short] = tensor
    return result


# --- looking at a foreign file with our names -------------------------------------------------------------------------


class OurView:
    """Shapes of a foreign file under m2f's names. They serve to infer the network of the file."""

    def __init__(self, table: Table, tensors: Mapping[str, Tensor]):
        self.table = table
        spelling = table.spell(tensors)
        self.shapes = {spelling[name]: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __contains__(self, ours: str) -> bool:
        match = _find(self.table, ours)
        return match is not None and all(name in self.shapes for name in match[0])

    def __getitem__(self, ours: str) -> Shape:
        """Return the shape that m2f's tensor of this name would have."""
        names, _ = self.table.find(ours)
        first = self.shapes[names[0]]
        return (sum(self.shapes[name][0] for name in names), *first[1:]) if first else first

    def count(self, pattern: str) -> int:
        """Return the number of names "… {} …" in the file, numbered from 0 without a gap."""
        number = 0
        while pattern.format(number) in self:
            number += 1
        return number

    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())
