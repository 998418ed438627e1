"""Findings of `m2f doctor` about this machine: what it has, what m2f will use, and what is missing.

Only the standard library is imported at the top, so that a missing or broken torch can be reported.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..runtime import network
from ..runtime.allocator import can_keep_memory
from ..runtime.threads import usable_cores
from ..version import __version__
from .requirements import DISTRIBUTION, Requirement, is_older, required_python, requirements

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..ops.dispatch import Implementations

Status = Literal["ok", "note", "problem"]

NOT_FOR_USERS = ("test",)
LARGEST_DIFFERENCE = 1e-4  # difference of deformable attention, fp32, values of size 1; above that of rounding
LITTLE_DISK = 2 << 30  # bytes; more than the largest released weights need
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class DoctorFinding:
    """Finding about one thing.

    Attributes:
        group: group of the finding, a key of `EXAMINATIONS`.
        name: name of the thing.
        value: its state in words.
        status: "ok", "note" (m2f works without it) or "problem" (m2f does not).
        hint: remedy of a note or problem, one sentence. It may be empty.
    """

    group: str
    name: str
    value: str
    status: Status = "ok"
    hint: str = ""


def diagnose() -> list[DoctorFinding]:
    """Examine everything, and return the findings by group, sorted by name within a group.

    Nothing is downloaded or written. An examination that fails is a finding, and the others go on.
    """
    findings: list[DoctorFinding] = []
    for group, examine in EXAMINATIONS.items():
        findings += sorted(examined(group, examine), key=lambda finding: finding.name.casefold())
    return findings


def examined(group: str, examine: Callable[[], Iterator[DoctorFinding]]) -> list[DoctorFinding]:
    findings: list[DoctorFinding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # findings report what matters
        try:
            for finding in examine():
                findings.append(finding)
        except Exception as error:  # any failure is worth reporting
            hint = "The other groups stand for themselves; what they call a problem may be the reason."
            findings.append(DoctorFinding(group, "examination", f"failed: {_reason(error)}", "problem", hint))
    return findings


def _reason(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return first if isinstance(error, ImportError) else f"{type(error).__name__}: {first}"


# --- packages ---------------------------------------------------------------------------------------------------------


def check_packages() -> Iterator[DoctorFinding]:
    yield DoctorFinding("packages", "m2f", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield check_python(required_python())
    for requirement in requirements():
        if not requirement.extra:
            yield check_required(requirement)


def check_python(minimum: str) -> DoctorFinding:
    version = platform.python_version()
    if is_older(version, minimum):
        return DoctorFinding("packages", "python", version, "problem", f"Install Python {minimum} or newer.")
    return DoctorFinding("packages", "python", f"{version} ({sys.executable})")


def check_required(requirement: Requirement) -> DoctorFinding:
    name, installed = requirement.name, requirement.installed()
    if installed is None:
        return DoctorFinding("packages", name, "not installed", "problem", f"Run: pip install '{requirement}'")
    provider, version = installed
    if is_older(version, requirement.minimum):
        value = f"{version}, too old"
        return DoctorFinding("packages", name, value, "problem", f"Run: pip install --upgrade '{requirement}'")
    try:
        importlib.import_module(requirement.module)
    except Exception as error:  # a broken build may raise anything
        headless = "Run: pip install --force-reinstall opencv-python-headless"
        hint = headless if "libGL" in str(error) else f"Run: pip install --force-reinstall '{provider}'"
        return DoctorFinding("packages", name, f"{version}, cannot be imported: {_reason(error)}", "problem", hint)
    return DoctorFinding("packages", name, version if provider == name else f"{version} ({provider})")


def check_optional_packages() -> Iterator[DoctorFinding]:
    told = set()  # some packages belong to two extras
    for requirement in requirements():
        if requirement.extra and requirement.extra not in NOT_FOR_USERS and requirement.name not in told:
            told.add(requirement.name)
            yield check_optional(requirement)


def check_optional(requirement: Requirement) -> DoctorFinding:
    group, installed = "optional packages", requirement.installed()
    package = f"'{DISTRIBUTION}[{requirement.extra}]'"
    if installed is None:
        return DoctorFinding(
            group, requirement.name, "not installed", "note", f"If you want it, run: pip install {package}"
        )
    version = installed[1]
    if is_older(version, requirement.minimum):
        value, hint = f"{version}, older than {requirement.minimum}", f"If you use it, run: pip install -U {package}"
        return DoctorFinding(group, requirement.name, value, "note", hint)
    return DoctorFinding(group, requirement.name, version)


# --- devices ----------------------------------------------------------------------------------------------------------


def devices() -> list[torch.device]:
    """Return every device of this machine that a network can run on, with the CPU first."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [torch.device(name) for name in ("cpu", *(f"cuda:{i}" for i in gpus), *mps)]


def check_devices() -> Iterator[DoctorFinding]:
    import torch

    from ..runtime.devices import choose_device

    threads = f"cores: {usable_cores()}, threads of torch: {torch.get_num_threads()}"
    yield DoctorFinding("devices", "cpu", f"{cpu_name()}, {threads}")
    yield DoctorFinding("devices", "memory", memory_size())
    kept = "kept by predict and eval" if can_keep_memory() else "given back: this C library is not glibc 2.35 or newer"
    yield DoctorFinding("devices", "freed memory", kept)
    with warnings.catch_warnings(record=True) as caught:  # torch warns of drivers that are too old, and of old GPUs
        warnings.simplefilter("always")
        usable = devices()
    remark = str(caught[0].message).strip().splitlines()[0] if caught else ""
    if not any(device.type == "cuda" for device in usable):
        yield _no_gpu(remark)
    for device in usable:
        if device.type == "cuda":
            yield _gpu(device, remark)
        elif device.type == "mps":
            yield DoctorFinding("devices", "mps", "usable")
    yield DoctorFinding("devices", "--device auto", f"takes {choose_device('auto')}")


def _gpu(device: torch.device, remark: str) -> DoctorFinding:
    import torch

    card = torch.cuda.get_device_properties(device)
    value = f"{card.name}, {_bytes(card.total_memory)}, capability {card.major}.{card.minor}"
    return DoctorFinding("devices", str(device), value, "note" if remark else "ok", remark)


def _no_gpu(remark: str) -> DoctorFinding:
    import torch

    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built_for = " ".join(f"{name} {version}" for name, version in versions.items() if version)
    if built_for:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = (
            "Where there is a GPU, see whether nvidia-smi lists it."
            if visible is None
            else (f"CUDA_VISIBLE_DEVICES={visible!r} chooses among the GPUs.")
        )
        return DoctorFinding(
            "devices", "cuda", f"torch is built for {built_for} and sees no GPU", "note", remark or hint
        )
    if shutil.which("nvidia-smi"):
        hint = "Install a CUDA build of torch to use the NVIDIA GPU."
        return DoctorFinding(
            "devices", "cuda", "torch is built for the CPU alone, beside an NVIDIA driver", "note", hint
        )
    return DoctorFinding("devices", "cuda", "none; torch is built without it")


def cpu_name() -> str:
    from ..runtime.devices import cpu_info

    return cpu_info("model name") or platform.processor() or platform.machine()


def memory_size() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return "size unknown on this system"
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    if limit.isdigit() and int(limit) < size:
        return f"{_bytes(int(limit))} (limit of the container; the machine has {_bytes(size)})"
    return _bytes(size)


def _bytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.1f} MiB"


def check_precisions() -> Iterator[DoctorFinding]:
    from ..runtime.devices import good_precisions

    for device in devices():
        yield DoctorFinding("precision", str(device), f"good at {', '.join(good_precisions(device))}")


# --- deformable attention ---------------------------------------------------------------------------------------------


def check_deform_attn() -> Iterator[DoctorFinding]:
    from ..ops import deformable_attention as op

    group = "deformable attention"
    override = yield from _override(group, op.IMPLEMENTATIONS, "Unset it for the fastest on each device.")
    expected = outputs_and_gradients("reference", "cpu")
    for device in devices():
        running = op.implementations(device)
        used = None if override is None else op.choose(device)
        if used and used not in running:
            hint = f"Unset {op.IMPLEMENTATIONS.variable()}: here run {', '.join(running)}."
            yield DoctorFinding(group, f"{device} {used}", "does not run on this device", "problem", hint)
        for impl in running:
            yield _agreement(impl, device, expected, is_used=impl == used)


def _override(group: str, operator: Implementations, hint: str) -> Generator[DoctorFinding, None, str | None]:
    """Report the implementation in the environment, and return it: "auto" if it is unset, None if it is invalid."""
    try:
        name = operator.override()
    except ConfigError as error:
        yield DoctorFinding(group, operator.variable(), error.message, "problem", error.hint or "")
        return None
    if name is not None:
        yield DoctorFinding(group, operator.variable(), name, "note", hint)
    return name or "auto"


def _agreement(impl: str, device: torch.device, expected: list[Tensor], *, is_used: bool) -> DoctorFinding:
    group, name = "deformable attention", f"{device} {impl}"
    mark = ", used here" if is_used else ""
    try:
        actual = outputs_and_gradients(impl, device)
    except RuntimeError as error:  # an operator that this device does not have, or a GPU that torch has no code for
        hint = "Use another device, or another implementation (M2F_OPS)." if is_used else ""
        return DoctorFinding(group, name, f"fails: {_reason(error)}{mark}", "problem" if is_used else "note", hint)
    difference = max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))
    value = f"within {difference:.1g} of the reference, values and gradients{mark}"
    if difference <= LARGEST_DIFFERENCE:  # false for NaN
        return DoctorFinding(group, name, value)
    value = f"off by {difference:.1e} from the reference{mark}"
    return DoctorFinding(group, name, value, "problem", "Results would be wrong: please report it with this output.")


def outputs_and_gradients(impl: str, device: torch.device | str) -> list[Tensor]:
    """Return the operator's output for a constant small input, and its gradients for values, x, y and weights.

    All tensors are on the CPU. No sampling point is near a whole pixel, where the slope of bilinear sampling jumps and
    rounding would decide its sign.
    """
    import torch

    from ..ops.deformable_attention import deform_attn

    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 9), (4, 5), (2, 3))
    size = (1, 12, 2, len(shapes), 4)  # B, N, A, L, P
    value_BSAD = torch.randn(1, sum(h * w for h, w in shapes), 2, 8, generator=generator)
    x, y = (
        torch.randint(-2, 9, size, generator=generator) + 0.1 + 0.8 * torch.rand(size, generator=generator)
        for _ in range(2)
    )
    weights = torch.rand(size, generator=generator) / (len(shapes) * 4)
    inputs = [tensor.to(device).requires_grad_() for tensor in (value_BSAD, x, y, weights)]
    output = deform_attn(inputs[0], shapes, *inputs[1:], impl=impl)
    cotangent = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    gradients = torch.autograd.grad((output * cotangent).sum(), inputs)
    return [tensor.detach().cpu() for tensor in (output, *gradients)]


# --- files and settings -----------------------------------------------------------------------------------------------


def check_caches() -> Iterator[DoctorFinding]:
    from huggingface_hub import constants

    from ..weights import download

    yield check_cache("M2F_HOME", download.weights_dir())
    yield check_cache("HF_HOME", Path(constants.HF_HUB_CACHE))
    if network.is_offline():
        hint = "Only models that are here already can be loaded; unset M2F_OFFLINE and HF_HUB_OFFLINE for others."
        yield DoctorFinding("caches", "network", "switched off", "note", hint)
    else:
        endpoint = os.environ.get("HF_ENDPOINT", "")
        mirror = f", the hub is {urlsplit(endpoint).hostname}" if endpoint else ""  # without a user's name or password
        yield DoctorFinding("caches", "network", f"allowed{mirror}")


def check_cache(name: str, folder: Path) -> DoctorFinding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    used = sum(_size(Path(root) / file) for root, _, files in os.walk(folder) for file in files)
    free = shutil.disk_usage(existing).free
    value = f"{folder}: {_bytes(used)} used, {_bytes(free)} free"
    if not os.access(existing, os.W_OK):
        return DoctorFinding("caches", name, f"{value}, not writable", "note", f"To download weights, set {name}.")
    if free < LITTLE_DISK:
        return DoctorFinding("caches", name, value, "note", f"Little disk is left; {name} says where weights go.")
    return DoctorFinding("caches", name, value)


def _size(path: Path) -> int:
    """Return the bytes of a file or link itself, without the target of a link."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # a download finished and renamed its file meanwhile
        return 0


def check_configuration() -> Iterator[DoctorFinding]:
    from ..config import presets as config
    from ..structures.categories import class_tables, load_categories

    tables = class_tables()
    for name in tables:
        load_categories(name)
    yield DoctorFinding("configuration", "class tables", f"{len(tables)}: {', '.join(tables)}")
    presets = config.preset_names()
    for name in presets:
        config.load(name)
    if presets:
        yield DoctorFinding("configuration", "presets", f"{len(presets)} in {config.presets_dir()}")
    else:
        hint = f"Run: pip install --force-reinstall {DISTRIBUTION}"
        yield DoctorFinding("configuration", "presets", f"none in {config.presets_dir()}", "problem", hint)


def check_plugins() -> Iterator[DoctorFinding]:
    owners = {
        entry: package.metadata["Name"]
        for package in metadata.distributions()
        for entry in package.entry_points
        if entry.group.startswith("m2f.")
    }
    for entry, owner in owners.items():
        yield _plugin(entry, owner)
    if not owners:
        yield DoctorFinding("plug-ins", "of other packages", "none")


def _plugin(entry: metadata.EntryPoint, owner: str) -> DoctorFinding:
    from .. import plugins

    group = entry.group.removeprefix("m2f.")
    name = f"{group} {entry.name}"
    if entry.name in plugins.BUILT_IN.get(group, {}):
        return DoctorFinding("plug-ins", name, f"of {owner}, not used", "note", "m2f has a built-in one of that name.")
    try:
        plugins.load(entry.value)
    except Exception as error:  # code of others may raise anything
        hint = f"Repair or uninstall {owner}."
        return DoctorFinding("plug-ins", name, f"of {owner}, cannot be loaded: {_reason(error)}", "problem", hint)
    return DoctorFinding("plug-ins", name, f"{entry.value} of {owner}")


# --- linear layers ----------------------------------------------------------------------------------------------------


def check_linear() -> Iterator[DoctorFinding]:
    import torch

    from ..ops.cpu import linear as op

    group = "linear layers"
    override = yield from _override(group, op.IMPLEMENTATIONS, "Unset it for the fastest on this processor.")
    if override is None:
        return
    x = torch.zeros(op.MIN_ROWS, 1)
    trained = op.choose(x)
    with torch.no_grad():
        predicted = op.choose(x)
    slow = "; MKL's matrix products are slow on this processor" if op.is_blas_slow() else ""
    yield DoctorFinding(group, "cpu", f"training {trained}, prediction {predicted}{'' if override != 'auto' else slow}")


EXAMINATIONS: dict[str, Callable[[], Iterator[DoctorFinding]]] = {
    "packages": check_packages,
    "optional packages": check_optional_packages,
    "devices": check_devices,
    "precision": check_precisions,
    "deformable attention": check_deform_attn,
    "linear layers": check_linear,
    "caches": check_caches,
    "configuration": check_configuration,
    "plug-ins": check_plugins,
}
