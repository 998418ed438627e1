"""A result as HTML for notebooks: its drawing with the colours of its classes, and a canvas in a frame over it.

A notebook that nobody has trusted shows HTML without frames or their scripts: there the drawing below is seen.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plugins
from ..errors import DataError
from ..runtime.notebook import escaped
from .drawing import image_of, legend_of, plot

if TYPE_CHECKING:
    from .types import Result

EDGE = 960  # pixels, the longest edge of the drawing
QUALITY = 85
GREY = 128  # in place of a missing image
MOST_CLASSES = 40
NOTHING = "<p>Nothing was found.</p>"
_IMAGE = "max-width:100%;grid-area:1/1;align-self:start"
_CELL = 'style="text-align:left;padding:1px 12px 1px 0"'
_SWATCH = '<span style="display:inline-block;width:1em;height:1em;background:rgb({},{},{})"></span>'


def as_html(result: Result) -> str:
    """Return the drawing of a result as an image in the text, a frame with a canvas over it, and a table of classes.

    Without its image, the result is drawn on grey and the text says why.
    """
    remark = ""
    try:
        image_HW3 = image_of(result, result.image)
    except DataError as error:
        image_HW3 = np.full((*result.size, 3), GREY, np.uint8)
        remark = f"<p><em>{escaped(error.message)}</em></p>"
    drawing = plot(result, image_HW3)
    drawing.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    drawing.save(file, "JPEG", quality=QUALITY)
    content = base64.b64encode(file.getvalue()).decode()
    height, width = result.size
    text = f"{result.task}, {width} x {height} pixels"
    image = f'<img src="data:image/jpeg;base64,{content}" alt="{text}" style="{_IMAGE}">'
    table = _table(result)
    display: Any = plugins.get("displays", "canvas")
    frame = display(result, image_HW3, EDGE) if table else ""
    return f'<div><p>{text}</p>{remark}<div style="display:grid">{image}{frame}</div>{table or NOTHING}</div>'


def _table(result: Result) -> str:
    entries = legend_of(result)
    if not entries:
        return ""
    counted = result.task != "semantic"
    head = f"<th></th><th {_CELL}>class</th>" + (f"<th {_CELL}>regions</th>" if counted else "")
    rows = "".join(
        f"<tr><td {_CELL}>{_SWATCH.format(*each.color)}</td><td {_CELL}>{escaped(each.name)}</td>"
        + (f"<td {_CELL}>{each.count}</td></tr>" if counted else "</tr>")
        for each in entries[:MOST_CLASSES]
    )
    left_out = len(entries) - MOST_CLASSES
    more = f"<p>And {left_out} more classes.</p>" if left_out > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"
