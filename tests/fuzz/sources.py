"""Mutants of what `m2f predict` takes beside files: manifests, tables of images, archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
from fuzz.harness import Target
from fuzz.mutators import file_mutants
from PIL import Image

from m2f_cli.errors import M2FError
from m2f_cli.inference.sources import expand

LINES = (
    *("a.png", "s3://bucket/a.png", "https://host:80/b?c=d", "hf://datasets/o/n/a.png", "../c.png"),
    *("file:///etc/hosts", "zip://a::b://c", "https://u:p@host/a.png"),
)


def _png() -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(encoded, "PNG")
    return encoded.getvalue()


def _samples() -> dict[str, bytes]:
    png = _png()
    packed, joined = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, tarfile.open(fileobj=joined, mode="w") as tar:
        for name in ("a.png", "day/b.png"):
            archive.writestr(name, png)
            info = tarfile.TarInfo(name)
            info.size = len(png)
            tar.addfile(info, io.BytesIO(png))
    rows = list(enumerate(LINES))
    return {
        "list.txt": "".join(f"{uri}\t{number}\n" for number, uri in rows).encode(),
        "list.csv": "".join(f'{number},"{uri}"\n' for number, uri in [("id", "uri"), *rows]).encode(),
        "list.tsv": "".join(f"{uri}\t{number}\n" for number, uri in [("id", "path"), *rows]).encode(),
        "images.zip": packed.getvalue(),
        "images.tar": joined.getvalue(),
        **_tables(png),
    }


def _tables(png: bytes) -> dict[str, bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return {}
    columns = {
        "bytes.parquet": {"image": [png, png, None], "id": ["a", "../b", None]},
        "structs.parquet": {"image": [{"bytes": png, "path": "a"}, {"bytes": None, "path": "file:///etc/hosts"}]},
        "uris.parquet": {"uri": list(LINES), "id": list(map(str, range(len(LINES))))},
    }
    found = {}
    for name, table in columns.items():
        written = io.BytesIO()
        parquet.write_table(pyarrow.table(table), written, row_group_size=2)
        found[name] = written.getvalue()
    return found


def read_source(path: Path) -> None:
    """Read all images of a source; no address is asked."""
    errors = []
    with mock.patch.dict("os.environ", {"M2F_OFFLINE": "1"}):
        for source in expand([path]):
            try:
                source.image()
            except M2FError as error:
                errors.append(error)
    if errors:
        raise errors[-1]


TARGETS = [Target("sources", file_mutants(_samples), read_source, r"image|file|address|://|line \d")]
