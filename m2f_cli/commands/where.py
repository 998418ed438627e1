"""The processes of a command: this one, one for each device, those of torchrun, or a Ray cluster."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .. import console
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..inference.base import BaseSegmenter
    from ..inference.load import ModelOptions
    from ..inference.stream import Streamer


def is_of_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def help_the_first(ref: str | None, **settings: Any) -> None:
    """Work for the first process of torchrun, if this is another one, and end the command then.

    Args:
        ref: the model; with `settings` as in `ModelOptions`.
    """
    if not is_of_torchrun() or os.environ["RANK"] == "0":
        return
    from ..inference.load import ModelOptions
    from ..cluster.ranks import work
    from ..runtime import distributed
    from ..runtime.devices import choose_device
    from ..structures.images import silence_pillow

    options = ModelOptions(ref, **settings)
    silence_pillow()
    with distributed.group(choose_device(options.device)) as device:
        work(_open(dataclasses.replace(options, device=str(device))))
    raise typer.Exit()


@contextmanager
def opened(options: ModelOptions, devices: str | None) -> Iterator[tuple[BaseSegmenter, Streamer]]:
    """Open the model, and give it with what sends images through it.

    Args:
        options: the model.
        devices: the value of --devices.
    """
    from ..inference.stream import stream

    if is_of_torchrun():
        from ..cluster.ranks import Ranks
        from ..runtime import distributed
        from ..runtime.devices import choose_device

        if devices is not None:
            raise ConfigError("--devices is for one command, and torchrun starts several.", hint="Leave one out.")
        with distributed.group(choose_device(options.device)) as device, Ranks() as ranks:
            yield _open(dataclasses.replace(options, device=str(device))), ranks
    elif devices is not None:
        yield _open(dataclasses.replace(options, device="cpu", compile=False)), _processes(options, devices)
    else:
        yield _open(options), stream


def _processes(options: ModelOptions, devices: str) -> Streamer:
    from ..cluster.processes import Processes
    from ..inference.load import open_model
    from ..runtime.devices import several_devices
    from ..runtime.threads import VARIABLE, usable_cores

    names = several_devices(devices, options.device)
    shared = None if VARIABLE in os.environ else max(1, usable_cores() // max(1, names.count("cpu")))
    openers = [(name, functools.partial(open_model, dataclasses.replace(options, device=name))) for name in names]
    return Processes(openers, shared)


def _open(options: ModelOptions) -> BaseSegmenter:
    from ..inference.load import open_model

    with console.downloads() as fetched:
        return open_model(options, progress=fetched)
