"""Phrases that both the table and the chart of a benchmark contain."""

from __future__ import annotations

from typing import Any

from ..runtime import allocator


def work_name(tree: dict[str, Any]) -> str:
    """Return the name of the work for people. Results keep the former name "picture" of the work "image"."""
    return "image" if tree["what"] == "picture" else str(tree["what"])


def size_of(tree: dict[str, Any], times: str = " x ") -> str:
    """Return the size of the network's input, such as "512 x 1024", or "several sizes"."""
    size = tree["network_input"]
    return times.join(map(str, size)) if size else "several sizes"


def circumstances(tree: dict[str, Any]) -> str:
    """Return the conditions that a timing depends on: threads, allocator, other load."""
    machine = tree["machine"]
    return (
        f"{tree['threads']} threads, {allocators(tree)}, load {machine['load_before']} before and "
        f"{machine['load_after']} after"
    )


def allocators(tree: dict[str, Any]) -> str:
    """Return the allocator and the sides that keep freed memory, such as "glibc (m2f keeps freed memory)"."""
    keeping = [
        name
        for name, side in tree["sides"].items()
        if allocator.SETTINGS.keys() <= side.get("allocator", {}).get("settings", {}).keys()
    ]
    name = tree["machine"]["allocator"]["name"]
    return f"{name} ({' and '.join(keeping)} keep{'s' * (len(keeping) == 1)} freed memory)" if keeping else name
