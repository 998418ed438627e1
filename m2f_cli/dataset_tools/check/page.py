"""Report about a data set as one self-contained HTML file: figures, findings, bars, and images with annotations."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.records import DataSet, Record
from ...errors import DataError
from ...runtime.files import write_text
from ...runtime.text import visible_text
from ..preview import Preview, drawn, plain
from .near_duplicates import DuplicatePair
from .summary import DataReport, SplitReport, class_rows, edge_names

SAMPLES = 12  # images of each split
MOST_DUPLICATES, MOST_PROBLEMS, MOST_BARS = 12, 100, 24
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fc1; --error: #c23b22; --warning: #b07a10; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; } th { text-align: left; }
td, th { border-bottom: 1px solid var(--line); padding: .15rem .8rem .15rem 0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: var(--bar); height: .7em; min-width: 1px; } .track { width: 14rem; }
.error { color: var(--error); } .warning { color: var(--warning); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } img { display: block; max-width: 100%; }
figcaption { font-size: .8rem; max-width: 20rem; overflow-wrap: anywhere; } .pair { display: flex; gap: .25rem; }
"""


def write_check_page(report: DataReport, opened: Sequence[DataSet], path: Path, samples: int = SAMPLES) -> Path:
    """Write the page of `m2f data check`.

    Args:
        opened: the splits of the report, in its order. Their images are read again for the page.
        samples: number of images of each split.

    Raises:
        M2FError: the file cannot be written.
    """
    data = opened[0]
    fails = len(report.errors)
    errors = f"{fails} error{'s' if fails != 1 else ''}"
    verdict = f"{errors}: training would fail." if fails else "Nothing was found that would stop training."
    body = [
        f"<h1>{escape(data.name)}</h1>",
        f"<p>{escape(data.format)} · {data.task} · {len(data.categories)} classes · {verdict}</p>",
        _findings(report),
        _overview(report.splits),
        _classes(report.splits),
    ]
    for split, each in zip(report.splits, opened, strict=True):
        images = _gallery(_samples(each, samples))
        notes = "".join(f"<p>{escape(note)}</p>" for note in split.notes)
        body += [f"<h2>{escape(split.split)}</h2>", notes, _bars_of(split), images, _problems(split)]
    records = {each.split: {record.name: record for record in each.records} for each in opened}
    return _write(f"{data.name}: data", [*body, _duplicates(report.duplicates, records)], path)


def write_view_page(data: DataSet, shown: Sequence[Preview], path: Path) -> Path:
    """Write the page of `m2f data view`.

    Raises:
        M2FError: the file cannot be written.
    """
    what = "as annotated, and as training sees it" if shown[0].after is not None else "as annotated"
    heading = f"<h1>{escape(data.name)}, {escape(data.split)}</h1><p>{len(shown)} of {len(data)} images, {what}.</p>"
    return _write(f"{data.name}: {data.split}", [heading, _gallery(shown)], path)


def _write(title: str, body: Iterable[str], path: Path) -> Path:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    write_text(path, visible_text(text))
    return path


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table. Cells are text or numbers; a cell of the type `_Html` is inserted without escaping."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("".join(map(_cell, row)) for row in rows)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


class _Html(str):
    pass


def _cell(value: Any) -> str:
    if isinstance(value, _Html):
        return f"<td>{value}</td>"
    if isinstance(value, (int, float)):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def _bar(share: float) -> _Html:
    return _Html(f'<div class="track"><div class="bar" style="width:{100 * share:.1f}%"></div></div>')


def _findings(report: DataReport) -> str:
    if not report.findings:
        return "<p>Nothing wrong was found.</p>"
    lines = (
        f'<li><b class="{f.level}">{f.level}, {escape(f.split)}</b>: {escape(f.message)} {escape(f.hint)}</li>'
        for f in report.findings
    )
    return f"<h2>Findings</h2><ul>{''.join(lines)}</ul>"


def _overview(splits: Sequence[SplitReport]) -> str:
    columns = ["", "images", "cannot be used", "without objects", "objects", "per image, mean", "most", "MB"]
    rows = []
    for each in splits:
        counts, objects = each.description, sum(each.description.objects)
        rows.append(
            [
                each.split,
                counts.images,
                len(each.problems),
                each.num_empty,
                objects,
                round(objects / max(1, counts.looked_at), 1),
                max(counts.objects, default=0),
                round(each.num_bytes / 1e6, 1),
            ]
        )
    return "<h2>Splits</h2>" + _table(columns, rows)


def _classes(splits: Sequence[SplitReport]) -> str:
    columns = [
        "class",
        "kind",
        *(f"{each.split}: {what}" for each in splits for what in ("images", "objects")),
        f"objects of {splits[0].split}",
    ]
    most = max([each.objects for each in splits[0].classes], default=0)
    rows = []
    for first, counts in class_rows(splits):
        cells = [cell for each in counts for cell in ((each.pictures, each.objects) if each else ("", ""))]
        share = counts[0].objects / max(1, most) if counts[0] else 0
        rows.append([first.name, "thing" if first.isthing else "stuff", *cells, _bar(share)])
    return "<h2>Classes</h2>" + _table(columns, rows)


def _bars_of(split: SplitReport) -> str:
    counts = split.description
    sizes = Counter(counts.sizes).most_common(MOST_BARS)
    edges = list(zip(edge_names(), split.object_edges, strict=True))
    return "".join(
        [
            _histogram("Objects by the root of their area, in pixels", edges),
            _histogram("Images by number of objects", _binned(counts.objects)),
            _histogram(f"Images by size ({len(counts.sizes)} sizes)", [(f"{w} x {h}", n) for (h, w), n in sizes]),
        ]
    )


def _binned(objects: Sequence[int]) -> list[tuple[str, int]]:
    """Count the numbers of objects in at most a dozen bins of equal width."""
    width = max(1, -(-(max(objects, default=0) + 1) // 12))
    counts = Counter(count // width for count in objects)
    label = (lambda i: str(i)) if width == 1 else (lambda i: f"{i * width} to {(i + 1) * width - 1}")
    return [(label(i), counts[i]) for i in range(max(counts, default=-1) + 1)]


def _histogram(title: str, bars: Sequence[tuple[str, int]]) -> str:
    most = max([count for _, count in bars], default=0)
    rows = [[label, count, _bar(count / max(1, most))] for label, count in bars]
    return f"<h3>{escape(title)}</h3>" + _table(["", "", ""], rows)


def _problems(split: SplitReport) -> str:
    if not split.problems:
        return ""
    rows = [[problem.name, problem.kind, problem.message] for problem in split.problems[:MOST_PROBLEMS]]
    title = f"<h3>{len(split.problems)} images that cannot be used</h3>"
    return title + _table(["image", "what", ""], rows)


# --- images ---------------------------------------------------------------------------------------------------------


def _samples(data: DataSet, count: int) -> list[Preview]:
    """Return some images, evenly spread. Unusable ones are left out, as they are listed elsewhere."""
    step = max(1, len(data.records) // max(1, count))
    shown = []
    for record in data.records[::step][:count]:
        try:
            shown.append(Preview(record.name, drawn(record.read_image(), record.read_annotation(), data.categories)))
        except DataError:
            continue
    return shown


def _gallery(shown: Sequence[Preview]) -> str:
    figures = "".join(_figure(view.images, view.name) for view in shown)
    return f'<div class="pictures">{figures}</div>'


def _figure(images: Sequence[Image.Image], caption: str) -> str:
    tags = "".join(map(_image, images))
    return f'<figure><div class="pair">{tags}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _image(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img width="{image.width}" height="{image.height}" alt="" src="data:image/jpeg;base64,{data}">'


def _duplicates(pairs: Sequence[DuplicatePair], records: dict[str, dict[str, Record]]) -> str:
    if not pairs:
        return ""
    figures = []
    for pair in pairs[:MOST_DUPLICATES]:
        shown = [records[pair.split][pair.name], records[pair.other_split][pair.other]]
        what = "the same file" if pair.identical else f"{pair.bits} of 128 bits differ"
        caption = f"{pair.split}: {pair.name} and {pair.other_split}: {pair.other} ({what})"
        figures.append(_figure([plain(record) for record in shown], caption))
    title = f"<h2>{len(pairs)} images that are in two splits, or look like it</h2>"
    return title + f'<div class="pictures">{"".join(figures)}</div>'
