"""Does reading and augmenting images keep up with training? Images per second of the loader alone, and of the step.

    python benchmarks/data_loading.py --preset coco-panoptic-swin-t --data DIR [--workers 1] [--pictures 40]

The loader is that of `m2f train`: decode, augment as the preset says, targets, batch, normalise. The step is forward,
losses, backward, clipping and AdamW of the preset's network from random numbers, on one image at a time.

    python benchmarks/data_loading.py --places --data DIR [--workers 2] [--rounds 5]

reads the same images from their folder, from shards on disk, and from shards in a store on loopback (moto's server, on
the same cores), in turns. An image is read and decoded with its annotation, and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from m2f_cli.benchmark import machine as about
from m2f_cli.config import presets as config
from m2f_cli.data.loader import Loader
from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.records import DataSet, Record
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.training import loop, run


def images_per_second(loader: Loader, count: int = 20) -> float:
    """Return how fast the loader alone is, over `count` batches; those that fill the queue do not count."""
    made = iter(loader)
    for _ in range(2 * loader.workers + 1):
        next(made)
    begin = time.perf_counter()
    images = sum(len(next(made)) for _ in range(count))
    return images / (time.perf_counter() - begin)


def steps_per_second(prepared: run.Run, rounds: int) -> float:
    """Median over rounds of images per second, on batches that are in memory already."""
    loop.train_mode(prepared.parts.model)
    seconds = []
    for batch in list(itertools.islice(prepared.loader, rounds + 1)):
        began = time.perf_counter()
        loop.train_step(prepared.parts, [batch])
        prepared.parts.optimizer.step()
        seconds.append((time.perf_counter() - began) / len(batch.names))
    return 1 / statistics.median(seconds[1:])  # the first one makes what is kept by shape


PASSES = 3  # over the images, in each turn


class Reading(torch.utils.data.Dataset):
    """Images and annotations of records, as the bytes that their files have."""

    def __init__(self, records: Sequence[Record], sizes: Mapping[str, int]):
        self.records, self.sizes = records, sizes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        record = self.records[index]
        record.read_image(), record.read_annotation()
        return self.sizes[record.name]


def read_rate(reading: Reading, workers: int, seed: int) -> tuple[float, float]:
    """Return images and megabytes per second, in a shuffled order; what fills the queues does not count."""
    rng = np.random.default_rng(seed)
    order = [index for _ in range(PASSES) for index in rng.permutation(len(reading)).tolist()]
    made = iter(DataLoader(reading, batch_size=None, sampler=order, num_workers=workers))
    for _ in range(2 * workers + 1):
        next(made)
    begin = time.perf_counter()
    sizes = [int(size) for size in made]
    seconds = time.perf_counter() - begin
    return len(sizes) / seconds, sum(sizes) / seconds / 1e6


@contextmanager
def places(data: Path, split: str) -> Iterator[dict[str, DataSet]]:
    """Yield a split of a folder as it is, as shards on disk, and as shards in a store."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import fsspec
    from storage.s3_server import s3_server, settings

    with tempfile.TemporaryDirectory() as folder, s3_server() as address:
        os.environ.update(settings(address))
        shards = Path(folder) / "shards"
        convert(data, shards, "webdataset", splits=[split], shard_size=50)
        store = fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address})
        store.mkdir("bucket")
        store.put(f"{shards}/", "bucket/shards", recursive=True)
        yield {
            "folder": open_data(data, split),
            "shards": open_data(shards, split),
            "store": open_data("s3://bucket/shards", split),
        }


def compare_places(data: Path, split: str, workers: Sequence[int], rounds: int) -> None:
    """Print images and megabytes per second from each place, and the ratio to the folder."""
    with places(data, split) as sets:
        shard = sets["shards"].records
        sizes = {
            each.name: sum(stop - start for start, stop in (sample.image, sample.head, sample.ids or (0, 0)))
            for each in shard
            for sample in [each.read_image.sample]
        }
        readings = {place: Reading(each.records, sizes) for place, each in sets.items()}
        print(f"{about.cpu_name()}, {len(shard)} images, {sum(sizes.values()) / 1e6:.1f} MB, {rounds} rounds")
        for count in workers:
            found: dict[str, list[tuple[float, float]]] = {place: [] for place in readings}
            for seed, (place, reading) in itertools.product(range(rounds), readings.items()):
                found[place].append(read_rate(reading, count, seed))
            for place, rates in found.items():
                ratios = [mine[0] / own[0] for mine, own in zip(rates, found["folder"], strict=True)]
                images, megabytes = (statistics.median(values) for values in zip(*rates, strict=True))
                span = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{count} workers, {place:8} {images:8.1f} images/s {megabytes:7.2f} MB/s {span}")
        print(f"load {about.load_average()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="coco-panoptic-swin-t")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--places", action="store_true")
    parser.add_argument("--split", default="train")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.places:
        return compare_places(arguments.data, arguments.split, sorted({0, arguments.workers}), arguments.rounds)
    settings = config.load(arguments.preset, ["train.precision=fp32", "train.batch=1"])
    found = {}
    for workers in sorted({0, arguments.workers}):
        options = run.TrainOptions(data=arguments.data, init="random", workers=workers, micro_batch=1)
        with tempfile.TemporaryDirectory() as folder:
            prepared = run.prepare(settings, Path(folder), options, torch.device("cpu"), run.Listener())
            found[f"loader, {workers or 'no'} workers"] = images_per_second(prepared.loader, arguments.pictures)
            if workers == 0:
                found["training step"] = steps_per_second(prepared, arguments.rounds)
    print(f"{about.cpu_name()}, {arguments.threads} threads, {about.allocator()['name']}, load {about.load_average()}")
    for name, value in found.items():
        print(f"{name:24} {value:8.2f} pictures/s")
    print(json.dumps({"preset": arguments.preset, "threads": arguments.threads, **found}))


if __name__ == "__main__":
    main()
