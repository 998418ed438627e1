"""Stream of images through the processes that torchrun started: the first one shares out the items, and works too."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection, Listener

from ..errors import M2FError
from ..inference.base import BaseSegmenter
from ..inference.stream import Item, Job, Out, Outcomes
from ..runtime import distributed
from .processes import Worker, dispatch, serve


class Ranks:
    """Streamer of the first process; a context manager, which lets the others go if nothing was streamed.

    The others call `work`. All of them are in one torch.distributed group.
    """

    def __init__(self) -> None:
        self.has_met = False

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.has_met:
            distributed.on_main(lambda: None)

    def __call__(
        self,
        segmenter: BaseSegmenter,
        items: Iterable[Item],
        job: Job[Item, Out],
        *,
        batch: int = 1,
        workers: int = 2,
    ) -> Outcomes[Item, Out]:
        """Yield what `stream` yields, from the segmenters of all processes.

        Raises:
            M2FError: a process has ended.
        """
        ours, theirs = Pipe()
        own = threading.Thread(target=serve, args=(theirs, segmenter), daemon=True)
        started = [Worker("rank 0", ours)]
        try:
            self.has_met = True
            started += _meet()
            own.start()
            yield from dispatch(started, items, job, batch=batch, workers=workers)
        finally:
            for worker in started:
                worker.connection.close()
            if own.is_alive():
                own.join()


def work(segmenter: BaseSegmenter) -> None:
    """Work for the first process until it has no more to do.

    Raises:
        M2FError: the first process cannot be reached.
    """
    place = distributed.on_main(lambda: None)
    if place is None:
        return
    address, key = place
    try:
        connection = Client(address, authkey=key)
        connection.send(distributed.rank())
    except (OSError, EOFError, AuthenticationError) as error:
        raise M2FError(
            f"The first process cannot be reached at {address[0]}, port {address[1]}: {error}.",
            hint="The machines of torchrun must reach each other at any port.",
        ) from error
    serve(connection, segmenter)


def _meet() -> list[Worker]:
    """Wait for all other processes, which get a key that nobody else has."""
    key = secrets.token_bytes(32)
    count = os.environ.get("WORLD_SIZE", "1")
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE", count) == count
    with Listener(("127.0.0.1" if is_one_machine else "", 0), backlog=64, authkey=key) as listener:
        host = "127.0.0.1" if is_one_machine else os.environ["MASTER_ADDR"]
        distributed.on_main(lambda: ((host, listener.address[1]), key))
        others: dict[int, Connection] = {}
        while len(others) < distributed.world_size() - 1:
            try:
                connection = listener.accept()
                others[connection.recv()] = connection
            except (AuthenticationError, EOFError, OSError):  # a stranger knocked
                continue
    return [Worker(f"rank {rank}", others[rank]) for rank in sorted(others)]
