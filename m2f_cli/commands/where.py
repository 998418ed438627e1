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
from . import options as opt

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
    from ..cluster.ranks import work
    from ..inference.load import ModelOptions
    from ..runtime import distributed
    from ..runtime.devices import choose_device
    from ..structures.images import silence_pillow

    options = ModelOptions(ref, **settings)
    silence_pillow()
    with distributed.group(choose_device(options.device)) as device:
        work(_open(dataclasses.replace(options, device=str(device))))
    raise typer.Exit()


@contextmanager
def opened(
    options: ModelOptions, devices: str | None, on: str | None = None, ray_address: str | None = None
) -> Iterator[tuple[BaseSegmenter, Streamer]]:
    """Open the model, and give it with what sends images through it.

    Args:
        options: the model.
        devices: the value of --devices; None does without several processes.
        on: the value of --on, "ray" or None.
        ray_address: the value of --ray-address.
    """
    check_engine(on, ray_address, devices is not None)
    from ..inference.stream import stream

    if is_of_torchrun():
        from ..cluster.ranks import Ranks
        from ..runtime import distributed
        from ..runtime.devices import choose_device

        if devices is not None:
            raise ConfigError("--devices is for one command, and torchrun starts several.", hint="Leave one out.")
        with distributed.group(choose_device(options.device)) as device, Ranks() as ranks:
            yield _open(dataclasses.replace(options, device=str(device))), ranks
    elif on is not None:
        with on_ray(options, ray_address) as streamer:
            yield _without_work(options), streamer
    elif devices is not None:
        yield _without_work(options), _processes(options, devices)
    else:
        yield _open(options), stream


def check_engine(on: str | None, ray_address: str | None, has_devices: bool) -> None:
    """Refuse options about processes that do not fit each other.

    Raises:
        ConfigError: says which.
    """
    opt.one_of("engine of --on", on, ("ray",))
    if ray_address is not None and on is None:
        raise ConfigError("--ray-address is for --on ray.", hint="Pass --on ray, too.")
    if on is not None and (has_devices or is_of_torchrun()):
        raise ConfigError("--on ray excludes --devices and torchrun.", hint="Ray starts a process for each GPU.")


@contextmanager
def on_ray(options: ModelOptions, ray_address: str | None) -> Iterator[Streamer]:
    """Give what sends images through a model on a Ray cluster, connected while the context is open."""
    from ..cluster.processes import open_on
    from ..cluster.ray_cluster import connected
    from ..cluster.ray_stream import RayStream

    with connected(ray_address) as ray:
        yield RayStream(ray, functools.partial(open_on, options), options.device)


def _processes(options: ModelOptions, devices: str) -> Streamer:
    from ..cluster.processes import Processes, open_on
    from ..runtime.devices import several_devices
    from ..runtime.threads import VARIABLE, usable_cores

    names = several_devices(devices, options.device)
    threads = None if VARIABLE in os.environ else max(1, usable_cores() // max(1, names.count("cpu")))
    return Processes([(name, functools.partial(open_on, options, name)) for name in names], threads)


def stages_of(streamer: Streamer) -> list[dict[str, Any]] | None:
    """Return the use of the stages, for --json; None for other streams than those of a cluster."""
    stages = getattr(streamer, "stages", None)
    return stages and [dataclasses.asdict(stage) for stage in stages]


def show_stages(streamer: Streamer) -> None:
    """Print what the stages of a cluster did."""
    stages = getattr(streamer, "stages", None)
    if not stages:
        return
    from ..cluster.stages import bottleneck

    rows = [[each.name, f"{each.images_per_second:.1f}", f"{100 * each.busy:.0f} %"] for each in stages]
    console.show_table("Stages", ["stage", "images/s at most", "busy"], rows)
    console.out(f"The bottleneck is: {bottleneck(stages)}.")


def _without_work(options: ModelOptions) -> BaseSegmenter:
    """Open the model where other processes do the work: its classes and settings are needed."""
    return _open(dataclasses.replace(options, device="cpu", precision="fp32", compile=False))


def _open(options: ModelOptions) -> BaseSegmenter:
    from ..inference.load import open_model

    with console.downloads() as fetched:
        return open_model(options, progress=fetched)
