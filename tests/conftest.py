"""Fixtures that every test may use."""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: workers of pytest-xdist have a core each

import pytest
import typer
from helpers import golden_files
from helpers.fresh import Fresh

from m2f_cli import plugins
from m2f_cli.dataset_tools.sample import SAMPLES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the folder of `M2F_TEST_DATA`."""
    for item in items:
        if "shared_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.reference)


def pytest_xdist_auto_num_workers() -> int | None:
    """Start one worker more than there are cores: a worker often waits for a server, a lock or a process.

    None leaves the number to pytest-xdist, which reads the environment variable.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """Leave what is imported and collected out of every garbage collection, now and later.

    PyTorch and ten thousand items live as long as the process: to walk them takes a twentieth of the suite's time.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of facts, full fixtures and data packs (M2F_TEST_DATA). Tests that ask for it are `reference`."""
    folder = golden_files.reference_folder()
    if folder is None:
        pytest.skip("needs reference material that is no part of the repository: set M2F_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def nuclei_dir() -> Path:
    """Two dozen images of nuclei (CC0) in COCO's instance format."""
    return SAMPLES / "nuclei"


@pytest.fixture(scope="session")
def fresh():
    """`fresh(code, *arguments)`: what `python -c` gives in a process that has imported PyTorch and nothing else."""
    run = Fresh()
    yield run
    run.close()


@pytest.fixture
def golden_file(request):
    """A file of published numbers, for tests under `golden_files.for_files`."""
    return golden_files.read(*request.param)


@pytest.fixture
def only_parsed(monkeypatch):
    """Let commands do nothing but read their options."""
    seen: list[str] = []
    commands_of = plugins.load

    def nothing(function):
        @functools.wraps(function)
        def idle(*_, **__):
            seen.append(function.__name__)

        return idle

    def load(target: str):
        command = commands_of(target)
        if not isinstance(command, typer.Typer):
            return nothing(command)
        shell = typer.Typer()
        shell.callback()(lambda: None)
        for each in command.registered_commands:
            shell.command(each.name)(nothing(each.callback))
        return shell

    monkeypatch.setattr(plugins, "load", load)
    return seen
