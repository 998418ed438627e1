"""Shards of WebDataset: written by convert they read back the same, and what strangers wrote is one sentence."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from helpers import folders
from helpers.convert_tools import VALUES, images, kinds, objects, read
from helpers.image_kinds import encoded

from m2f_cli.data.formats import webdataset
from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.data.records import labels_of
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures.annotations import SemanticAnnotation

SOURCES = {
    "coco-panoptic": (folders.coco_panoptic, "val"),
    "coco-instance": (objects, "val"),
    "label-maps": (lambda folder: folders.label_maps(folder, [VALUES, VALUES.T.copy().reshape(20, 30)]), "train"),
    "cityscapes": (folders.cityscapes, "val"),
    "ade20k": (folders.ade20k, "train"),
    "mapillary": (folders.mapillary, "val"),
    "yolo-seg": (folders.yolo_seg, "train"),
    "labelme": (folders.labelme, "train"),
    "roboflow-coco": (folders.roboflow, "train"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_data_set_reads_back_the_same(tmp_path, kind):
    make, split = SOURCES[kind]
    make(tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", "webdataset", splits=[split])
    assert detect(tmp_path / "b") == "webdataset" and not done.failures
    assert not {"overlaps", "hidden", "outlines", "crowds", "objects", "void", "areas"} & kinds(done).keys()
    old, new = (open_data(tmp_path / folder, split) for folder in "ab")
    assert (new.task, new.categories) == (old.task, old.categories)
    for before, after in zip(old.records, new.records, strict=True):
        assert after.name == before.name.removeprefix(f"{split}/")
        assert before.image_id in (None, after.image_id) and after.labels == labels_of(before)
        assert before.height in (None, after.height) and before.width in (None, after.width)
        assert np.array_equal(after.read_image(), before.read_image())
        if before.image is not None:
            assert after.read_image.content() == before.image.read_bytes()
        same_annotation(after.read_annotation(), before.read_annotation())


def same_annotation(found, wanted):
    """Equal to the last bit: ids, polygons, areas, void."""
    assert type(found) is type(wanted) and tuple(found.size) == tuple(wanted.size)
    if isinstance(wanted, SemanticAnnotation):
        assert found.ignore == wanted.ignore and found.labels_HW.dtype == wanted.labels_HW.dtype
        assert np.array_equal(found.labels_HW, wanted.labels_HW)
    elif hasattr(wanted, "segments"):
        assert np.array_equal(found.ids_HW, wanted.ids_HW) and found.segments == wanted.segments
    else:
        for mine, own in zip(found.objects, wanted.objects, strict=True):
            assert (mine.label, mine.iscrowd, mine.area) == (own.label, own.iscrowd, own.area)
            assert type(mine.shape) is type(own.shape)
            if isinstance(own.shape, dict):
                assert mine.shape == own.shape
            else:
                assert all(map(np.array_equal, mine.shape, own.shape))


def test_outlines_beside_segments_are_named_as_lost(tmp_path):
    """The folder trains instances on them, and the shards on the visible parts."""
    source = folders.coco_panoptic(tmp_path / "a")
    assert "instances" not in kinds(convert(source, tmp_path / "b", "webdataset"))
    folders.coco_instances(source, [folders.annotation(1, 1, 3, [folders.rectangle(1, 2, 11, 7)])])
    assert "instances" in kinds(convert(source, tmp_path / "c", "webdataset", format="coco-panoptic"))
    assert "instances" not in kinds(convert(source, tmp_path / "d", "yolo-seg", format="coco-panoptic"))


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_segments_serve_every_task(tmp_path, task):
    source = folders.coco_panoptic(tmp_path / "a")
    convert(source, tmp_path / "b", "webdataset")
    assert read(tmp_path / "b", task=task) == read(source, task=task)
    old, new = (open_data(tmp_path / folder, "val", task=task) for folder in "ab")
    assert new.categories == old.categories and [r.labels for r in new.records] == [r.labels for r in old.records]


def test_objects_serve_no_other_task(tmp_path):
    convert(objects(tmp_path / "a"), tmp_path / "b", "webdataset")
    with pytest.raises(DataError, match="no annotations for the task 'panoptic', only for: instance"):
        open_data(tmp_path / "b", "val", task="panoptic")


def test_classes_of_a_table_renumber_and_drop(tmp_path):
    source = folders.coco_panoptic(tmp_path / "a")
    convert(source, tmp_path / "b", "webdataset")
    rows = "classes:\n- {id: 200, name: sky, isthing: false}\n- {id: 3, name: cat}\n"
    table = folders.write_text(tmp_path / "table.yaml", rows)
    assert read(tmp_path / "b", classes=str(table)) == read(source, classes=str(table))


def test_shards_have_the_images_in_their_order_and_no_index_gives_the_same(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES] * 11)
    convert(source, tmp_path / "b", "webdataset", shard_size=4)
    folder = tmp_path / "b" / "train"
    assert sorted(path.name for path in folder.iterdir()) == ["00000.tar", "00001.tar", "00002.tar", "index.json"]
    names = [record.name for record in open_data(source, "train").records]
    assert names != sorted(names, key=int), "an order that is not that of numbers"
    indexed = open_data(tmp_path / "b", "train")
    assert [record.name for record in indexed.records] == names
    (folder / "index.json").unlink()
    assert open_data(tmp_path / "b", "train").records == indexed.records
    assert images(tmp_path / "b", "train") == images(source, "train")


def test_several_processes_write_the_same_shards(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES] * 7)
    for name, workers in (("b", 1), ("c", 2)):
        convert(source, tmp_path / name, "webdataset", shard_size=3, workers=workers)
    files = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()


def test_an_image_that_cannot_be_used_is_in_no_shard(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES] * 3)
    (source / "images/train/1.jpg").write_bytes(b"")
    done = convert(source, tmp_path / "b", "webdataset", shard_size=2)
    assert [name for _, name, _ in done.failures] == ["1"]
    assert [record.name for record in open_data(tmp_path / "b", "train").records] == ["0", "2"]


def test_linked_images_are_copied_and_shards_are_converted_back_byte_by_byte(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES])
    convert(source, tmp_path / "b", "webdataset", link=True)
    convert(tmp_path / "b", tmp_path / "c", "label-maps")
    assert (tmp_path / "c/images/train/0.jpg").read_bytes() == (source / "images/train/0.jpg").read_bytes()
    assert read(tmp_path / "c", "train") == read(source, "train")


@pytest.mark.parametrize("to", ["webdataset", "label-maps", "cityscapes", "labelme", "coco-panoptic"])
@pytest.mark.parametrize("name", ["{}.gif", "{}", "{}.json", "0000{}.tar"])
def test_an_image_whose_suffix_no_reader_looks_for_becomes_a_png(tmp_path, to, name):
    """Its pixels are the same, and its file stands in the way of no other."""
    source = coco_of(tmp_path / "a", [name.format(0), "1.png"])
    done = convert(source, tmp_path / "b", to)
    assert not done.failures
    found, wanted = images(tmp_path / "b"), images(source)
    assert [found[key] for key in sorted(found)] == [wanted[key] for key in sorted(wanted)]


def test_folders_and_images_may_be_called_as_the_files_of_shards(tmp_path):
    names = ["00000.tar/0.png", "index.json/1.png", "00000.png", "classes.png", ".samples/a.png"]
    source = coco_of(tmp_path / "a", names)
    convert(source, tmp_path / "b", "webdataset", shard_size=1)
    assert images(tmp_path / "b") == images(source)
    assert sorted(path.name for path in (tmp_path / "b/val").iterdir()) == [
        *(f"0000{n}.tar" for n in range(5)),
        "index.json",
    ]


def test_a_folder_called_as_the_png_of_another_image_is_refused_with_both(tmp_path):
    source = coco_of(tmp_path / "a", ["x.png", "x.panoptic.png/y.png"])
    with pytest.raises(DataError, match="called 'x' and 'x.panoptic.png/y': one would be written as a file"):
        convert(source, tmp_path / "b", "webdataset")


def coco_of(folder, names):
    """COCO instances with images of these names, whatever their suffix."""
    shape = [folders.rectangle(2, 3, 12, 9)]
    rows = [folders.annotation(key, key, 3, shape) for key in range(1, len(names) + 1)]
    entries = [folders.image_entry(key, name) for key, name in enumerate(names, 1)]
    tree = {"images": entries, "annotations": rows, "categories": folders.THINGS}
    folders.write_json(folder / "annotations/instances_val2017.json", tree)
    for seed, name in enumerate(names):
        path = folder / "val2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*folders.SIZE, 3), dtype=np.uint8)
        path.write_bytes(encoded(pixels, "GIF" if name.endswith(".gif") else "PNG"))
    return folder


def test_a_split_without_a_usable_image_leaves_the_others(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES])
    folders.label_maps(source, [VALUES], split="val")
    (source / "images/val/0.jpg").write_bytes(b"")
    done = convert(source, tmp_path / "b", "webdataset")
    assert [(each.split, each.images) for each in done.splits] == [("train", 1), ("val", 0)]
    assert images(tmp_path / "b", "train") == images(source, "train")


@pytest.mark.parametrize("to", ["label-maps", "webdataset"])
@pytest.mark.parametrize("is_dangling", [True, False])
def test_a_destination_that_is_a_link_is_refused_before_the_work(tmp_path, to, is_dangling):
    source = folders.label_maps(tmp_path / "a", [VALUES])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / ("nothing" if is_dangling else "elsewhere"))
    with pytest.raises(ConfigError, match="b is a link"):
        convert(source, tmp_path / "b", to, on_image=lambda _: pytest.fail("an image was written"))


def test_a_format_without_shards_has_no_shard_size(tmp_path):
    source = folders.label_maps(tmp_path / "a", [VALUES])
    with pytest.raises(ConfigError, match="label-maps has no shards"):
        convert(source, tmp_path / "b", "label-maps", shard_size=4)


def test_a_split_that_is_borrowed_is_found_out(tmp_path):
    convert(folders.label_maps(tmp_path / "a", [VALUES], split="test"), tmp_path / "b", "webdataset")
    done = convert(tmp_path / "b", tmp_path / "c", "label-maps")
    assert [each.split for each in done.splits] == ["test"]


def test_the_index_is_compared_with_the_shards(tmp_path):
    convert(folders.label_maps(tmp_path / "a", [VALUES] * 3), tmp_path / "b", "webdataset", shard_size=2)
    shard, index = tmp_path / "b/train/00000.tar", tmp_path / "b/train/index.json"
    content, tree = shard.read_bytes(), json.loads(index.read_text())
    shard.write_bytes(content + bytes(512))
    refused(tmp_path / "b", "is not of these shards: 00000.tar had 10,240 bytes, and has 10,752 bytes now")
    shard.unlink()
    refused(tmp_path / "b", "00000.tar had 10,240 bytes, and has none now")
    shard.write_bytes(content)
    (tmp_path / "b/train/new.tar").write_bytes(content)
    refused(tmp_path / "b", "new.tar had none, and has 10,240 bytes now")
    (tmp_path / "b/train/new.tar").unlink()
    sample = tree["shards"][0]["samples"][0]
    for change, message in (
        ({"parts": {**sample["parts"], "jpg": [512, 1 << 40]}}, "the entry of '0' makes no sense"),
        ({"parts": {"jpg": [512, 600]}}, "makes no sense"),
        ({"parts": {**sample["parts"], "json": [-5, 10]}}, "makes no sense"),
        ({"height": None}, "makes no sense"),
        ({"parts": [1]}, r"samples\.0\.parts \[1\], which should be an object"),
        ({"labels": [99]}, None),
        ({"labels": ["x"]}, "index.json: shard 0 has the samples.0.labels.0 'x', which should be a whole number"),
        ({"name": "../../x"}, None),
    ):
        tree["shards"][0]["samples"][0] = {**sample, **change}
        index.write_text(json.dumps(tree))
        if message:
            refused(tmp_path / "b", message)
        else:
            open_data(tmp_path / "b", "train")
    index.write_text('{"shards": 5}')
    refused(tmp_path / "b", "index.json has no list 'shards'")


def test_an_index_that_leads_to_another_sample_is_noticed(tmp_path):
    convert(folders.label_maps(tmp_path / "a", [VALUES] * 2), tmp_path / "b", "webdataset")
    index = tmp_path / "b/train/index.json"
    tree = json.loads(index.read_text())
    first, second = tree["shards"][0]["samples"]
    first["parts"], second["parts"] = second["parts"], first["parts"]
    index.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="is not the sample that index.json says"):
        open_data(tmp_path / "b", "train").records[0].read_annotation()


def test_an_index_of_another_run_is_named_when_a_sample_is_read(tmp_path):
    """Tars end at multiples of 10,240 bytes, so that shards of two runs often have one size."""
    for name, values in (("a", VALUES), ("c", VALUES[:10])):
        convert(folders.label_maps(tmp_path / name, [values] * 2), tmp_path / f"{name}-shards", "webdataset")
    mine, other = (tmp_path / f"{name}-shards/train" for name in "ac")
    assert (mine / "00000.tar").stat().st_size == (other / "00000.tar").stat().st_size
    (mine / "index.json").write_bytes((other / "index.json").read_bytes())
    _, record = open_data(tmp_path / "a-shards", "train").records
    for read_ in (record.read_image, record.read_annotation):
        with pytest.raises(DataError, match=r"index.json says that a file of '1' begins at byte [\d,]+ of .*00000.tar"):
            read_()
    tree = json.loads((mine / "index.json").read_text())
    (mine / "index.json").write_text(json.dumps({"shards": tree["shards"] * 2}))
    refused(tmp_path / "a-shards", "index.json has a shard twice")


def test_an_index_of_other_annotations_is_noticed(tmp_path):
    """Its classes would say which images training leaves out."""
    convert(folders.label_maps(tmp_path / "a", [VALUES]), tmp_path / "b", "webdataset")
    index = tmp_path / "b/train/index.json"
    tree = json.loads(index.read_text())
    tree["shards"][0]["samples"][0]["labels"] = [0, 1]
    index.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="is not the sample that index.json says"):
        open_data(tmp_path / "b", "train").records[0].read_annotation()


# --- shards of others -------------------------------------------------------------------------------------------------

JPEG = encoded(np.zeros((*folders.SIZE, 3), np.uint8), "JPEG")
IDS = encoded(np.full((*folders.SIZE, 3), (5, 0, 0), np.uint8), "PNG")
HEAD = {"height": 20, "width": 30, "segments_info": [{"id": 5, "category_id": 0}]}


def shard_of(folder, *members, task="panoptic"):
    """A folder with one shard, of (name, content or changes of the member)."""
    classes = [{"id": 0, "name": "cat", "isthing": True, "color": [1, 2, 3]}]
    folders.write_json(folder / "classes.json", {"task": task, "classes": classes})
    (folder / "train").mkdir(exist_ok=True)
    with tarfile.open(folder / "train" / "0.tar", "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(member, key, value)
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def sample(key="a", head=HEAD, **parts):
    members = {"jpg": JPEG, "json": json.dumps(head).encode(), "panoptic.png": IDS, **parts}
    return [(f"{key}.{suffix}", content) for suffix, content in members.items() if content is not None]


def refused(folder, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        open_data(folder, "train", **options)
    assert str(folder) in str(caught.value)


def test_a_shard_of_others_is_read(tmp_path):
    """Other members, folders, hidden files and images of several kinds; a name and an id are not needed."""
    more = [("._a.jpg", b"x"), ("day.1/b.PNG", IDS), *sample("day.1/b", jpg=None), ("day.1/b.txt", b"hello")]
    data = open_data(shard_of(tmp_path, *sample(txt=b"a cat"), *more), "train")
    assert [(record.name, record.height, record.labels) for record in data.records] == [
        ("a", 20, (0,)),
        ("day.1/b", 20, (0,)),
    ]
    assert (data.records[1].read_annotation().ids_HW == 5).all()
    assert data.records[1].read_image()[0, 0].tolist() == [5, 0, 0]


def test_ids_of_classes_that_are_text_or_floats_count_as_in_coco(tmp_path):
    """An image with them alone is no image of nothing, which training would leave out."""
    rows = [{"id": 5, "category_id": "0"}]
    folder = shard_of(tmp_path, *sample(head={**HEAD, "segments_info": rows}))
    assert open_data(folder, "train").records[0].labels == (0,)


@pytest.mark.parametrize("name", ["a\\b.tar", "a?b.tar", "a\nb.tar", "\udcff.tar", "é ü#[1].tar"])
def test_any_name_of_a_shard(tmp_path, name):
    shard_of(tmp_path, *sample())
    (tmp_path / "train/0.tar").rename(tmp_path / "train" / name)
    assert open_data(tmp_path, "train").records[0].read_image().shape == (20, 30, 3)


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*sample(jpg=None)], "The sample 'a' of .* has no image.*links and sparse files are not read"),
        ([*sample(jpg=LINK)], "The sample 'a' of .* has no image"),
        ([*sample(json=LINK)], r"The sample 'a' of .* has no annotation a\.json"),
        ([*sample(json={"type": tarfile.LNKTYPE, "linkname": "a.jpg"})], "has no annotation"),
        ([*sample(jpg={"type": tarfile.CHRTYPE})], "has no image"),
        ([*sample(jpg={"type": tarfile.GNUTYPE_SPARSE})], "has no image|no zip or tar"),
        ([*sample(png=IDS)], "has two images"),
        ([*sample("/a")], "the name '/a.jpg' leads out of it"),
        ([*sample("../a")], r"the name '\.\./a.jpg' leads out of it"),
        ([*sample("x/../../a")], "leads out of it"),
        ([*sample(), *sample()], "has a member of 'a' twice"),
        ([*sample(), *sample("b"), *sample()], "has the sample 'a' twice"),
        ([*sample(head={**HEAD, "name": "x"}), *sample("b", {**HEAD, "name": "x"})], "2 images .* are called 'x'"),
        ([*sample(**{"panoptic.png": None})], "has no annotation a.panoptic.png"),
        ([*sample(head={"width": 30})], "a.json has no 'height'"),
        ([*sample(head={**HEAD, "height": 0})], "does not say the height and width"),
        ([*sample(head=[1])], "a.json should be an object"),
        ([*sample(json=b"{")], "a.json is not valid json"),
        ([*sample(head={**HEAD, "name": ""})], "has the name '', which should be the name of a file"),
        ([], "hold no images"),
    ],
)
def test_what_a_shard_may_not_hold(tmp_path, members, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        open_data(shard_of(tmp_path, *members), "train")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": {**HEAD, "height": 21}}, "0.tar/a.jpg has 20 x 30 pixels .* 21 x 30"),
        ({"head": {**HEAD, "segments_info": []}}, "has pixels of the segment 5"),
        ({"head": {**HEAD, "segments_info": [{"id": 5, "category_id": 7}]}}, "category_id 7"),
        ({"head": {**HEAD, "segments_info": [{"id": 5}]}}, "a segment of"),
        ({"head": {**HEAD, "segments_info": [{"id": 5, "category_id": [0]}]}}, r"category_id \[0\], which should be"),
        ({"head": {**HEAD, "segments_info": [{"id": 5, "category_id": {}}]}}, r"category_id \{\}, which should be"),
        ({"head": {**HEAD, "segments_info": [5]}}, "a.json has no list 'segments_info'"),
        ({"head": {"height": 20, "width": 30}}, "a.json has no list 'segments_info'"),
        ({"jpg": JPEG[:300]}, "0.tar/a.jpg is damaged or cut off"),
        ({"panoptic.png": b"x"}, "0.tar/a.panoptic.png is text, not an image"),
        ({"panoptic.png": encoded(np.zeros((4, 4, 3), np.uint8), "PNG")}, "a.panoptic.png 4 x 4"),
    ],
)
def test_a_damaged_sample_is_a_sentence_when_it_is_read(tmp_path, changed, message):
    head = changed.pop("head", HEAD)
    [record] = open_data(shard_of(tmp_path, *sample(head=head, **changed)), "train").records
    with pytest.raises(DataError, match=message):
        record.read_image(), record.read_annotation()


def test_objects_of_others(tmp_path):
    shape = [folders.rectangle(1, 2, 11, 7)]
    head = {"height": 20, "width": 30, "annotations": [{"category_id": 0, "segmentation": shape}]}
    folder = shard_of(tmp_path, *sample(head=head), task="instance")
    [item] = open_data(folder, "train").records[0].read_annotation().objects
    assert (item.label, item.iscrowd, item.area, len(item.shape[0])) == (0, False, None, 4)
    head["annotations"][0]["segmentation"] = []
    with pytest.raises(DataError, match=r"a\.json: annotation without id of a has no mask"):
        open_data(shard_of(tmp_path, *sample(head=head), task="instance"), "train").records[0].read_annotation()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:1300], "0.tar is no zip or tar file that can be read: .*cut off|0.tar is no zip"),
        (lambda content: b"\x1f\x8b" + content, "compressed as a whole"),
        (lambda content: b"", "no zip or tar file"),
        (lambda content: b"hello" * 500, "no zip or tar file"),
        (lambda content: content.replace(b"0000", b"7777", 3), "no zip or tar file"),
    ],
)
def test_a_damaged_shard(tmp_path, spoil, message):
    shard = shard_of(tmp_path, *sample()) / "train" / "0.tar"
    shard.write_bytes(spoil(shard.read_bytes()))
    refused(tmp_path, message)


def test_a_member_that_claims_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "LARGEST_IMAGE", 2000)
    refused(shard_of(tmp_path, *sample()), "The sample 'a' of .* takes .* bytes; 2,000 are allowed")


def test_a_pax_size_that_is_negative_or_leads_back(tmp_path):
    folder = shard_of(tmp_path)
    for size in ("-512", "-1536", "99999999999"):
        with tarfile.open(folder / "train/0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in sample():
                member = tarfile.TarInfo(name)
                member.size, member.pax_headers = len(content), {"size": size}
                archive.addfile(member, io.BytesIO(content))
        refused(folder, "0.tar")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"classes": []}, "should have a task"),
        ({"task": "x", "classes": [{}]}, "should have a task"),
        ({"task": "panoptic", "classes": [{"id": 0, "name": "a", "isthing": 1}]}, "a class has no 'color'"),
        ([], "should have a task"),
    ],
)
def test_classes_that_make_no_sense(tmp_path, tree, message):
    folder = shard_of(tmp_path, *sample())
    folders.write_json(folder / "classes.json", tree)
    refused(folder, message)
    row = {"id": 0, "name": "a", "isthing": 1, "color": [1, 2, 3]}
    folders.write_json(folder / "classes.json", {"task": "panoptic", "classes": [row, row]})
    refused(folder, "two classes have one id")


def test_a_shard_that_is_written_again_is_noticed(tmp_path):
    folder = shard_of(tmp_path, *sample())
    [record] = open_data(folder, "train").records
    shard_of(tmp_path, *sample(), *sample("b"))
    with pytest.raises(DataError, match=r"0\.tar changed: its (size|version) was"):
        record.read_image()
