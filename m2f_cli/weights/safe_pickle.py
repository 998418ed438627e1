"""Reading of pickles without executing them.

A pickle is a program for a stack machine. pickle_machine.py is m2f's own machine. It has the operations that weights
need, and creates numbers, texts, plain containers, arrays of numpy and tensors. A class or function that a pickle names
is a plain record here. The result of "calling" one comes from a function of pickle_values.py, which validates every
argument. Nothing is imported, and nothing that the file names is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .pickle_machine import Machine
from .pickle_source import Budget, Damaged, PickleSource
from .pickle_values import Storage

MOST_VALUES = 5_000_000  # values in the result; a value with two references counts twice
DEEPEST = 100  # containers inside one another
# Errors from arguments of the wrong kind or number that the machine's checks do not catch.
_SENSELESS = (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, RuntimeError)


def load(
    source: PickleSource,
    start: int = 0,
    end: int | None = None,
    *,
    budget: Budget,
    storage_of: Callable[[Any], Storage] | None = None,
    torch_bytes: Callable[[bytes], Any] | None = None,
) -> tuple[Any, int]:
    """Read the pickle that begins at `start`.

    Args:
        end: end of the bytes that may be read. None is the end of the source.
        budget: limit of the memory.
        storage_of: returns the storage for a persistent id, in files of torch.
        torch_bytes: reads the torch file that a plain pickle holds as bytes for each tensor.

    Returns:
        The content, and the position of its end.

    Raises:
        Damaged: the pickle makes no sense, or would need an unreasonable amount of time or memory.
        WeightsError: the pickle names something that weights do not need.
    """
    machine = Machine(source, start, len(source) if end is None else end, budget, storage_of, torch_bytes)
    try:
        tree = machine.run()
    except _SENSELESS as error:
        raise Damaged(f"it makes no sense at byte {machine.at - start} ({_first_line(error)})") from error
    _refuse_tangle(tree)
    return tree, machine.at


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:120].rstrip(".")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _refuse_tangle(root: Any) -> None:
    """Refuse trees on which later code would run for ever: cycles, deep nesting, references that multiply."""
    known: dict[int, tuple[int, int]] = {}  # number of values and depth of each container
    inside: set[int] = set()
    waiting = [(root, False)]
    while waiting:
        node, is_done = waiting.pop()
        key = id(node)
        if is_done:
            below = [known.get(id(part), (1, 0)) for part in _parts(node)]
            values, depth = 1 + sum(count for count, _ in below), 1 + max((deep for _, deep in below), default=0)
            if values > MOST_VALUES or depth > DEEPEST:
                raise Damaged(f"it holds more than {MOST_VALUES:,} values, or more than {DEEPEST} in one another")
            known[key] = values, depth
            inside.discard(key)
        elif key in inside:
            raise Damaged("it holds something that is a part of itself")
        elif key not in known:
            inside.add(key)
            waiting.append((node, True))
            waiting += [(part, False) for part in _parts(node) if isinstance(part, dict | list | tuple)]
