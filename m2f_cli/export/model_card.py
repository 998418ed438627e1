"""Model card of a Hugging Face export: README.md, with metadata for the hub at its beginning.

Names of classes, data sets and files may come from strangers. In the text they stand between backquotes, where neither
Markdown nor HTML means anything; the metadata is written by PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config import presets
from ..config.methods import methods
from ..config.published import NAMES
from ..config.schema import Config
from ..evaluation.report import RESULTS
from ..inference.segmenter import Segmenter
from ..runtime.text import json_text, visible_line
from ..structures.categories import Categories
from ..version import __version__
from ..weights.write_huggingface import to_config_json
from .run_record import RunRecord, read_run

_SPDX = {"cc-by-nc-4.0", "apache-2.0", "mit", "bsd-3-clause"}  # names of the hub, which are those of SPDX in lower case
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_NO_NAMES = ("unknown", "checkpoint", "")  # of data sets that the configuration of a checkpoint does not know
_NO_DATASETS = (*_NO_NAMES, "synthetic")  # of the hub; the last are scenes that m2f generates
_CLASSES_SHOWN, _SETTINGS_SHOWN, _LONGEST = 200, 50, 200
_PARTS = ("task", "model", "input", "test", "train")  # parts of the configuration that are compared with the preset


@dataclass(frozen=True)
class _Facts:
    """Facts that several parts of a card need.

    Attributes:
        config: configuration of the model.
        source: origin of the weights.
        preset: shipped preset of the configuration's name; None if there is none.
        released: the weights are the released ones of the preset.
        run: the run that the weights lie in; None if they lie in none.
    """

    config: Config
    source: str
    preset: Config | None
    released: bool
    run: RunRecord | None

    @property
    def licences(self) -> list[str]:
        return _licences_of(self.preset) if self.released else []


def model_class(config: Config) -> str:
    """Return the name of the class of transformers that loads a network."""
    return str(to_config_json(config.model, ())["architectures"][0])


def is_released(segmenter: Segmenter) -> bool:
    """Return True for the released weights of the preset. Published figures and licences apply to no others."""
    source, preset = segmenter.source, _shipped(segmenter.config.name)
    if preset is None:
        return False
    if source.startswith(f"{preset.name} ("):
        return True
    file_name = Path(source).name
    addresses = [(str(each.hub), str(each.url).rpartition("/")[2]) for each in preset.weights]
    return any(
        source == hub or (each.hash_prefix is not None and file_name == file)
        for each, (hub, file) in zip(preset.weights, addresses, strict=True)
    )


def model_card(segmenter: Segmenter, repo: str | None = None) -> str:
    """Return the text of README.md.

    Args:
        segmenter: the model.
        repo: repository that the folder is pushed to; None: the card speaks of its own folder.

    Raises:
        DataError: the weights lie in a run with a damaged file.
    """
    config = segmenter.config
    run = read_run(Path(segmenter.source))
    facts = _Facts(config, segmenter.source, _shipped(config.name), is_released(segmenter), run)
    method = methods()[config.model.method]
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True, width=10_000).strip()}\n---",
        f"# {_code(config.name)}",
        f"[{method.title}]({method.source}) for {', '.join(config.test.tasks)} segmentation with "
        f"{len(segmenter.categories)} classes. Written by m2f {__version__} from {_code(facts.source)}.",
        _section("How to use it", _usage(config, repo)),
        _section("Figures", _figures(facts)),
        _section("Classes", _classes(segmenter.categories)),
        _section("Licence", [_licence(facts)]),
        _section("Data", [_data(facts)]),
        _section("Configuration", _configuration(facts)),
    ]
    return "\n\n".join(parts) + "\n"


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(facts: _Facts) -> dict[str, Any]:
    config = facts.config
    tags = ["image-segmentation", *dict.fromkeys(("mask2former", config.model.method))]
    base, dataset = _base_model(facts), _slug(config.data.dataset)
    return {
        **_licence_metadata(facts.licences),
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": [*tags, *(f"{task}-segmentation" for task in config.test.tasks)],
        **({"base_model": base} if base else {}),
        **({"datasets": [dataset]} if config.data.dataset not in _NO_DATASETS and dataset else {}),
        **_model_index(facts),
    }


def _licence_metadata(licences: Sequence[str]) -> dict[str, str]:
    if not licences:
        return {}
    if len(licences) == 1 and licences[0].lower() in _SPDX:
        return {"license": licences[0].lower()}
    return {"license": "other", "license_name": _slug(" or ".join(licences))}


def _model_index(facts: _Facts) -> dict[str, Any]:
    if facts.run is None or not facts.run.figures:
        return {}
    name, task = facts.config.data.dataset, facts.config.task
    result = {
        "task": {"type": "image-segmentation", "name": f"{task} segmentation"},
        "dataset": {"type": _slug(name) or "own", "name": visible_line(name) or "own", "split": "val"},
        "metrics": [
            {"type": visible_line(metric), "value": value, "name": visible_line(NAMES.get(metric, metric))}
            for metric, value in facts.run.figures.items()
        ],
    }
    return {"model-index": [{"name": visible_line(facts.config.name), "results": [result]}]}


def _base_model(facts: _Facts) -> str | None:
    """Return the repository of the hub that the weights come from, or that their training started from."""
    if facts.released:
        hubs = [str(each.hub) for each in facts.preset.weights if each.hub] if facts.preset else []
        return next((hub for hub in hubs if hub in facts.source), None)
    start = facts.source if facts.run is None else facts.run.init
    if start in presets.preset_names():
        return next((each.hub for each in presets.load(start).weights if each.hub), None)
    return start if start and _REPO.fullmatch(start) and not Path(start).exists() else None


# --- parts of the text ------------------------------------------------------------------------------------------------


def _usage(config: Config, repo: str | None) -> list[str]:
    model, folder = model_class(config), repo or "."
    remark = "" if repo else "  # the folder of this file, or its name on the hub"
    return [
        "With m2f, which also trains, evaluates and exports it:",
        f"```bash\nm2f predict images/ --model {folder}\n```",
        "With transformers:",
        f"""```python
from PIL import Image
from transformers import AutoImageProcessor, {model}

folder = "{folder}"{remark}
processor = AutoImageProcessor.from_pretrained(folder)
model = {model}.from_pretrained(folder)
image = Image.open("picture.jpg").convert("RGB")
outputs = model(**processor(image, return_tensors="pt"))
result = processor.post_process_{config.task}_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
```""",
    ]


def _figures(facts: _Facts) -> list[str]:
    parts, run = [], facts.run
    if run is not None and run.figures:
        limit = f" (the first {run.val_limit} images at most)" if run.val_limit else ""
        parts.append(
            f"Measured by m2f while it trained, after {run.iteration} steps, on the split val of "
            f"{_code(facts.config.data.dataset)}{limit}; in percent, from {RESULTS} of the run."
        )
        rows = [[_cell(NAMES.get(name, name)), f"{value:.2f}"] for name, value in run.figures.items()]
        parts.append(_table(["figure", "value"], rows))
    if facts.released and facts.preset and facts.preset.published:
        parts.append(
            "Published figures, of the published code; transformers' post-processing differs from it in details."
        )
        rows = [
            [each.metric, f"{each.value:g}" + ("" if each.verified else " (unverified)"), each.setting, each.source]
            for each in facts.preset.published
        ]
        parts.append(_table(["metric", "published", "setting", "source"], rows))
    return parts or ["Not measured."]


def _classes(categories: Categories) -> list[str]:
    shown = list(enumerate(categories))[:_CLASSES_SHOWN]
    rows = [[str(i), _cell(each.name), "thing" if each.isthing else "stuff"] for i, each in shown]
    hidden = len(categories) - len(rows)
    more = [f"And {hidden} more of {len(categories)} classes: config.json names all."] if hidden else []
    return [_table(["number", "name", "kind"], rows), *more]


def _licence(facts: _Facts) -> str:
    if facts.licences:
        return f"The weights were released under {' and '.join(facts.licences)}."
    start = facts.run.init if facts.run else None
    text = "Not stated: whoever trained these weights has to say."
    if start in presets.preset_names():
        terms = " or ".join(_licences_of(presets.load(start)))
        return (
            f"{text} The training started from the weights of {_code(start)} ({terms}), whose licence may bind these."
        )
    if start is not None:
        return f"{text} The training started from {'random numbers' if start == 'random' else _code(start)}."
    terms = " or ".join(_licences_of(facts.preset))
    if facts.run is not None or not terms:
        return text
    return (
        f"{text} If the training started from the released weights of {_code(facts.config.name)}, their licence "
        f"({terms}) may bind these, too."
    )


def _data(facts: _Facts) -> str:
    name = facts.config.data.dataset
    if name in _NO_NAMES:
        return "Not stated."
    count = f" ({facts.run.images:,} images)" if facts.run and facts.run.images else ""
    return f"Trained on {_code(name)}{count}. The data may have terms of its own."


def _configuration(facts: _Facts) -> list[str]:
    if facts.preset is None:
        return [f"{_code(facts.config.name)}, which is no preset of m2f."]
    rows = _changes(facts.preset, facts.config)
    begin = f"Preset {_code(facts.preset.name)} of m2f: {facts.preset.summary}."
    if not rows:
        return [f"{begin} No setting differs from it."]
    hidden = len(rows) - _SETTINGS_SHOWN
    table = _table(["changed setting", "value", "preset"], rows[:_SETTINGS_SHOWN])
    return [begin, table, *([f"And {hidden} more."] if hidden > 0 else [])]


def _changes(preset: Config, config: Config) -> list[list[str]]:
    """Return key, value and value of the preset for each setting that differs, as cells."""
    before, now = (dict(_leaves(each.model_dump(mode="json", include=set(_PARTS)))) for each in (preset, config))
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [[_cell(key), *(_cell(json_text(tree.get(key))) for tree in (now, before))] for key in differing]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- helpers ----------------------------------------------------------------------------------------------------------


def _shipped(name: str) -> Config | None:
    return presets.load(name) if name in presets.preset_names() else None


def _licences_of(preset: Config | None) -> list[str]:
    return list(dict.fromkeys(each.licence for each in preset.weights)) if preset else []


def _section(title: str, paragraphs: Sequence[str]) -> str:
    return "\n\n".join([f"## {title}", *paragraphs])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Return any text as one line between backquotes, more of them than stand together in it."""
    line = visible_line(text).strip()
    line = f"{line[:_LONGEST]}…" if len(line) > _LONGEST else line
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line or '(nothing)'}{space}{fence}"


def _cell(text: str) -> str:
    """Return any text between backquotes for a cell of a table."""
    return _code(text).replace("|", "\\|")


def _slug(text: str) -> str:
    """Return a name as the metadata of the hub spells one; "" if nothing is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:96]
