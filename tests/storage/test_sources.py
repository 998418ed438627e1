"""Items of each kind of source: their ids, their bytes, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from storage.dataset_hub import dataset_hub
from storage.s3_server import s3_server, settings
from storage.web_server import served

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.inference.sources import expand
from m2f_cli.storage import files


def picture(value: int) -> bytes:
    """A PNG whose pixels are `value`."""
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


def zipped(members, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(members, path):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def values(*sources):
    """Name and value of each image; the error's text of one that cannot be read."""
    found = {}
    for source in expand(sources):
        try:
            found[source.name] = int(pickle.loads(pickle.dumps(source)).image()[0, 0, 0])
        except DataError as error:
            found[source.name] = str(error)
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.3")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# --- archives ---------------------------------------------------------------------------------------------------------

MEMBERS = {"day/a.png": picture(1), "b.PNG": picture(2), "notes.txt": b"no image", "day/.hidden.png": picture(3)}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_archives_here_need_no_package(here, fresh, make):
    path = make(MEMBERS, here / f"photos.{'zip' if make is zipped else 'tar'}")
    assert values(path) == {"b": 2, "day/a": 1}
    code = (
        "import sys; sys.modules.update(fsspec=None, s3fs=None, pyarrow=None, datasets=None)\n"
        "from m2f_cli.inference.sources import expand\n"
        f"print([each.name for each in expand([{str(path)!r}]) if each.image() is not None])"
    )
    assert "['b', 'day/a']" in fresh(code).stdout


def test_ids_of_segments_beside_an_annotated_image_are_no_image(here):
    """As `m2f data convert --to webdataset` writes them."""
    members = {"a.png": picture(1), "a.json": b"{}", "a.panoptic.png": picture(2), "b.panoptic.png": picture(3)}
    assert values(tarred(members, here / "0.tar")) == {"a": 1, "b.panoptic": 3}


def test_shards_are_a_pattern_and_equal_keys_get_the_name_of_their_shard(here):
    for number in range(3):
        tarred({f"{key:03d}.png": picture(10 * number + key) for key in range(2)}, here / f"part-{number}.tar")
    assert values("part-*.tar") == {
        "000": 0,
        "001": 1,
        "part-1/000": 10,
        "part-1/001": 11,
        "part-2/000": 20,
        "part-2/001": 21,
    }
    with pytest.raises(DataError, match="matches nothing"):
        values("gone-*.tar")


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_that_changes_while_it_is_read(here, make):
    path = make({"a.png": picture(1), "b.png": picture(2)}, here / f"x.{'zip' if make is zipped else 'tar'}")
    items = list(expand([path]))
    make({"b.png": picture(4), "a.png": picture(3), "c.png": picture(5)}, path)
    with pytest.raises(DataError, match="changed"):
        items[0].image()


def test_archives_that_are_not_to_be_trusted(here):
    with pytest.raises(DataError, match="leads out of it"):
        values(zipped({"../../a.png": picture(1)}, here / "up.zip"))
    bomb = here / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as member:
        for _ in range(80):
            member.write(bytes(1 << 20))
    assert "decompression bomb" in values(bomb)["a"]
    cut = tarred({"a.png": picture(1) * 50}, here / "cut.tar").read_bytes()
    (here / "cut.tar").write_bytes(cut[:1000])
    with pytest.raises(DataError, match="no zip or tar file that can be read"):
        values("cut.tar")
    whole = tarred({f"{number}.png": picture(number) for number in range(3)}, here / "whole.tar").read_bytes()
    for length in range(64, 3 * 1024, 64):  # also between two files, where Python's reader sees an end
        (here / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar is no zip or tar file that can be read.*half a download"):
            values("cut.tar")
    (here / "cut.tar").write_bytes(whole[:1024] + b"x" + whole[1025:])
    with pytest.raises(DataError, match="the header at byte 1,024 is damaged"):
        values("cut.tar")
    (here / "x.tgz").write_bytes(b"\x1f\x8b" + bytes(50))
    with pytest.raises(DataError, match="compressed as a whole"):
        values("x.tgz")
    with pytest.raises(DataError, match="No images in"):
        values(zipped({"a.txt": b""}, here / "none.zip"))


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(here):
    (here / "in").mkdir()
    for name, value in (("a", 1), ("b", 2)):
        (here / "in" / f"{name}.png").write_bytes(picture(value))
    return here / "in"


def test_a_list_of_paths_and_ids(images):
    (images / "list.txt").write_text(f"\ufeffa.png\r\n\nb.png\tsecond/one\n{images}/a.png\n../in/b.png\n", "utf-8")
    assert values("in/list.txt") == {"a": 1, "second/one": 2, "b": 2}
    assert next(source.path for source in expand(["in/list.txt"])).samefile(images / "a.png")


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_table_of_paths_and_ids(images, suffix, comma):
    rows = [("ID", "x", "Path"), ("one", "", "a.png"), ("", '"q"', '"b.png"'), ("three", "", "gone.png"), ("four",)]
    (images / f"list.{suffix}").write_text("\n".join(map(comma.join, rows)))
    found = values(f"in/list.{suffix}")
    assert {name: found[name] for name in ("one", "b")} == {"one": 1, "b": 2}
    assert "There is no file" in found["three"] and "line 5: there is no image in this line" in found["four"]


def test_entries_of_a_strangers_list_are_failures_of_their_image(images):
    lines = [
        "file:///etc/passwd",
        "zip://a.png::file:///etc/x.zip",
        "s3://bucket/a.png::file:///etc/passwd",
        "ftp://host/a.png",
        "https://anna:secret@/a.png",
        "/etc/passwd",
        "b.png",
        "a\x1b[31m.png",
    ]
    (images / "list.txt").write_text("".join(f"{line}\t{number}\n" for number, line in enumerate(lines)))
    found = values("in/list.txt")
    assert found["6"] == 2 and len(found) == len(lines)
    for name, said in (("0", "local file"), ("1", "scheme"), ("2", "chains"), ("3", "scheme"), ("4", "no host")):
        assert f"list.txt, line {int(name) + 1}" in found[name] and said in found[name]
    assert "is text, not an image" in found["5"]
    assert "secret" not in str(found)


def test_ids_that_lead_out_are_made_safe_and_stay_different(images):
    (images / "list.txt").write_text("a.png\t../../evil\nb.png\t/abs\\x\x1b\n")
    assert values("in/list.txt") == {"evil": 1, "abs/x_": 2}
    (images / "list.txt").write_text("a.png\t../x\nb.png\tX\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2 has the id 'X', which .*list\.txt, line 1 has, too"):
        values("in/list.txt")


def test_a_line_twice_is_one_image_and_one_image_under_two_ids_is_two(images):
    (images / "list.txt").write_text("a.png\tx\na.png\tx\na.png\ty\nb.png\nb.png\n")
    assert values("in/list.txt") == {"x": 1, "y": 1, "b": 2}


def test_many_images_of_one_name(images):
    for number in range(50):
        (images / f"d{number % 2}" / str(number)).mkdir(parents=True)
        (images / f"d{number % 2}" / str(number) / "a.png").write_bytes(picture(number))
    lines = [f"d{number % 2}/{number}/a.png" for number in range(50)]
    (images / "list.txt").write_text("\n".join(lines))
    assert list(values("in/list.txt").values()) == list(range(50))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no images"),
        (b"\xff\xfea\0.\0p\0", "UTF-16"),
        (b"a.png\nb\xfc.png\n", "line 2 is not text in UTF-8"),
        (b"a" * 70000, "line 1 has more than 65,536 bytes"),
    ],
)
def test_lists_that_are_none(images, content, message):
    (images / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        values("in/list.txt")


def test_a_table_without_images_names_its_columns(images):
    (images / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column of images, but a, b"):
        values("in/list.csv")
    (images / "list.csv").write_text('uri\n"' + "x" * 200_000)
    with pytest.raises(DataError):
        values("in/list.csv")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def arrow():
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra test)")
    import pyarrow
    from pyarrow import parquet

    def write(path, rows, **options):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
        return path

    return write


def test_bytes_of_a_table(here, arrow):
    rows = [{"image": picture(number), "id": f"n{number}", "other": b""} for number in range(5)]
    arrow(here / "x.parquet", rows, row_group_size=2)
    assert values("x.parquet") == {f"n{number}": number for number in range(5)}
    arrow(here / "y.parquet", [{"photo": picture(7)}, {"photo": None}], row_group_size=1)
    found = values("y.parquet")
    assert found["y/000001"] == 7 and "holds no image" in found["y/000002"]
    assert values("x.parquet?column=image&id=id") == values("x.parquet")


def test_structs_and_uris_of_a_table(images, arrow):
    rows = [
        {"image": {"bytes": picture(9), "path": "x.png"}},
        {"image": {"bytes": None, "path": "b.png"}},
        {"image": {"bytes": None, "path": "file:///etc/passwd"}},
    ]
    arrow(images / "x.parquet", rows)
    found = list(values("in/x.parquet").values())
    assert found[:2] == [9, 2] and "local file" in found[2]
    arrow(images / "y.parquet", [{"uri": "a.png", "key": "k"}, {"uri": "b.png", "key": None}, {"uri": None}])
    found = values("in/y.parquet")
    assert found["k"] == 1 and found["b"] == 2 and len(found) == 3


def test_tables_that_cannot_be_used(here, arrow):
    (here / "x.parquet").write_bytes(b"PAR1 and then nothing PAR1")
    with pytest.raises(DataError, match="no parquet file that can be read"):
        values("x.parquet")
    arrow(here / "y.parquet", [{"one": b"", "two": b"", "n": 1}])
    with pytest.raises(DataError, match=r"no column that is surely of images: one, two, n.*\?column=NAME"):
        values("y.parquet")
    with pytest.raises(DataError, match="holds no images, but int64"):
        values("y.parquet?column=n")
    with pytest.raises(DataError, match="There is no column"):
        values("y.parquet?column=thre")
    with pytest.raises(ConfigError, match="There is no option"):
        values("y.parquet?colum=one")


def test_a_table_without_rows_and_ids_that_are_no_date(here, arrow):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), here / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet has no rows"):
        values("x.parquet")
    table = {"image": [picture(1), picture(2)], "id": pyarrow.array([0, 1 << 30], pyarrow.date32())}
    parquet.write_table(pyarrow.table(table), here / "y.parquet")
    with pytest.raises(DataError, match=r"y\.parquet is no parquet file that can be read: days=1073741824"):
        values("y.parquet")
    parquet.write_table(pyarrow.table(table).slice(0, 1), here / "z.parquet")
    assert values("z.parquet") == {"1970-01-01": 1}


def test_a_table_that_claims_too_much_is_refused(here, arrow):
    arrow(here / "x.parquet", [{"image": bytes(80 << 20)}], compression="zstd", use_dictionary=False)
    assert "decompression bomb" in values("x.parquet")["x/000001"]


def test_a_value_that_a_table_repeats_takes_no_more_memory(here, arrow):
    """Two gigabytes of one value: the dictionary of the file keeps it once, and so does the reader."""
    import pyarrow
    from pyarrow import parquet

    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000), pyarrow.array([bytes(100_000)]))
    for stores_type in (True, False):
        parquet.write_table(pyarrow.table({"image": repeated}), here / "x.parquet", store_schema=stores_type)
        before = pyarrow.total_allocated_bytes()
        source = next(expand(["x.parquet"]))
        with pytest.raises(DataError, match="not an image"):
            source.image()
        assert pyarrow.default_memory_pool().max_memory() - before < 1 << 30


def test_a_table_that_changes_while_it_is_read(here, arrow):
    arrow(here / "x.parquet", [{"image": picture(1)}])
    items = list(expand(["x.parquet"]))
    arrow(here / "x.parquet", [{"image": picture(2)}] * 2)
    with pytest.raises(DataError, match="changed"):
        items[0].image()


# --- Hugging Face data sets -------------------------------------------------------------------------------------------


def test_a_data_set_on_disk(here):
    datasets = pytest.importorskip("datasets", reason="needs datasets (extra test)")
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(3), "path": None}, {"bytes": picture(4), "path": None}], "id": ["p", "q"]}
    split = datasets.Dataset.from_dict(rows, features=features)
    split.save_to_disk(here / "one")
    assert values(f"hf://{here}/one") == {"p": 3, "q": 4}
    datasets.DatasetDict({"train": split, "val": split.select([1])}).save_to_disk(here / "two")
    assert values(f"hf://{here}/two:val?column=image") == {"q": 4}
    with pytest.raises(DataError, match="SPLIT with one of train, val"):
        values(f"hf://{here}/two")
    with pytest.raises(DataError, match="no split 'test'"):
        values(f"hf://{here}/two:test")
    with pytest.raises(DataError, match="There is no column"):
        values(f"hf://{here}/one?column=img")
    import pyarrow

    days = datasets.Dataset(pyarrow.table({"image": [picture(1)], "id": pyarrow.array([1 << 30], pyarrow.date32())}))
    days.save_to_disk(here / "days")
    with pytest.raises(DataError, match="days/0 cannot be read: OverflowError"):
        values(f"hf://{here}/days?column=image")
    with pytest.raises(DataError, match="cannot be opened"):
        values(f"hf://{here}/gone:val")


def test_a_data_set_names_no_file_outside(here):
    datasets = pytest.importorskip("datasets", reason="needs datasets (extra test)")
    features = datasets.Features({"image": datasets.Image()})
    (here / "in").mkdir()
    rows = {"image": [{"bytes": None, "path": "file:///etc/passwd"}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(here / "in" / "set")
    [found] = values(f"hf://{here}/in/set").values()
    assert "local file" in found


def test_a_data_set_of_a_hub(here, arrow):
    """In a process of its own: huggingface_hub reads its address when it is imported."""
    pytest.importorskip("datasets", reason="needs datasets (extra test)")
    rows = [{"image": {"bytes": picture(5), "path": None}, "id": "p"}]
    rows += [{"image": {"bytes": None, "path": path}, "id": path} for path in ("/etc/passwd", "file:///etc/passwd")]
    table = arrow(here / "train.parquet", rows).read_bytes()
    card = "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: id\n    dtype: string\n"
    code = (
        "from m2f_cli.errors import DataError\n"
        "from m2f_cli.inference.sources import expand\n"
        "for name in ('hf://o/n:train?column=image', 'hf://datasets/o/n/data/train.parquet', 'hf://o/gone:train'):\n"
        "    try:\n"
        "        for source in expand([name]):\n"
        "            try:\n"
        "                print(source.name, source.image()[0, 0, 0])\n"
        "            except DataError as error:\n"
        "                print(source.name, error)\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    with dataset_hub({"data/train.parquet": table, "README.md": f"---\n{card}---\n".encode()}) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(here / "hf"), "M2F_STORAGE_RETRY": "0"}
        environment = {name: value for name, value in environment.items() if name not in ("HF_TOKEN", "M2F_OFFLINE")}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[3] == "p 5"
    for line in (*lines[1:3], *lines[4:6]):
        assert "leads out of the folder of the list" in line or "address of a local file" in line
    assert lines[6:] == ["hf://o/gone cannot be opened: there is no such object. Check its name."]


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in settings(address).items():
            patch.setenv(name, value)
        import fsspec

        store = fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address})
        store.mkdir("photos")
        yield "s3://photos"
        type(store).clear_instance_cache()


def test_a_prefix_an_object_and_a_pattern(here, bucket):
    for name, value in (("a.png", 1), ("day/a.png", 2), ("day/.h.png", 3), ("day/n.txt", 4)):
        files.write(f"{bucket}/set/{name}", picture(value))
    files.write(f"{bucket}/set2/z.png", picture(5))
    assert values(f"{bucket}/set") == values(f"{bucket}/set/") == {"a": 1, "day/a": 2}
    assert values(f"{bucket}/set/a.png", f"{bucket}/set/day/a.png") == {"a": 1, "day/a": 2}
    assert values(f"{bucket}/set*/*.png")["set2/z"] == 5
    files.write(f"{bucket}/plain", picture(6))
    assert values(f"{bucket}/plain") == {"plain": 6}
    for source in (f"{bucket}/nothing", f"{bucket}/nothing/"):
        with pytest.raises(DataError, match="No images in s3://photos/nothing"):
            values(source)
    assert "no such object" in values(f"{bucket}/gone.png")["gone"]
    with pytest.raises(DataError, match="no such bucket"):
        values("s3://elsewhere/set/")


def test_an_object_that_is_written_again_after_it_was_listed(here, bucket):
    files.write(f"{bucket}/moving/a.png", picture(1))
    items = list(expand([f"{bucket}/moving/"]))
    files.write(f"{bucket}/moving/a.png", picture(200))
    with pytest.raises(DataError, match="changed"):
        items[0].image()


def test_archives_and_tables_in_a_store(here, bucket, arrow):
    files.write(f"{bucket}/x/a.zip", zipped(MEMBERS, here / "a.zip"))
    files.write(f"{bucket}/x/b.tar", tarred({f"{n}.png": picture(n) for n in range(3)}, here / "b.tar"))
    files.write(f"{bucket}/x/c.parquet", arrow(here / "c.parquet", [{"image": picture(8), "id": "cell"}]))
    assert values(f"{bucket}/x/a.zip") == {"b": 2, "day/a": 1}
    assert values(f"{bucket}/x/b.tar") == {"0": 0, "1": 1, "2": 2}
    assert values(f"{bucket}/x/c.parquet") == values(f"{bucket}/x/c.parquet?column=image") == {"cell": 8}
    assert len(values(f"{bucket}/x/*")) == 6
    items = list(expand([f"{bucket}/x/b.tar"]))
    files.write(f"{bucket}/x/b.tar", tarred({f"{n}.png": picture(9 - n) for n in range(3)}, here / "d.tar"))
    with pytest.raises(DataError, match="changed"):
        items[0].image()


@pytest.fixture
def swapped(bucket, monkeypatch):
    """Puts another content at a place of the store as soon as the first part has been read from there."""

    def swap(uri, content):
        def read(address, **options):
            found = inner(address, **options)
            if options.get("start") is not None and address == uri and waiting:
                files.write(uri, waiting.pop())
            return found

        waiting, inner = [content], files.read
        monkeypatch.setattr(files, "read", read)
        return waiting

    return swap


def noise(seed):
    """A PNG of more than a megabyte."""
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def test_a_shard_that_is_written_again_between_its_parts(here, bucket, swapped):
    uri = f"{bucket}/parts/a.tar"
    files.write(uri, tarred({f"{n}.png": noise(n) for n in range(3)}, here / "a.tar"))
    waiting = swapped(uri, tarred({f"{n}.png": noise(9 - n) for n in range(3)}, here / "b.tar").read_bytes())
    found = values(uri)
    assert not waiting and len(found) == 3
    assert all("changed: its" in said for said in found.values())


def test_a_table_that_is_written_again_between_its_parts(here, bucket, swapped, arrow):
    uri = f"{bucket}/parts/a.parquet"
    files.write(uri, arrow(here / "a.parquet", [{"image": noise(n)} for n in range(3)]))
    items = list(expand([uri]))
    waiting = swapped(uri, arrow(here / "b.parquet", [{"image": noise(9 - n)} for n in range(3)]).read_bytes())
    with pytest.raises(DataError, match="changed: its"):
        items[0].image()
    assert not waiting
    files.write(uri, arrow(here / "a.parquet", [{"uri": f"{n}.png"} for n in range(3)]))
    waiting = swapped(uri, arrow(here / "b.parquet", [{"uri": f"{9 - n}.png"} for n in range(3)]).read_bytes())
    with pytest.raises(DataError, match="changed: its"):
        list(expand([uri]))


def test_a_list_in_a_store_names_no_file_of_this_machine(here, bucket, images):
    files.write(f"{bucket}/lists/in/a.png", picture(6))
    lines = ["in/a.png\t1", f"{images}/a.png\t2", "../a.png\t3", "C:\\a.png\t4", f"{bucket}/lists/in/a.png\t5"]
    files.write(f"{bucket}/lists/list.txt", "\n".join(lines).encode())
    found = values(f"{bucket}/lists/list.txt")
    assert found["1"] == found["5"] == 6
    for name in "234":
        assert "leads out of the folder of the list" in found[name]


def test_the_web_serves_images_lists_and_archives(here):
    made = {"/a.png": picture(1), "/x.zip": zipped(MEMBERS, here / "x.zip").read_bytes(), "/list.txt": b"a.png\n"}
    with served(made) as web:
        web.files["/b.png?sig=secret"] = picture(2)
        assert values(f"{web.address}/a.png", f"{web.address}/b.png?sig=secret") == {"a": 1, "b": 2}
        assert values(f"{web.address}/x.zip") == {"b": 2, "day/a": 1}
        assert values(f"{web.address}/list.txt") == {"a": 1}
        [source] = expand([f"{web.address}/b.png?sig=secret"])
        assert "secret" not in f"{source!r} {source.path}"
