"""The processes of a torch.distributed group: ranks, and what all of them agree on."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError, M2FError
from .threads import usable_cores

INTERRUPTED = 130
_joined = itertools.count()  # groups of this process: each has addresses of its own in the store
Value = TypeVar("Value")


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    return dist.get_world_size() if is_active() else 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives the device of this process.

    NCCL on CUDA, gloo elsewhere. Under torchrun on CUDA each process takes the GPU of its local rank.

    Raises:
        ConfigError: torchrun could not start the processes again.
        M2FError: another process was lost, or is out of reach.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    attempt = _attempt()
    try:
        store, own_rank, world = next(dist.rendezvous("env://"))
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.PrefixStore(f"{attempt}/{next(_joined)}", store)
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=world)
        try:
            yield device
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not is_of_group(error):
            raise
        raise M2FError(
            "Another process of this command has ended, or cannot be reached.",
            hint="Its own message says why; then start all of them again.",
        ) from error


def _attempt() -> str:
    """Return a name for the present start by torchrun, which keeps one store for all of them.

    Without it, a process reads the addresses of the processes before it, which are gone, and waits for them. Torchrun
    counts the starts on each machine alone.

    Raises:
        ConfigError: several machines share the store of a torchrun that may start them again.
    """
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    if is_shared and not is_alone and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigError(
            "torchrun --max-restarts on several machines keeps the addresses of processes that are gone.",
            hint="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on each machine.",
        )
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_alone else ""


def is_of_group(error: BaseException) -> bool:
    """Return True for an error of the communication of processes, not of what a process computes."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo raises bare RuntimeErrors


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the network for training in this group, with averaged gradients and synchronised batch norms."""
    if not is_active():
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Weights of 1 x 1 convolutions have the same numbers in either layout, of which a CPU's kernels take any.
    warnings.filterwarnings("ignore", ".*Grad strides do not match bucket view strides")
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def on_main(make: Callable[[], Value]) -> Value:
    """Return in all processes what the first one makes; its errors are raised in all, too."""
    if not is_active():
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box = [make(), None]
        except M2FError as error:
            box = [None, error]
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(value: Value) -> list[Value]:
    """Return what each process gives, in all of them, in the order of their ranks. Each waits for the last."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor of each process, in place; nobody waits for the result."""
    if is_active():
        dist.all_reduce(values)
    return values


def first_error(own: M2FError | None) -> M2FError | None:
    """Return the error of the first process that has one, in all of them: each ends with the same code."""
    return next((error for error in gather(own) if error is not None), None)


def any_of_us(flag: bool, device: torch.device) -> bool:
    """Return True if any process says yes: decisions to stop or skip must be those of all."""
    if not is_active():
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run `m2f` with the same arguments in `devices` processes on this machine, as torchrun would.

    Returns:
        The exit code of the first that failed, which has said why; 0 when none did.

    Raises:
        ConfigError: fewer GPUs than asked for.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise ConfigError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPUs.")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would tell of the failure again
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
    where = LaunchConfig(
        1, 1, devices, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(where, sys.executable)("-m", "m2f_cli", *arguments)
    except ChildFailedError as error:
        return _shell_code(error.get_first_failure()[1].exitcode)
    except SignalException as stop:
        return INTERRUPTED if stop.sigval == signal.SIGINT else _shell_code(-stop.sigval)
    return 0


def _shell_code(code: int) -> int:
    """Return the code of a shell: 128 and the signal that ended the process."""
    return code if code >= 0 else 128 - code
