"""Connection to a Ray cluster, or to a small one that is started on this machine, and a check of its versions."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError, M2FError, MissingDependency

CHECKED = ("m2f_cli.version", "ray")  # modules whose versions must be those of this process, and that of PyTorch
PROBE_SECONDS, REACH_SECONDS = 120, 10
LEVEL, NO_TOKEN = b"Set ray log level from environment variable", b"InvalidAuthToken"  # in lines of Ray's native part


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Give the module `ray`, connected to a cluster while the context is open.

    Args:
        address: address of a cluster, as in `ray.init`. None: that of $RAY_ADDRESS, or else a new cluster on this
            machine, which ends with the context. A program that is connected already stays so.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: the cluster cannot be reached, wants another token, or has other versions of Ray, Python, PyTorch
            or m2f.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # m2f contacts nothing but the cluster
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of how Ray Data makes actors
    ray = _ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield ray
        return
    address, told = address or os.environ.get("RAY_ADDRESS") or "local", bytearray()
    try:
        _reach(address)
        own = {"include_dashboard": False} if address == "local" else {}
        with _collected(told):
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:  # Ray raises a bare one where a node does not start in time
        raise _no_token(address) if NO_TOKEN in told else _not_connected(address, error) from error
    finally:
        _pass_on(told)
    try:
        _check_versions(ray)
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency("ray[data]", "--on ray", "ray") from error
    return ray


@contextmanager
def _collected(told: bytearray) -> Iterator[None]:
    """Put what is written to stderr into `told`, also by native code."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            told += file.read()


def _pass_on(told: bytearray) -> None:
    """Write to stderr what Ray told while it started, but not its level of logging, and a refusal once more."""
    for line in told.splitlines(keepends=True):
        if LEVEL not in line and NO_TOKEN not in line:
            os.write(2, line)


def _reach(address: str) -> None:
    """Open a connection to an address "host:port", because Ray would try for many minutes.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def _no_token(address: str) -> ConfigError:
    hint = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` says on its head node."
    return ConfigError(f"The Ray cluster at {address} wants a token, and this process has none or another.", hint=hint)


def _not_connected(address: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    if "ersion mismatch" in reason:
        return ConfigError(f"The Ray cluster has other versions: {reason}", hint="Install the same on all machines.")
    if address == "local":
        hint = "Try again when the machine has less to do; --skip-existing goes on."
        return ConfigError(f"Ray does not start on this machine: {reason[:300].rstrip('.')}.", hint=hint)
    return ConfigError(
        f"The Ray cluster at {address} cannot be reached: {reason[:300].rstrip('.')}.",
        hint="See `ray status`; without --ray-address, Ray runs on this machine alone.",
    )


def _check_versions(ray: Any) -> None:
    """Compare the versions of all nodes with those of this process.

    Raises:
        ConfigError: names the first node that differs, or where m2f is not installed.
    """

    def probe(modules: tuple[str, ...]) -> dict[str, str]:
        """Return versions. Ray sends this function as code, because m2f may be missing where it runs."""
        import importlib
        import importlib.metadata
        import platform

        found = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
        for name in modules:
            try:
                found[name] = importlib.import_module(name).__version__
            except ImportError as missing:
                found[name] = f"none ({missing})"
        return found

    expected = probe(CHECKED)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=3)(probe)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(CHECKED)
        for node in nodes
    ]
    try:
        answers = ray.get(asked, timeout=PROBE_SECONDS)
    except ray.exceptions.RayError as error:
        raise M2FError(f"The nodes of the Ray cluster do not answer: {error}.", hint="See `ray status`.") from error
    for node, found in zip(nodes, answers, strict=True):
        refuse_other_versions(f"the node {node['NodeManagerHostname']}", expected, found)


def refuse_other_versions(place: str, expected: dict[str, str], found: dict[str, str]) -> None:
    """Refuse a machine whose versions differ.

    Raises:
        ConfigError: names what differs.
    """
    for name, version in expected.items():
        if found[name] != version:
            label = "m2f" if name == "m2f_cli.version" else name
            raise ConfigError(
                f"This process has {label} {version}, and {place} of the Ray cluster has {found[name]}.",
                hint="Install the same versions on all machines.",
            )
