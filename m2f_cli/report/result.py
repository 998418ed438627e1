"""One result as a page with a canvas, in a frame: what a notebook shows, where scripts may run.

Without scripts the frame stays empty and transparent, so that the picture below it is seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..results.colors import colors_of
from ..results.draw_options import DrawOptions
from ..results.drawing import shown_names
from ..results.types import Result
from ..results.views import view_of_result
from ..runtime.notebook import framed
from .page import render

MOST_BYTES = 3_000_000  # of a frame; notebooks keep it in their file
CONTROLS = 116  # pixels above and below the image
LEAST_HEIGHT = 240  # pixels of the image; small ones are enlarged


def result_frame(result: Result, image_HW3: np.ndarray, edge: int) -> str:
    """Return a frame that shows the segments of a result, or an empty text for one that is too large for a notebook.

    The page in the frame says what the segment below the mouse is. It has a slider for scores and buttons for classes.

    Args:
        result: the result.
        image_HW3: RGB pixels of the image.
        edge: longest edge of the image in the frame, in pixels.
    """
    view = view_of_result("", dataclasses.replace(result, image=image_HW3), edge)
    segments = view["tasks"][result.task]["found"]
    labels = [each["label"] for each in segments]
    names = shown_names(labels, result.categories)
    colors = colors_of(labels, result.categories, DrawOptions().palette, plain=result.task == "semantic")
    shown = [
        {"label": each["label"], "color": color, "score": each["score"], "area": each["area"], "counts": each["counts"]}
        for each, color in zip(segments, colors, strict=True)
    ]
    data = {"thumbnail": view["thumbnail"], "names": names, "segments": shown}
    height = max(view["thumbnail"]["size"][0], LEAST_HEIGHT) + CONTROLS
    frame = framed(render("result.html", data=data), title="result", height=height)
    return frame if len(frame) <= MOST_BYTES else ""
