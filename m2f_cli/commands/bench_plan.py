"""The part of `m2f bench` that plans a large prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import console

if TYPE_CHECKING:
    from ..benchmark.case import Case

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def plan(case: Case, images: int, *, as_json: bool) -> None:
    """Measure a few images and show what `images` of them take."""
    from ..benchmark.plan import DRIVER, make_plan

    found = make_plan(case, images, on_phase=console.note)
    if as_json:
        return console.emit_json(found.to_dict())
    total = sum(found.stages_ms.values())
    rows = [[name, f"{each:.1f}", f"{100 * each / total:.0f}"] for name, each in found.stages_ms.items()]
    if found.driver_ms is not None:
        rows.append([DRIVER, f"{found.driver_ms:.2f}", "-"])
    console.show_table("One image", ["stage", "ms", "% of a worker"], rows)
    columns = ["workers", "images/s", "hours", "device-hours", "bottleneck"]
    outlooks = [
        [
            str(each.workers),
            f"{each.images_per_second:.4g}",
            f"{each.hours:.4g}",
            f"{each.device_hours:.4g}",
            each.bottleneck,
        ]
        for each in found.outlooks
    ]
    console.show_table(f"{images:,} images", columns, outlooks)
    if found.efficiency is None:
        console.note("Two processes do not fit here: the workers are taken to keep all of their speed.")
    else:
        console.out(f"Two processes have {100 * found.efficiency:.0f} % of twice the speed of one.")
    console.out(
        f"Output ({', '.join(found.formats)}): {_size(found.bytes_per_image)} an image, "
        f"{_size(found.bytes_per_image * images)} in all; {found.measured} images measured."
    )


def _size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
