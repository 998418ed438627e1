"""Schemas of entries of annotation files, and types of their values.

Some tools write 128.0 or "128" for 128, or "0" for false. Clear values are read; others are refused in one sentence.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Container
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainValidator, ValidationError

from ..errors import DataError, M2FError

Model = TypeVar("Model", bound=BaseModel)
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,30}(\.0*)?\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 40  # letters
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_HALF = re.compile("[\ud800-\udfff]")
_NO_FILE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # from \udc80 to \udcff are bytes that are not UTF-8
_HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
LARGEST_ID = (1 << 24) - 1  # of a segment: its id is an RGB colour, and black means no segment


def shown(value: Any) -> str:
    """Return a value as text for a message, shortened where it is long."""
    return _short.repr(value)


# --- values -----------------------------------------------------------------------------------------------------------


def whole_number(value: Any) -> int:
    """Return a whole number that is given as such, as a float or as text.

    Raises:
        ValueError: the value is none of these.
    """
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    raise ValueError("a whole number")


def flag(value: Any) -> bool:
    """Return a boolean that is given as 0 or 1, false or true, or one of these as text.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    raise ValueError("0 or 1, false or true")


def number(value: Any) -> float:
    """Return a finite number that is given as such or as text.

    Raises:
        ValueError: the value is neither.
    """
    is_text = isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value)
    if is_text or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        try:
            parsed = float(value)
        except OverflowError:
            parsed = math.inf
        if math.isfinite(parsed):
            return parsed
    raise ValueError("a finite number")


def text(value: Any) -> str:
    """Return text that is not empty.

    Raises:
        ValueError: the value is no text, has only spaces, or has lone surrogates, which UTF-8 cannot express.
    """
    if isinstance(value, str) and value.strip() and is_whole(value):
        return value
    raise ValueError("text")


def is_whole(value: str) -> bool:
    """Return True if text can be written in UTF-8; JSON may hold lone surrogates."""
    return not _HALF.search(value)


def key(value: Any) -> int | str:
    """Return an id: a whole number, or text as it is.

    Raises:
        ValueError: the value is neither.
    """
    try:
        return text(value) if isinstance(value, str) else whole_number(value)
    except ValueError:
        raise ValueError("a whole number or text") from None


def same_key(value: int | str, known: Container[int | str]) -> int | str:
    """Return an id in the form that `known` has: some tools write the same number as text elsewhere."""
    if value in known:
        return value
    try:
        other: int | str = whole_number(value) if isinstance(value, str) else str(value)
    except ValueError:
        return value
    return other if other in known else value


def _file_name(value: Any) -> str:
    if isinstance(value, str) and not _NO_FILE.search(value) and PurePosixPath(value).name not in ("", ".."):
        return value
    raise ValueError("the name of a file")


def _side(value: Any) -> int | None:
    pixels = 0 if value is None else whole_number(value)
    if pixels < 0:
        raise ValueError("a number of pixels")
    return pixels or None


def _segment_id(value: Any) -> int:
    segment_id = whole_number(value)
    if not 0 < segment_id <= LARGEST_ID:
        raise ValueError(f"a whole number from 1 to {LARGEST_ID}")
    return segment_id


def color(value: Any) -> tuple[int, int, int]:
    """Return a colour (red, green, blue), each 0 to 255.

    Raises:
        ValueError: the value is neither three numbers from 0 to 255 nor text such as "#ff8000".
    """
    if isinstance(value, str) and _HEX_COLOR.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, (list, tuple)) and len(value) == 3:
        red, green, blue = map(whole_number, value)
        if 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
            return red, green, blue
    raise ValueError("[red, green, blue], each 0 to 255")


def _color_or_none(value: Any) -> tuple[int, ...]:
    return () if value is None or value in ("", []) else color(value)


def _whole_from_0(value: Any) -> int:
    whole = whole_number(value)
    if whole < 0:
        raise ValueError("a whole number from 0 on")
    return whole


def _trimmed(value: Any) -> str:
    if isinstance(value, str) and value and value.strip() == value and is_whole(value):
        return value
    raise ValueError("text without spaces around it")


def _any_text(value: Any) -> str:
    if isinstance(value, str) and is_whole(value):
        return value
    raise ValueError("text")


WholeNumber = Annotated[int | None, PlainValidator(whole_number)]
WholeFrom0 = Annotated[int | None, PlainValidator(_whole_from_0)]
Flag = Annotated[bool, PlainValidator(flag)]
MaybeFlag = Annotated[bool | None, PlainValidator(lambda value: None if value is None else flag(value))]
FlagOrNone = Annotated[bool, PlainValidator(lambda value: False if value is None else flag(value))]
Number = Annotated[float, PlainValidator(number)]
NumberOrNone = Annotated[float | None, PlainValidator(lambda value: None if value is None else number(value))]
PathText = Annotated[str, PlainValidator(lambda value: "" if value is None else text(value))]
Text = Annotated[str, PlainValidator(text)]
Key = Annotated[int | str, PlainValidator(key)]
FileName = Annotated[str, PlainValidator(_file_name)]
Side = Annotated[int | None, PlainValidator(_side)]
SegmentId = Annotated[int, PlainValidator(_segment_id)]
Color = Annotated[tuple[int, int, int] | None, PlainValidator(color)]
ColorOrNone = Annotated[tuple[int, ...], PlainValidator(_color_or_none)]
AnyText = Annotated[str, PlainValidator(_any_text)]
Trimmed = Annotated[str, PlainValidator(_trimmed)]


# --- entries ----------------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """Entry of `images` in a COCO file. A side that is missing, null or 0 is that of the image file."""

    id: Key
    file_name: FileName
    height: Side = None
    width: Side = None


class Object(BaseModel):
    """Entry of `annotations` in COCO instances, without the shape of the object."""

    category_id: WholeNumber
    iscrowd: FlagOrNone = False
    area: NumberOrNone = None


class PanopticRecord(BaseModel):
    """Entry of `annotations` in COCO panoptic. Its segments are read as `SegmentRecord`."""

    file_name: FileName
    segments_info: list[Any]


class SegmentRecord(BaseModel):
    """Entry of `segments_info`."""

    id: SegmentId
    category_id: WholeNumber
    iscrowd: FlagOrNone = False


class CocoCategory(BaseModel):
    """Entry of `categories` in a COCO file."""

    id: WholeNumber
    name: Text
    isthing: MaybeFlag = None
    color: ColorOrNone = ()


class PredictionRecord(BaseModel):
    """Predicted object of COCO instance results."""

    image_id: Key
    category_id: WholeNumber
    score: Number


class PredictedSegment(BaseModel):
    """Predicted segment of a COCO panoptic file."""

    id: SegmentId
    category_id: WholeNumber
    score: Number = 1.0


class PredictedPanoptic(PanopticRecord):
    image_id: Key


class TableClass(BaseModel, extra="forbid"):
    """Class of a class table. Values that are missing follow from its position."""

    id: WholeFrom0 = None
    name: Trimmed
    isthing: Flag = True
    color: Color = None


class StoredClass(BaseModel):
    """A class in the header of a checkpoint, of an exported file or of a journal."""

    id: WholeNumber
    name: AnyText
    isthing: Flag
    color: Color


class YoloDataset(BaseModel):
    """File data.yaml of YOLO. `names` is a list, or a map from position to name."""

    names: Any
    nc: WholeNumber = None
    path: PathText = ""


class NamedClasses(BaseModel):
    """File classes.yaml with `names`."""

    names: Any
    colors: Any = None
    num_classes: WholeFrom0 = None
    ignore_index: WholeFrom0 = 255


class LabelMeImage(BaseModel):
    """JSON file of LabelMe about one image."""

    shapes: list[Any]
    imageHeight: Side = None
    imageWidth: Side = None


class CityscapesPolygon(BaseModel):
    """Object of a file gtFine_polygons.json."""

    label: Text
    polygon: list[tuple[Number, Number]]
    deleted: FlagOrNone = False


class CityscapesFile(BaseModel):
    """File gtFine_polygons.json of Cityscapes."""

    imgWidth: WholeNumber
    imgHeight: WholeNumber
    objects: list[Any]


def read_as(
    model: type[Model],
    entry: Any,
    where: str,
    *,
    error: type[M2FError] = DataError,
    hint: str | None = "Export the data again.",
) -> Model:
    """Read an entry by its schema.

    Args:
        model: the schema.
        entry: the value from the file.
        where: description of the entry, for the message.
        error: type of the error to raise.
        hint: advice of that error.

    Raises:
        error: a value is missing or wrong. The message says which, and what was expected.
    """
    try:
        return model.model_validate(entry)
    except ValidationError as reason:
        raise error(f"{where} {_explain(reason, entry)}.", hint=hint) from reason


def _explain(reason: ValidationError, entry: Any) -> str:
    first = reason.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    if not name:
        return f"should be an object, not {shown(entry)}"
    if first["type"] == "missing":
        return f"has no {name!r}: {shown(entry)}"
    if first["type"] == "extra_forbidden":
        return f"has the unknown key {name!r}"
    expected = (
        str(first["ctx"]["error"])
        if first["type"] == "value_error"
        else {
            "list_type": "a list",
            "dict_type": "an object",
            "tuple_type": "a pair of numbers",
        }.get(first["type"], first["msg"])
    )
    return f"has the {name} {shown(first['input'])}, which should be {expected}"
