"""Writers of results: one function for each format of `m2f predict --save`, and `save` for a single result.

Layout below the output folder; NAME may hold sub-folders:

    overlay/NAME.jpg              the image with the result drawn over it
    panoptic/NAME.png             COCO panoptic: segment id = R + 256 G + 65536 B, 0 is void
    labels/NAME.png               the category id of each pixel; 255 (8 bits) or 65535 (16 bits) where there is none
    color/NAME.png                the regions in their colours on black
    polygons/NAME.json            outlines and holes of the regions (`write_polygons` has the schema)
    crops/NAME/000_person.png     the regions cut out, RGBA
    cityscapes-semantic, cityscapes-instance, panoptic_*_results.zip      for evaluation servers, see server_formats.py
    panoptic.json instances.json predictions.json      one per run, see journal.py; `save` writes the first two as
                                  panoptic/NAME.json and instances/NAME.json, for its one image

All files are written under a temporary name and renamed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from .. import plugins
from ..errors import ConfigError, DataError
from ..runtime import files
from ..runtime.files import atomic, output_path, safe_name, save_image
from ..structures import Task
from ..structures.annotations import ids_to_rgb
from ..structures.categories import Categories
from ..structures.contours import outlines
from ..structures.images import read_image
from . import drawing, regions
from .draw_options import DrawOptions

if TYPE_CHECKING:
    from .types import Instances, PanopticMap, Result, SemanticMap

Writer: TypeAlias = "Callable[[Result, Path], list[Path]]"
AnyWriter = TypeVar("AnyWriter", bound="Callable[[Any, Path], list[Path]]")

SCHEMA_VERSION = 1
JPEG_EDGE = 65_500  # the format's limit
FOLDERS = {
    "overlay-png": "overlay",
    "coco-panoptic": "panoptic",
    "coco-instance": "instances",
    "label-png": "labels",
    "color-png": "color",
    "coco-panoptic-zip": "panoptic",
}
DRAWN = ("overlay", "overlay-png")  # formats that show the options of drawings


def for_tasks(*tasks: Task) -> Callable[[AnyWriter], AnyWriter]:
    """Mark a writer of results of these tasks only; results of other tasks are refused before anything is written."""

    def mark(write: Any) -> Any:
        write.tasks = tasks
        return write

    return mark


def fits(write: object, task: Task) -> bool:
    """Tell whether a writer takes results of a task."""
    return task in getattr(write, "tasks", (task,))


def save(
    result: Result,
    folder: Path,
    formats: Sequence[str],
    *,
    name: str | None = None,
    draw: DrawOptions | None = None,
    trust_code: bool = False,
) -> list[Path]:
    """Write one result in some formats and return the files.

    Args:
        result: the result.
        folder: the output folder; each format has a sub-folder there.
        formats: names of writers, or with `trust_code` "module:function".
        name: the stem of the files, "/" for sub-folders; by default the image's own stem.
        draw: what overlays draw, and how.
        trust_code: True if `formats` may be "module:function".

    Raises:
        ConfigError: a format is unknown, or does not fit the result.
        DataError: the format shows the image, and the result does not know it.
        M2FError: a file cannot be written.
    """
    writers = writers_for(formats, result.task, draw=draw, trust_code=trust_code)
    if name is None:
        name = Path(result.image).stem if isinstance(result.image, (str, Path)) else "image"
    return [path for each, write in writers.items() for path in write(result, stem_for(folder, each, name))]


def writers_for(
    formats: Sequence[str], task: Task, *, draw: DrawOptions | None = None, trust_code: bool = False
) -> dict[str, Writer]:
    """Return the writers of some formats, in that order.

    Args:
        formats: names of writers.
        task: the task of the results.
        draw: what the formats of `DRAWN` draw, and how.
        trust_code: True if the formats may be "module:function", as those that a user typed may.

    Raises:
        ConfigError: a format is unknown, does not fit the task, or is code without `trust_code`.
    """
    writers: dict[str, Any] = {}
    for name in formats:
        write: Any = plugins.get("writers", name, trust_code=trust_code)
        if ":" in name:
            writers[name] = functools.partial(_foreign, name, write)
        else:
            writers[name] = functools.partial(write, options=draw) if draw and name in DRAWN else write
        if not fits(write, task):
            fitting = [known for known in plugins.names("writers") if fits(plugins.get("writers", known), task)]
            raise ConfigError(
                f"The format {name!r} is for {' and '.join(write.tasks)} results, not for {task} ones.",
                hint=f"For {task}: {', '.join(fitting)}.",
            )
    return writers


def _foreign(name: str, write: Any, result: Result, stem: Path) -> list[Path]:
    """Call a writer that the user named."""
    with plugins.using(name):
        written = write(result, stem)
        if not isinstance(written, list) or not all(isinstance(path, Path) for path in written):
            raise TypeError(f"a writer returns the list of the paths that it wrote, not {type(written).__name__}")
        return written


def check_drawn(formats: Sequence[str], draw: DrawOptions) -> None:
    """Refuse options of drawings that no format shows.

    Raises:
        ConfigError: `draw` differs from the defaults, and the formats have no overlay.
    """
    if draw != DrawOptions() and not any(name in DRAWN for name in formats):
        raise ConfigError("Options of drawings change overlays, and none is saved.", hint="Add --save overlay.")


def stem_for(folder: Path, format_name: str, name: str) -> Path:
    """Return the path without its suffix that a format gives to the result called `name`."""
    return output_path(folder_of(folder, format_name), name)


def folder_of(folder: Path, format_name: str) -> Path:
    """Return the folder of all results of a format, below the output folder."""
    plain = format_name.rpartition(":")[2]
    return folder / FOLDERS.get(plain, plain)


def listed(written: Sequence[Path], folder: Path) -> list[str]:
    """Return the files of a result as predictions.json lists them: relative to the output folder.

    Raises:
        ConfigError: a writer from outside of this package put a file elsewhere.
    """
    try:
        return [path.relative_to(folder).as_posix() for path in written]
    except ValueError as error:
        raise ConfigError(f"A writer put a file outside of {folder}: {error}.") from error


def add_suffix(stem: Path, suffix: str) -> Path:
    """Return the path with a suffix; `Path.with_suffix` would remove the end of names such as "photo.v2"."""
    return stem.with_name(stem.name + suffix)


def write_json(path: Path, tree: Any) -> list[Path]:
    files.write_json(path, tree)
    return [path]


def write_image(path: Path, image: Image.Image, **options: Any) -> list[Path]:
    with atomic(path) as part:
        save_image(image, part, **options)
    return [path]


# --- writers ----------------------------------------------------------------------------------------------------------


def write_overlay(result: Result, stem: Path, options: DrawOptions | None = None) -> list[Path]:
    """Write STEM.jpg: the image with the result drawn over it; STEM.png where JPEG cannot hold the size."""
    drawn = result.plot(options=options)
    if max(drawn.size) > JPEG_EDGE:
        return _write_png(drawn, stem)
    # 4:4:4 keeps thin coloured outlines crisp.
    return write_image(add_suffix(stem, ".jpg"), drawn, format="JPEG", quality=92, subsampling=0)


def write_overlay_png(result: Result, stem: Path, options: DrawOptions | None = None) -> list[Path]:
    """Write STEM.png: the image with the result drawn over it, without loss."""
    return _write_png(result.plot(options=options), stem)


def _write_png(drawn: Image.Image, stem: Path) -> list[Path]:
    return write_image(add_suffix(stem, ".png"), drawn, format="PNG", compress_level=3)


def write_panoptic_png(result: PanopticMap, stem: Path) -> list[Path]:
    """Write STEM.png: the segment ids as colours, R + 256 G + 65536 B; 0 is void."""
    return write_image(add_suffix(stem, ".png"), panoptic_image(result), format="PNG")


def panoptic_image(result: PanopticMap) -> Image.Image:
    return Image.fromarray(ids_to_rgb(result.ids_HW))


@for_tasks("panoptic")
def write_coco_panoptic(result: PanopticMap, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.json: a complete COCO panoptic document of one image. A run shares one panoptic.json."""
    pngs = write_panoptic_png(result, stem)
    return pngs + write_json(add_suffix(stem, ".json"), panoptic_document(result, stem.name))


@for_tasks("instance")
def write_coco_instance(result: Instances, stem: Path) -> list[Path]:
    """Write STEM.json: COCO instance results of one image. A run shares one instances.json."""
    return write_json(add_suffix(stem, ".json"), instance_entry(result, stem.name, stem.name))


@for_tasks("panoptic", "semantic")
def write_label_png(result: PanopticMap | SemanticMap, stem: Path) -> list[Path]:
    """Write STEM.png: the category id of each pixel. 16 bits where an id is above 254; the highest value is "none".

    Raises:
        ConfigError: 16 bits cannot hold an id.
    """
    ids = [category.id for category in result.categories]
    if min(ids) < 0 or max(ids) > 65534:
        raise ConfigError(f"label-png holds category ids from 0 to 65534, not {min(ids)} to {max(ids)}.")
    kind = np.uint8 if max(ids) < 255 else np.uint16
    labels_HW = np.full(result.size, np.iinfo(kind).max, dtype=kind)
    for region in result.regions():
        labels_HW[region.window][region.mask_HW] = ids[region.label]
    return write_image(add_suffix(stem, ".png"), Image.fromarray(labels_HW), format="PNG")


def write_color_png(result: Result, stem: Path) -> list[Path]:
    """Write STEM.png: the regions in their colours on black, in a semantic map those of the categories."""
    color_HW3 = np.zeros((*result.size, 3), dtype=np.uint8)
    for region, color in drawing.colored(result.backwards()):
        color_HW3[region.window][region.mask_HW] = color
    return write_image(add_suffix(stem, ".png"), Image.fromarray(color_HW3), format="PNG")


def write_polygons(result: Result, stem: Path) -> list[Path]:
    """Write STEM.json: exact outlines of the regions.

        {"schema_version": 1, "task", "width", "height",
         "regions": [{"label", "category_id", "isthing", "score", "area", "bbox": [x, y, width, height],
                      "polygons": [{"outline": [[x, y], …], "holes": [[[x, y], …], …]}]}]}

    Coordinates are corners of pixels: (0, 0) is the outer corner of the top left pixel. The area of the outlines minus
    that of the holes is the number of pixels. The score is null in semantic results.
    """
    records = []
    for region in result.regions():
        category = result.categories[region.label]
        records.append(
            {
                "label": category.name,
                "category_id": category.id,
                "isthing": category.isthing,
                "score": region.score,
                "area": region.area,
                "bbox": region.coco_box,
                "polygons": polygons(region),
            }
        )
    height, width = result.size
    head = {"schema_version": SCHEMA_VERSION, "task": result.task, "width": width, "height": height}
    return write_json(add_suffix(stem, ".json"), {**head, "regions": records})


def write_crops(result: Result, stem: Path) -> list[Path]:
    """Write STEM/000_person.png, …: each region cut out of the image at its own box, transparent around it."""
    if result.image is None:
        raise DataError("Crops need the image, and the result does not know it.", hint="Set result.image.")
    image_HW3 = read_image(result.image)
    crops = []
    for k, region in enumerate(result.regions()):
        alpha = region.mask_HW.astype(np.uint8) * 255
        cut = Image.fromarray(np.dstack([image_HW3[region.window], alpha]))
        label = re.sub(r"\W+", "-", result.categories[region.label].name).strip("-") or "region"
        crops += write_image(output_path(stem, f"{k:03d}_{label}", ".png"), cut, format="PNG")
    return crops


# --- shared with the run's own files ----------------------------------------------------------------------------------


def image_id(result: Result, name: str) -> int | str:
    """Return the image's id in its data set.

    Where nobody gave an id, COCO's own images (twelve digits) have their number, and all others their name.
    """
    if result.image_id is not None:
        return result.image_id
    return int(name) if re.fullmatch(r"\d{12}", name) else name


def panoptic_entry(result: PanopticMap, name: str, file_name: str) -> dict[str, Any]:
    """Return the records that one image adds to panoptic.json, one for each list.

    Args:
        result: the result of the image.
        name: the name under which the PNG was written. The annotation's file is that PNG.
        file_name: the name of the image in its data set.
    """
    height, width = result.size
    number = image_id(result, name)
    return {
        "images": {"id": number, "file_name": file_name, "width": width, "height": height},
        "annotations": {"image_id": number, "file_name": f"{safe_name(name)}.png", **result.to_coco()},
    }


def panoptic_document(result: PanopticMap, name: str) -> dict[str, Any]:
    """Return a complete COCO panoptic JSON of one image."""
    entry = panoptic_entry(result, name, name)
    return {**{key: [value] for key, value in entry.items()}, "categories": coco_categories(result.categories)}


def instance_entry(result: Instances, name: str, file_name: str) -> list[dict[str, Any]]:
    """Return the records that one image adds to instances.json, one for each object."""
    number = image_id(result, name)
    return [{"image_id": number, **record} for record in result.to_coco()]


def coco_categories(categories: Categories) -> list[dict[str, Any]]:
    return [{**category.to_dict(), "isthing": int(category.isthing)} for category in categories]


def polygons(region: regions.Region) -> list[dict[str, Any]]:
    """Return the outlines and holes of a region, in corners of pixels."""
    offset = np.array([region.box[1], region.box[0]])
    return [
        {"outline": (outer_P2 + offset).tolist(), "holes": [(hole_P2 + offset).tolist() for hole_P2 in holes]}
        for outer_P2, holes in outlines(region.mask_HW)
    ]
