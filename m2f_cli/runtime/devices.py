"""The device and the number format that a name stands for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from ..errors import ConfigError, nearest
from .threads import note_busy_machine

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("auto", "cpu", "cuda", "mps")
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, arm64


def cpu_info(key: str) -> str:
    """Return what Linux says of its first core; "" on other systems."""
    found = re.search(rf"^{key}\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE) if CPU_INFO.is_file() else None
    return found[1].strip() if found else ""


def good_precisions(device: torch.device) -> list[str]:
    """Return the number formats that a device computes fast."""
    if device.type == "cuda":
        return gpu_precisions(torch.cuda.get_device_capability(device))
    return ["fp32", "fp16"] if device.type == "mps" else cpu_precisions()


def gpu_precisions(capability: tuple[int, int]) -> list[str]:
    """Return the number formats that a CUDA device computes fast: fp16 from 7.0 (Volta), bf16 from 8.0."""
    fast = {"fp16": (7, 0), "bf16": (8, 0)}
    return ["fp32", *(name for name, since in fast.items() if tuple(capability) >= since)]


def cpu_precisions() -> list[str]:
    """Return fp32, and bf16 where the processor has instructions for it; fp16 is slow on every CPU."""
    flags = cpu_info("flags") or cpu_info("Features")
    return ["fp32", "bf16"] if BF16_FLAGS & set(flags.split()) else ["fp32"]


def choose_precision(name: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Return `name`; for "auto" bf16, else fp16, where the device computes it fast, and fp32 where neither."""
    if name != "auto":
        return name
    good = good_precisions(device)
    return "bf16" if "bf16" in good else "fp16" if "fp16" in good else "fp32"


def choose_device(name: str) -> torch.device:
    """Return the device that a name stands for; "auto" is the fastest kind present.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        name = "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("tensors on it hold no values")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The device {name!r} cannot be used: {reason.rstrip('.')}.", hint=_hint(name)) from error
    if device.type == "cpu":
        note_busy_machine()
    return device


def several_devices(text: str, kind: str = "auto") -> list[str]:
    """Return the devices that `--devices` names: a number of processes, or a list.

    Args:
        text: "4" for the first four GPUs, or as many processes on a CPU; "0,2" for these two GPUs; "cpu:2" for two
            processes on the CPU; any device that PyTorch knows; or several of these, between commas.
        kind: the kind of device that a number counts, as in `choose_device`.

    Raises:
        ConfigError: a device does not exist here.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) == 1 and names[0].isdecimal() and int(names[0]):
        kind = choose_device(kind).type
        names = [f"{kind}:{index}" if kind == "cuda" else kind for index in range(int(names[0]))]
    elif names == ["0"]:
        raise ConfigError("--devices 0 is no number of processes.", hint="One GPU alone is --device cuda:0.")
    devices: list[str] = []
    for name in names:
        kind, _, index = (f"cuda:{name}" if name.isdecimal() else name).partition(":")
        if kind == "cpu" and index.isdecimal() and int(index):
            devices += ["cpu"] * int(index)
        elif kind == "cuda" and index.isdecimal() and int(index) >= torch.cuda.device_count():
            raise ConfigError(
                f"--devices {text}: this machine has {torch.cuda.device_count()} GPUs, counted from 0.",
                hint="`m2f doctor` shows them; cpu:2 means two processes on the CPU.",
            )
        else:
            choose_device(name if kind != "cuda" else f"{kind}:{index}")
            devices.append(f"{kind}:{index}" if index else kind)
    if not devices:
        raise ConfigError(f"--devices {text!r} names no device.", hint="Such as 4, or 0,1, or cpu:2.")
    return devices


def _hint(name: str) -> str:
    """Return what to do about a device that cannot be used: a mistyped one, a number alone, or one that is not here."""
    kind = name.partition(":")[0]
    close = [] if kind in KINDS else [f"cuda:{name}"] if name.isdecimal() else nearest(kind, KINDS)
    return f"Did you mean {' or '.join(close)}?" if close else "Use --device cpu, or see `m2f doctor`."
