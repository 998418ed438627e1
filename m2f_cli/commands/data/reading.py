"""Open the splits of a folder as the options of m2f data say, or as training with a preset does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...runtime.text import is_whole_number
from ...storage.uris import place_of
from .. import options as opt

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...data.records import DataSet

PAGES = (".html", ".htm")


def split_opener(
    folder: str,
    preset: str | None,
    format_: str | None,
    task: str | None,
    classes: str | None,
    ignore_index: int | None,
    label_map: list[str] | None,
) -> Callable[[str], DataSet]:
    """Return a function that opens a split by its name."""
    given = {
        "format": format_,
        "task": task,
        "classes": classes,
        "ignore_index": ignore_index,
        "label_map": parse_label_map(label_map),
    }
    opt.one_of("task", task, opt.TASKS)
    if preset is None:
        from ...data.open_dataset import open_data

        return lambda split: open_data(place_of(folder), split, trust_code=True, **given)
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"--preset says how the data is read; {', '.join(names)} cannot be combined with it.",
            hint="Leave one of the two out.",
        )
    from ...config import presets as config

    return AsTraining(config.load(preset), place_of(folder), [])


@dataclass
class AsTraining:
    """Opener of splits for training with a preset. Data without the preset's task changes the task."""

    settings: Config
    folder: Path | str
    notes: list[str]

    def __call__(self, split: str) -> DataSet:
        from ...data.formats.base import NoTask
        from ...training.data import open_split, with_task_of

        try:
            return open_split(self.settings, self.folder, split)
        except NoTask as error:
            self.settings = with_task_of(self.settings, error, self.notes)
            return open_split(self.settings, self.folder, split)


def parse_label_map(given: list[str] | None) -> dict[int, str | int | None] | None:
    """Parse VALUE=CLASS, where CLASS is a name, a number, or nothing for a value that is left out.

    Raises:
        ConfigError: a part of another form.
    """
    if not given:
        return None
    found: dict[int, str | int | None] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        value, is_there, meaning = (each.strip() for each in part.partition("="))
        if not is_there or not is_whole_number(value) or (meaning.isdecimal() and not is_whole_number(meaning)):
            raise ConfigError(f"--label-map {part[:80]!r} should be VALUE=CLASS, such as 255=cell.")
        found[int(value)] = int(meaning) if meaning.isdecimal() else meaning or None
    return found


def check_suffix(option: str, path: Path | None, known: tuple[str, ...]) -> None:
    if path is not None and path.suffix.lower() not in known:
        raise ConfigError(f"{option} {path} should end in {', '.join(known[:-1])} or {known[-1]}.")
