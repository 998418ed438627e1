"""What both the table and the image of a benchmark say of it."""

from __future__ import annotations

from typing import Any

from ..runtime import allocator


def size_of(tree: dict[str, Any], times: str = " x ") -> str:
    """What the network sees, such as "512 x 1024", or that images were of several sizes."""
    size = tree["network_input"]
    return times.join(map(str, size)) if size else "several sizes"


def circumstances(tree: dict[str, Any]) -> str:
    """What a timing means nothing without: threads, allocator, other load."""
    machine = tree["machine"]
    return (
        f"{tree['threads']} threads, {allocators(tree)}, load {machine['load_before']} before and "
        f"{machine['load_after']} after"
    )


def allocators(tree: dict[str, Any]) -> str:
    """Such as "glibc (m2f keeps freed memory)"."""
    keeping = [
        name
        for name, side in tree["sides"].items()
        if allocator.SETTINGS.keys() <= side.get("allocator", {}).get("settings", {}).keys()
    ]
    name = tree["machine"]["allocator"]["name"]
    return f"{name} ({' and '.join(keeping)} keep{'s' * (len(keeping) == 1)} freed memory)" if keeping else name
