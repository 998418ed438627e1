"""Batches of training samples: an endless shuffled stream that can resume at any batch with bit-identical results."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..config.schema import Config, InputConfig
from ..errors import ConfigError, M2FError, is_out_of_memory
from ..runtime.signals import ends, held_back
from ..structures.targets import Target
from .records import DataSet, labels_of
from .training_set import OnError, SampleIndex, TrainingSample, TrainingSet, drop_empty, is_wide
from .transforms import build_transforms


@dataclass
class Batch:
    """Training batch of one process.

    Attributes:
        images_BCHW: float32, normalised. Each image lies in the upper left; the rest is 0.
        targets: one for each image, in the image's own size.
        names: the record name of each image.
        position: the number of this batch in its process, from 0 on. A loader with this number as `start` begins here.
        skipped: messages about records that could not be used.
    """

    images_BCHW: Tensor
    targets: list[Target]
    names: list[str]
    position: int = 0
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.images_BCHW.shape[-2], self.images_BCHW.shape[-1]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        images = self.images_BCHW.to(device, non_blocking=non_blocking)
        targets = [target.to(device, non_blocking=non_blocking) for target in self.targets]
        return replace(self, images_BCHW=images, targets=targets)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies while it computes. DataLoader calls this."""
        planes = ((t.labels_N, t.masks_NHW, t.owner_HW) for t in self.targets)
        targets = [Target(*(None if plane is None else plane.pin_memory() for plane in three)) for three in planes]
        return replace(self, images_BCHW=self.images_BCHW.pin_memory(), targets=targets)


def collate(samples: Sequence[TrainingSample], normalise: InputConfig, size_divisor: int) -> Batch:
    """Normalise images and copy them into one tensor, padded with 0 at the bottom and the right.

    The size of the tensor is the largest height and width of images and canvases, rounded up to a multiple of
    `size_divisor`. With a `size_divisor` of 0 it is not rounded.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalise.mean, normalise.std))
    sizes = [edges for sample in samples for edges in (sample.image_CHW.shape[1:], sample.canvas)]
    divisor = max(1, size_divisor)
    height, width = (math.ceil(max(edges) / divisor) * divisor for edges in zip(*sizes, strict=True))
    images_BCHW = torch.zeros(len(samples), 3, height, width)
    for room, sample in zip(images_BCHW, samples, strict=True):
        patch = room[:, : sample.image_CHW.shape[1], : sample.image_CHW.shape[2]]
        torch.sub(sample.image_CHW, mean, out=patch)
        patch.div_(std)
    skipped = tuple(message for sample in samples for message in sample.skipped)
    return Batch(images_BCHW, [s.target for s in samples], [s.name for s in samples], skipped=skipped)


# --- the order of samples ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleStream:
    """Endless stream of the draws of one process. Each epoch is shuffled anew, and the processes take turns.

    Attributes:
        count: number of records.
        seed: seed of the order.
        rank: number of this process, from 0 on.
        world: number of processes.
        repeats: how often each record occurs in an epoch on average, at least once. None means once.
    """

    count: int
    seed: int
    rank: int = 0
    world: int = 1
    repeats: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.rank < self.world:
            who = f"process {self.rank} of {self.world}"
            raise ConfigError(f"{self.count} records for {who}: it takes at least one, and processes count from 0.")

    def __iter__(self) -> Iterator[SampleIndex]:
        begin = 0
        for epoch in itertools.count():
            order = self.epoch(epoch)
            first = (self.rank - begin) % self.world
            for offset, index in enumerate(order[first :: self.world].tolist()):
                yield SampleIndex(begin + first + offset * self.world, index)
            begin += len(order)

    def epoch(self, number: int) -> np.ndarray:
        """Return the record numbers of one epoch in order, for all processes together.

        A record with a repeat factor of 2.3 occurs 3 times in 30 % of the epochs and 2 times in the others.
        """
        rng = np.random.default_rng((self.seed, number))
        indices = np.arange(self.count)
        if self.repeats is not None:
            indices = np.repeat(indices, np.floor(self.repeats + rng.random(self.count)).astype(int))
        return rng.permutation(indices)


def repeat_factors(labels: Sequence[Iterable[int]], threshold: float) -> np.ndarray:
    """Return how often each image occurs in an epoch (Gupta et al. 2019, LVIS, appendix B).

    A class that is in a share f of all images asks for max(1, sqrt(threshold / f)). An image gets the largest factor of
    its classes, or 1 if it has no classes.

    Args:
        labels: the class numbers in each image.
        threshold: the share of images below which a class is repeated.
    """
    frequencies = Counter(label for classes in labels for label in set(classes))
    asked = {label: max(1.0, math.sqrt(threshold * len(labels) / count)) for label, count in frequencies.items()}
    return np.array([max((asked[label] for label in classes), default=1.0) for classes in labels])


def batches(draws: Iterable[SampleIndex], size: int, wide: Sequence[bool] | None = None) -> Iterator[list[SampleIndex]]:
    """Yield draws in batches of `size`.

    Args:
        wide: one flag for each record. If given, all images of a batch are wide, or none of them is.
    """
    waiting: dict[bool, list[SampleIndex]] = {False: [], True: []}
    for draw in draws:
        group = bool(wide is not None and wide[draw.index])
        waiting[group].append(draw)
        if len(waiting[group]) == size:
            yield waiting[group]
            waiting[group] = []


# --- the loader -------------------------------------------------------------------------------------------------------


class Loader:
    """Endless batches of one process. They do not depend on the number of workers.

    Iteration continues after the last batch that was taken. `state()` returns that position, which a new loader takes
    as `start`.

    Args:
        batch: number of images of this process.
        wide: see `batches`.
        workers: number of processes that read and augment. With 0, this process does so.
        start: number of batches to leave out. They are counted, but not read.
        pin: True to return batches in pinned memory, for a GPU.

    Raises:
        ConfigError: a number makes no sense, or no worker can send anything in this folder for temporary files.
    """

    def __init__(
        self,
        samples: TrainingSet,
        stream: SampleStream,
        normalise: InputConfig,
        *,
        batch: int,
        size_divisor: int = 32,
        wide: Sequence[bool] | None = None,
        workers: int = 0,
        start: int = 0,
        pin: bool = False,
    ):
        if batch < 1 or workers < 0 or start < 0:
            raise ConfigError(f"batch = {batch}, workers = {workers}, start = {start} should be 1, 0 and 0 or more.")
        if workers:
            _check_sockets()
        self.stream, self.batch, self.wide = stream, batch, wide
        self.workers, self.pin = workers, pin
        self._maker = _BatchMaker(samples, normalise, size_divisor)
        self._position = start

    def state(self) -> int:
        """Return the number of batches that were taken."""
        return self._position

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end.

        Raises:
            DataError: a record cannot be read.
        """
        draws = itertools.islice(batches(self.stream, self.batch, self.wide), self._position, None)
        loader = DataLoader(
            self._maker,
            batch_size=None,
            sampler=draws,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_one_thread,
            pin_memory=self.pin,
            generator=torch.Generator(),
        )
        with held_back():  # a signal may come before a worker has begun
            produced = iter(loader)
        try:
            for batch in produced:
                if isinstance(batch, M2FError):
                    raise batch
                batch.position = self._position
                self._position += 1
                yield batch
        finally:
            _end_workers(produced)


def _check_sockets() -> None:
    """Refuse a folder for temporary files where no worker can open a socket. PyTorch would wait for ever."""
    if sys.platform == "win32":
        return
    longest = 107 if sys.platform == "linux" else 103  # bytes of the name of a socket
    if len(os.fsencode(connection.arbitrary_address("AF_UNIX"))) > longest:
        raise ConfigError(
            f"The name of the folder for temporary files is too long for worker processes: {tempfile.gettempdir()}.",
            hint="Set TMPDIR to another folder, or pass --workers 0.",
        )


def _end_workers(produced: Iterator[Batch | M2FError]) -> None:
    """End the workers now. Otherwise they live as long as the traceback of an error refers to them."""
    workers = getattr(produced, "_workers", ())
    if workers:
        produced._shutdown_workers()  # PyTorch has no public method, and its own last resort is SIGTERM
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def of_worker(error: BaseException) -> M2FError | None:
    """Return an error with one sentence for PyTorch's error about a dead worker, whenever it was noticed.

    Any other error gives None.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    return M2FError(
        f"A process that reads images has died: {text.splitlines()[0].rstrip('. ')}.",
        hint="If the memory was not enough, pass a smaller --workers.",
    )


class _BatchMaker(torch.utils.data.Dataset):
    def __init__(self, samples: TrainingSet, normalise: InputConfig, size_divisor: int):
        self.samples, self.normalise, self.size_divisor = samples, normalise, size_divisor

    def __getitem__(self, draws: list[SampleIndex]) -> Batch | M2FError:
        """Return a batch, or its error. A raised error would be buried in the worker's traceback by DataLoader."""
        try:
            return collate([self.samples[draw] for draw in draws], self.normalise, self.size_divisor)
        except M2FError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            hint = "Use smaller crops, --micro-batch 1 or fewer --workers."
            return M2FError(f"Not enough memory for {len(draws)} images to train on.", hint=hint)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; torch sets its own threads to 1
    for number in ends():  # the signals reach the whole group, but only the main process decides on the end
        signal.signal(number, signal.SIG_IGN)


def training_loader(
    config: Config,
    data: DataSet,
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    on_error: OnError = "raise",
    pin: bool = False,
    trust_code: bool = False,
) -> Loader:
    """Return the loader that a configuration with a `train` section describes.

    Args:
        batch: images of this process at once; `config.train.batch` counts those of all processes and steps.
        trust_code: True if the configuration may name code ("module:object").

    Raises:
        ConfigError: the configuration has no train section, the augmentation is unknown, or the annotations cannot
            train the task.
        DataError: no image is left to train on.
    """
    train = config.train
    if train is None:
        raise ConfigError(f"{config.name} has no train section: it does not say how to train.")
    if train.drop_empty:
        data = drop_empty(data, config.task)
    steps = build_transforms(train.augment, trust_code=trust_code)
    samples = TrainingSet(data, steps, config.task, seed=train.seed, tries=train.augment_tries, on_error=on_error)
    threshold = train.repeat_factor_threshold
    repeats = repeat_factors([labels_of(record) for record in data.records], threshold) if threshold else None
    stream = SampleStream(len(samples), train.seed, rank, world, repeats)
    wide = [is_wide(record) for record in data.records] if train.group_by_aspect else None
    return Loader(
        samples,
        stream,
        config.input,
        batch=batch,
        size_divisor=config.test.size_divisor,
        wide=wide,
        workers=workers,
        start=start,
        pin=pin,
    )
