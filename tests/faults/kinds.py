"""The kinds of faults: each draws one fault for a scenario, from what an undisturbed run of it does."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from random import Random

from faults.harness import KILLED, Bench, Fault
from faults.inject import Injection

PAGE = 4096  # bytes; a disk in memory has whole pages
IMPORTS = 3.0  # seconds that a command line takes before it does anything
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
REFUSED = (1, 5)  # exit codes of an error while something is written; 5: an export
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # saved and told, or killed as by default
Kind = Callable[[Random, Bench], Fault]


def killed_before_operation(draw: Random, bench: Bench) -> Fault:
    at = draw.randrange(bench.whole.operations)
    return Fault(f"SIGKILL before operation {at}", Injection("kill", at))


def killed_inside_a_write(draw: Random, bench: Bench) -> Fault:
    at, size = draw.randrange(bench.whole.operations), draw.randrange(max(bench.whole.sizes))
    size = draw.choice([size, draw.randrange(1 + draw.choice(bench.whole.sizes))])
    text = f"dead after {size} bytes of a file, from operation {at} on"
    return Fault(text, Injection("cut", at, size), codes=(*KILLED, *REFUSED))  # refused: only a worker is dead


def killed_at_a_moment(draw: Random, bench: Bench) -> Fault:
    seconds = draw.uniform(0, bench.whole.seconds)
    return Fault(f"SIGKILL after {seconds:.2f} s", signal=signal.SIGKILL, seconds=seconds)


def killed_command_line(draw: Random, bench: Bench) -> Fault:
    seconds = draw.uniform(0.2, 1) * (IMPORTS + bench.whole.seconds)
    return Fault(f"SIGKILL after {seconds:.2f} s of a real process", signal=9, seconds=seconds, is_real=True)


def asked_to_end(draw: Random, bench: Bench) -> Fault:
    number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    seconds, to_group = draw.uniform(0, bench.whole.seconds), draw.random() < 0.5
    text = f"{number.name} to the {'group' if to_group else 'process'} after {seconds:.2f} s"
    return Fault(text, signal=number, to_group=to_group, seconds=seconds, codes=STOPPED)


def failing_write(draw: Random, bench: Bench) -> Fault:
    at, number = draw.randrange(bench.whole.operations), draw.choice(WRITE_ERRORS)
    action = draw.choice(["fail", "once"])
    text = f"{errno.errorcode[number]} {'from' if action == 'fail' else 'at'} operation {at}"
    return Fault(text, Injection(action, at, number), codes=REFUSED, explains=True)


def short_write(draw: Random, bench: Bench) -> Fault:
    size = draw.randrange(max(bench.whole.sizes))
    at = draw.randrange(bench.whole.operations)
    text = f"no file beyond {size} bytes, from operation {at} on"
    return Fault(text, Injection("short", at, size), codes=REFUSED, explains=True)


def full_disk(draw: Random, bench: Bench) -> Fault:
    needed = sum(-(-size // PAGE) for size in bench.whole.sizes)
    size = PAGE * draw.randrange(1, max(2, needed))
    return Fault(f"a disk of {size // 1024} KiB", bytes_free=size, codes=REFUSED, explains=True)


def read_only_folder(draw: Random, bench: Bench) -> Fault:
    return Fault("a read-only disk", is_read_only=True, codes=REFUSED, explains=True)


def turned_read_only(draw: Random, bench: Bench) -> Fault:
    at, number = draw.randrange(bench.whole.operations), draw.choice([errno.EROFS, errno.EACCES])
    text = f"{errno.errorcode[number]} from operation {at}"
    return Fault(text, Injection("fail", at, number), codes=REFUSED, explains=True)


def vanished_image(draw: Random, bench: Bench) -> Fault:
    at, image = draw.randrange(bench.whole.operations), bench.scenario.image
    return Fault(f"an image vanishes at operation {at}", Injection("vanish", at, 0, image), codes=(3,), explains=True)


def error_in_a_worker(draw: Random, bench: Bench) -> Fault:
    name = os.path.basename(bench.scenario.image)
    return Fault("an exception in a worker", Injection("worker", -1, 0, name), codes=(1, 3), explains=True)


def killed_worker(draw: Random, bench: Bench) -> Fault:
    seconds = draw.uniform(0, 0.3)
    text = f"SIGKILL to a worker {seconds:.2f} s after it has begun"
    return Fault(text, signal=signal.SIGKILL, to_child=True, seconds=seconds, codes=(1,), explains=True)


def lost_process(draw: Random, bench: Bench) -> Fault:
    process, seconds = draw.randrange(bench.scenario.processes), draw.uniform(0, bench.whole.seconds)
    text = f"process {process} of {bench.scenario.processes} lost after {seconds:.2f} s"
    return Fault(text, signal=signal.SIGKILL, process=process, seconds=seconds, explains=True)


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        killed_before_operation,
        killed_inside_a_write,
        killed_at_a_moment,
        killed_command_line,
        asked_to_end,
        failing_write,
        short_write,
        full_disk,
        read_only_folder,
        turned_read_only,
        vanished_image,
        error_in_a_worker,
        killed_worker,
        lost_process,
    )
}
NEED_A_DISK = ("full_disk", "read_only_folder")
