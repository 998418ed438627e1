"""The entries of annotation files: a type for each kind of value, a schema for each kind of entry.

Tools write 128.0, "128" or "0" where 128 or false is meant. What is clear is read; all else is refused in one sentence.
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
LARGEST_ID = (1 << 24) - 1  # of a segment: its id is an RGB colour, and black is nobody's


def shown(value: Any) -> str:
    """Return a value as it stands in a message: its beginning, where it is long."""
    return _short.repr(value)


# --- values -----------------------------------------------------------------------------------------------------------


def whole_number(value: Any) -> int:
    """
    Raises:
        ValueError: neither a whole number nor one as a float or as text.
    """
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    raise ValueError("a whole number")


def flag(value: Any) -> bool:
    """
    Raises:
        ValueError: not 0 or 1, false or true, nor one of these as text.
    """
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    raise ValueError("0 or 1, false or true")


def number(value: Any) -> float:
    """
    Raises:
        ValueError: not a finite number, nor one as text.
    """
    is_text = isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value)
    if is_text or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise ValueError("a finite number")


def text(value: Any) -> str:
    """
    Raises:
        ValueError: not text, only spaces, or halves of characters, which no file can hold.
    """
    if isinstance(value, str) and value.strip() and is_whole(value):
        return value
    raise ValueError("text")


def is_whole(value: str) -> bool:
    """Return True if text can be written in UTF-8: json may hold halves of characters."""
    return not _HALF.search(value)


def key(value: Any) -> int | str:
    """Return an id; text stays text.

    Raises:
        ValueError: neither a whole number nor text.
    """
    try:
        return text(value) if isinstance(value, str) else whole_number(value)
    except ValueError:
        raise ValueError("a whole number or text") from None


def same_key(value: int | str, known: Container[int | str]) -> int | str:
    """Return an id as `known` has it: some tools write numbers as text on one side only."""
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
    found = 0 if value is None else whole_number(value)
    if found < 0:
        raise ValueError("a number of pixels")
    return found or None


def _segment_id(value: Any) -> int:
    found = whole_number(value)
    if not 0 < found <= LARGEST_ID:
        raise ValueError(f"a whole number from 1 to {LARGEST_ID}")
    return found


def color(value: Any) -> tuple[int, int, int]:
    """
    Raises:
        ValueError: neither three numbers from 0 to 255 nor text such as "#ff8000".
    """
    if isinstance(value, str) and _HEX_COLOR.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, (list, tuple)) and len(value) == 3:
        found = tuple(map(whole_number, value))
        if 0 <= min(found) <= max(found) <= 255:
            return found
    raise ValueError("[red, green, blue], each 0 to 255")


def _color_or_none(value: Any) -> tuple[int, ...]:
    return () if value is None or value in ("", []) else color(value)


def _whole_from_0(value: Any) -> int:
    found = whole_number(value)
    if found < 0:
        raise ValueError("a whole number from 0 on")
    return found


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
Color = Annotated[tuple[int, ...] | None, PlainValidator(color)]
ColorOrNone = Annotated[tuple[int, ...], PlainValidator(_color_or_none)]
AnyText = Annotated[str, PlainValidator(_any_text)]
Trimmed = Annotated[str, PlainValidator(_trimmed)]


# --- entries ----------------------------------------------------------------------------------------------------------


class Image(BaseModel):
    """An entry of `images` in a COCO json. A side that is missing, null or 0 is that of the file."""

    id: Key
    file_name: FileName
    height: Side = None
    width: Side = None


class Object(BaseModel):
    """What `annotations` of COCO instances say of an object beside its shape."""

    category_id: WholeNumber
    iscrowd: FlagOrNone = False
    area: NumberOrNone = None


class PanopticRecord(BaseModel):
    """What `annotations` of COCO panoptic say of an image beside its segments."""

    file_name: FileName
    segments_info: list[Any]


class SegmentRecord(BaseModel):
    """An entry of `segments_info`."""

    id: SegmentId
    category_id: WholeNumber
    iscrowd: FlagOrNone = False


class CocoCategory(BaseModel):
    """An entry of `categories` in a COCO json."""

    id: WholeNumber
    name: Text
    isthing: MaybeFlag = None
    color: ColorOrNone = ()


class PredictionRecord(BaseModel):
    """A found object of COCO instance results."""

    image_id: Key
    category_id: WholeNumber
    score: Number


class PredictedSegment(BaseModel):
    """A found segment of a COCO panoptic json."""

    id: SegmentId
    category_id: WholeNumber
    score: Number = 1.0


class PredictedPanoptic(PanopticRecord):
    image_id: Key


class TableClass(BaseModel, extra="forbid"):
    """A class of a class table; what it does not say follows from its position."""

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
    """data.yaml of YOLO. `names` is a list, or positions with names."""

    names: Any
    nc: WholeNumber = None
    path: PathText = ""


class NamedClasses(BaseModel):
    """classes.yaml with `names`."""

    names: Any
    colors: Any = None
    num_classes: WholeFrom0 = None
    ignore_index: WholeFrom0 = 255


class LabelMeImage(BaseModel):
    """What a json of LabelMe says of its image beside the shapes."""

    shapes: list[Any]
    imageHeight: Side = None
    imageWidth: Side = None


class CityscapesPolygon(BaseModel):
    """An object of gtFine_polygons.json."""

    label: Text
    polygon: list[tuple[Number, Number]]
    deleted: FlagOrNone = False


class CityscapesFile(BaseModel):
    """gtFine_polygons.json."""

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
        where: what the entry is, for the message.

    Raises:
        error: a value is missing or wrong; says which, and what was expected.
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
            "tuple_type": "a pair of numbers",
        }.get(first["type"], first["msg"])
    )
    return f"has the {name} {shown(first['input'])}, which should be {expected}"
