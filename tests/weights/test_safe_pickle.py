"""The reader of pickles and of torch's files: all that weights need, and nothing that a hostile file wants."""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import io
import json
import pickle
import random
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import m2f_cli
from m2f_cli.errors import WeightsError
from m2f_cli.training import resume as state
from m2f_cli.weights import pickle_values, safe_pickle, torch_files
from m2f_cli.weights import readers as containers
from m2f_cli.weights.pickle_machine import Machine
from m2f_cli.weights.pickle_source import Budget, PickleSource
from m2f_cli.weights.pickle_values import Inert

ROOM = 1 << 30  # bytes; more than any honest pickle here


def load(data, size=ROOM):
    return safe_pickle.load(PickleSource(data), budget=Budget(size))[0]


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


# --- what has to be read ----------------------------------------------------------------------------------------------

PLAIN = {
    "texts": ("", "é", "x" * 300, "\n'\""),
    "bytes": (b"", b"\xff\x00", bytes(300), bytes(100_000)),
    "numbers": (0, 1, -1, 255, 256, 65_536, -(2**31), 2**31, 2**70, -(2**70), 1.5, float("inf"), -0.0),
    "flags": [True, False, None],
    "nested": {"a": {"b": [{"c": ()}]}},
    "keys": {1: "a", (1, "b"): 2, None: 3, b"x": 4},
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "pair": (1, 2),
    "four": (1, 2, 3, 4),
    "complex": 1 + 2j,
    "ordered": collections.OrderedDict([("z", 1), ("a", 2)]),
    "bytearray": bytearray(b"abc"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", PLAIN)
def test_plain_values_are_read(protocol, key):
    found = load(pickle.dumps(PLAIN[key], protocol))
    assert found == PLAIN[key] and repr(found) == repr(PLAIN[key]).replace("bytearray(b'abc')", "b'abc'")


def test_what_is_there_twice_is_one_thing():
    inner = [1]
    found = load(pickle.dumps({"a": inner, "b": inner}))
    assert found["a"] is found["b"]


NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
ARRAYS = {
    **{kind: np.arange(6).reshape(2, 3).astype(kind) for kind in NUMBERS},
    "big": np.arange(3, dtype=">f4"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.0),
    "texts": np.array(["ab", "c"]),
    "view": np.arange(10)[::3],
    "c8": np.ones(2, np.complex64),
    "large": np.arange(100_000.0),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", ARRAYS)
@pytest.mark.parametrize("old_name", [False, True])
def test_arrays_are_read(protocol, key, old_name):
    data = pickle.dumps([ARRAYS[key], ARRAYS[key].sum() if ARRAYS[key].dtype.kind != "U" else None], protocol)
    if old_name:  # of numpy 1
        data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        data = data.replace(b"\x8c\x13numpy.core.", b"\x8c\x12numpy.core.")
    found, total = load(_without_frames(data))
    assert found.dtype == ARRAYS[key].dtype.newbyteorder("=") and found.shape == ARRAYS[key].shape
    assert np.array_equal(found, ARRAYS[key])
    assert total is None or total == ARRAYS[key].sum()
    assert found.flags.writeable and found.flags.aligned


def _without_frames(data):
    """Frames of protocol 4 say a length, which changed with the names; they are optional."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


def fake_module(monkeypatch, path, **members):
    parts = path.split(".")
    for i in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    for key, member in members.items():
        member.__module__, member.__qualname__ = path, key
        setattr(sys.modules[path], key, member)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("path", "cls"),
    [
        ("yacs.config", "CfgNode"),
        ("fvcore.common.config", "CfgNode"),
        ("mmengine.config.config", "ConfigDict"),
        ("lightning.fabric.utilities.data", "AttributeDict"),
    ],
)
def test_configurations_of_frameworks_are_dictionaries(monkeypatch, protocol, path, cls):
    made = type(cls, (dict,), {})
    fake_module(monkeypatch, path, **{cls: made})
    node = made(a=1, b=made(c="x"))
    node.extra = [1, 2]
    data = pickle.dumps({"cfg": node}, protocol)
    monkeypatch.undo()
    assert load(data) == {"cfg": {"a": 1, "b": {"c": "x"}}}


@pytest.mark.parametrize("protocol", range(6))
def test_objects_without_weights_are_forgotten(protocol):
    args = argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1]))
    found = load(
        pickle.dumps(
            {
                "args": args,
                "milestones": collections.Counter({3: 1, 5: 1}),
                "device": torch.device("cuda:1"),
                "dtype": torch.bfloat16,
            },
            protocol,
        )
    )
    assert isinstance(found["args"], Inert) and isinstance(found["device"], Inert)
    assert found["milestones"] == {3: 1, 5: 1} and found["dtype"] is torch.bfloat16


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
def test_tensors_of_every_type(tmp_path, form, dtype):
    tensors = {"a": torch.arange(12).view(3, 4), "b": torch.tensor(1), "c": torch.empty(0, 3)}
    check_round_trip(tmp_path / "x", form, {key: tensor.to(dtype) for key, tensor in tensors.items()})


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_views_share_their_numbers(tmp_path, form):
    base = torch.arange(24.0)
    tensors = {
        "base": base,
        "rows": base.view(4, 6)[1:3],
        "turned": base.view(4, 6).T,
        "every": base[1::3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    found = check_round_trip(tmp_path / "x", form, tensors)
    if form != "pickle":  # there, each tensor brings its storage along
        found["base"][6] = -1
        assert found["rows"][0, 0] == -1


def check_round_trip(path, form, tensors):
    if form == "pickle":
        path.write_bytes(pickle.dumps(tensors, 2))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    found = torch_files.read_plain(path) if form == "pickle" else torch_files.read(path)
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        assert found[key].tolist() == tensor.tolist()  # torch.equal does not know every type
    return found


def test_a_zip_is_mapped_and_a_copy_is_not(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1000), "t": (torch.ones(3),)}, path)
    mapped, copied = torch_files.read(path), torch_files.read(path, copied=True)
    content = path.read_bytes()
    mapped["a"][0] = 7  # stays in this process
    assert path.read_bytes() == content
    at = content.index(bytes(4000))
    with path.open("r+b") as file:
        file.seek(at + 4)
        file.write(struct.pack("<f", 5.0))
    assert copied["a"][1] == 0 and copied["t"][0].tolist() == [1, 1, 1]
    path.unlink()
    assert copied["a"].sum() == 0 and mapped["a"].numel() == 1000


def test_resume_files_are_read_with_shared_tensors(tmp_path):
    shared = torch.arange(4.0)
    tree = {
        "model": {"a": shared, "b": shared},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
        },
        "best": {"value": float("nan")},
        "random": {"torch": torch.get_rng_state()},
    }
    state.write(tmp_path / "resume.pt", tree)
    found = state.read(tmp_path / "resume.pt")
    assert found["optimizer"]["param_groups"] == tree["optimizer"]["param_groups"]
    assert torch.equal(found["random"]["torch"], tree["random"]["torch"])
    found["model"]["a"][0] = 9
    assert found["model"]["b"][0] == 9


@pytest.mark.parametrize(
    "tree", [[1, 2], {"a": 1}, {"schema_version": "x"}, {"schema_version": 1, "model": torch.nn.Linear(2, 2)}]
)
def test_other_files_are_no_resume_files(tmp_path, tree):
    torch.save(tree, tmp_path / "resume.pt")
    with pytest.raises(WeightsError):
        state.read(tmp_path / "resume.pt")


def test_a_resume_file_of_another_kind_is_refused(tmp_path):
    state.write(tmp_path / "resume.pt", {"iteration": 3, "model": [1]})
    with pytest.raises(WeightsError, match="is not the state of a run: model, optimizer"):
        state.read_run(tmp_path / "resume.pt", 10)


# --- what is refused --------------------------------------------------------------------------------------------------


def array_call(offset):
    return (
        name("numpy", "ndarray")
        + b"(("
        + whole(64)
        + b"t"
        + text("u1")
        + name("builtins", "bytearray")
        + text("x" * 64)
        + text("latin1")
        + b"\x86R"
        + whole(offset)
        + b"tR"
    )


def dtype_with(state_bytes):
    return b"\x80\x02" + name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R" + state_bytes + b"b."


FRESH = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85" + text("b") + b"\x87R"
F4 = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"


def filled(shape, data, kind=F4):
    return b"\x80\x02" + FRESH + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


REFUSED = {
    "an array by calling the class": b"\x80\x02" + array_call(-64) + b".",
    "an item of an array": filled(b"K\x02\x85", b"C\x08" + bytes(8)) + b"K\x00K\x01s.",
    "an item of a tuple": b"\x80\x02)K\x00K\x01s.",
    "an item of a text": b"\x80\x02" + text("a") + b"K\x00K\x01s.",
    "an item of a name": b"\x80\x02" + name("numpy", "ndarray") + b"K\x00K\x01s.",
    "append to a tuple": b"\x80\x02)K\x01a.",
    "append to a dictionary": b"\x80\x02}K\x01a.",
    "add to a list": b"\x80\x04](K\x01\x90.",
    "state of a name": b"\x80\x02" + name("numpy", "ndarray") + b"}b.",
    "state of a dictionary": b"\x80\x02}}b.",
    "state of a list": b"\x80\x02]]b.",
    "state of an array twice": filled(b"K\x02\x85", b"C\x08" + bytes(8))
    + b"(K\x01K\x02\x85"
    + F4
    + b"\x89C\x08"
    + bytes(8)
    + b"tb.",
    "a shape larger than the bytes": filled(b"K\x03\x85", b"C\x08" + bytes(8)) + b".",
    "a shape smaller than the bytes": filled(b"K\x01\x85", b"C\x08" + bytes(8)) + b".",
    "a negative shape": filled(whole(-2) + whole(-1) + b"\x86", b"C\x08" + bytes(8)) + b".",
    "a huge empty shape": filled(b"K\x00" + whole(2**62) + whole(2**62) + b"\x87", b"C\x00") + b".",
    "a shape of texts": filled(text("2") + b"\x85", b"C\x08" + bytes(8)) + b".",
    "a flag as a shape": filled(b"\x88\x85", b"C\x04" + bytes(4)) + b".",
    "numbers as a list": filled(b"K\x02\x85", b"](K\x01K\x02e") + b".",
    "no type": filled(b"K\x02\x85", b"C\x08" + bytes(8), b"N") + b".",
    "a type of fields": dtype_with(b"(K\x03" + text("<") + b"N" + text("a") + b"\x85}" + b"K\x04K\x01K\x10t"),
    "a type with a subtype": dtype_with(b"(K\x03" + text("<") + F4 + b"NN" + b"K\x04K\x01K\x10t"),
    "a type with an odd order": dtype_with(b"(K\x03" + text("?") + b"NNN" + b"K\x04K\x01K\x00t"),
    "a type with a short state": dtype_with(b"(K\x03" + text("<") + b"t"),
    "a type of objects": b"\x80\x02" + name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R.",
    "a type of records": b"\x80\x02" + name("numpy", "dtype") + text("V8") + b"\x89\x88\x87R.",
    "a type by commas": b"\x80\x02" + name("numpy", "dtype") + text("f4,f4") + b"\x89\x88\x87R.",
    "a call of a name that is a mark": b"\x80\x02" + name("builtins", "list") + b")R.",
    "a call of a text": b"\x80\x02" + text("numpy.dtype") + b")R.",
    "a new object of a function": b"\x80\x02" + name("_codecs", "encode") + text("a") + b"\x85\x81.",
    "bytes in another spelling": b"\x80\x02" + name("_codecs", "encode") + text("aa") + text("hex") + b"\x86R.",
    "a storage that is not there": b"\x80\x02" + name("torch._utils", "_rebuild_tensor_v2") + b"(NK\x00))\x89}tR.",
    "buffers from elsewhere": b"\x80\x05\x97.",
    "an instance": b"\x80\x02(inumpy\nndarray\n.",
    "nothing on the stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x05.",
    "a number of too many digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "a number of too many bytes": b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".",
    "a length below zero": b"\x80\x02T\xff\xff\xff\xff.",
    "a length beyond the end": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "a tuple in a tuple as a key": b"\x80\x02}))\x86\x85K\x01s.",
    "a long tuple as a key": b"\x80\x02}(" + b"K\x01" * 1000 + b"tK\x01s.",
    "a large number as a key": b"\x80\x02}" + whole(2**61 - 1) + b"K\x01s.",
    "its own part": b"\x80\x02]q\x00h\x00a.",
    "its own value": b"\x80\x02}q\x00K\x01h\x00s.",
    "a tuple that holds itself": b"\x80\x02]q\x00h\x00\x85a.",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_no_weights_need_is_refused(tmp_path, key):
    path = tmp_path / "x.pkl"
    path.write_bytes(REFUSED[key])
    with pytest.raises(WeightsError):
        containers.read(path)
    below = b"\x80\x04}" + text("model") + b"}" + text("a")  # the same as a value under the name of a tensor
    path.write_bytes(below + REFUSED[key][2:-1] + b"ss.")
    with pytest.raises(WeightsError):
        containers.read(path)


def test_nothing_that_a_pickle_gets_hold_of_can_be_called():
    machine = Machine(PickleSource(b"x"), 0, 1, Budget(10), None, None)
    for full in {*pickle_values.CALLS, *pickle_values.MARKERS}:
        machine.name(*full.rsplit(".", 1))
        assert type(machine.stack[-1]) is pickle_values.Name and not callable(machine.stack[-1])


def memo_bomb(depth):
    """Each list holds the one before twice: 2 ** depth values."""
    return (
        b"\x80\x02]q\x00"
        + b"".join(b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(depth))
        + b"."
    )


def key_bomb(depth):
    return b"\x80\x02}" + b")" + b"2\x86" * depth + b"K\x01s."


def copies_bomb(count, size):
    """Bytes are spelled once and made many times."""
    arguments = text("x" * size) + text("latin1") + b"\x86q\x010"
    return b"\x80\x02]" + name("_codecs", "encode") + b"q\x000" + arguments + b"(" + b"h\x00h\x01R" * count + b"e."


def arrays_bomb(count, size):
    data = b"B" + struct.pack("<I", size) + bytes(size)
    each = FRESH + b"(K\x01" + whole(size) + b"\x85h\x00\x89h\x01tb"
    kind = name("numpy", "dtype") + text("u1") + b"\x89\x88\x87Rq\x000"
    return b"\x80\x02" + kind + data + b"q\x010](" + each * count + b"e."


def calls_bomb(name: bytes, entry: bytes) -> bytes:
    """One list of 5000 entries, which 4000 calls copy."""
    entries = b"".join(b"J" + struct.pack("<i", number) + entry for number in range(5000))
    known = b"c" + name + b"\nq\x000](" + entries + b"e\x85q\x010"
    return b"\x80\x02" + known + b"](" + b"h\x00h\x01R" * 4000 + b"e."


BOMBS = {
    "references": memo_bomb(200),
    "keys": key_bomb(200),
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "deep dictionaries": b"\x80\x02" + b"}K\x01" * 100_000 + b"N" + b"s" * 100_000 + b".",
    "marks": b"\x80\x02" + b"(" * 300_000 + b".",
    "deep values under weights": b"\x80\x02}" + text("extra") + b")" + b"\x85" * 200_000 + b"s.",
    "operations": b"\x80\x02" + b"N0" * 2_000_000 + b".",
    "copies": copies_bomb(20_000, 1_000_000),
    "arrays": arrays_bomb(20_000, 1_000_000),
    "a list copied into sets": calls_bomb(b"builtins\nset", b""),
    "a list copied into dictionaries": calls_bomb(b"collections\nOrderedDict", b"N\x86"),
    "sets": b"\x80\x04](" + b"\x8f" * 1_500_000 + b"e.",
    "one text many times": b"\x80\x02]" + text("x" * 1000) + b"q\x000(" + b"h\x00" * 300_000 + b"e.",
}


def test_bombs_are_refused_at_once(tmp_path, fresh):
    """In a process with little memory and little time: none of them hangs, crashes or takes gigabytes."""
    for number, data in enumerate(BOMBS.values()):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(data)
        if number % 7:  # the containers add little to what the reader of pickles is asked
            continue
        with zipfile.ZipFile(tmp_path / f"{number}.pth", "w") as archive:
            for entry, content in (("data.pkl", data), ("version", b"3"), ("byteorder", b"little")):
                archive.writestr(f"x/{entry}", content)
        with zipfile.ZipFile(tmp_path / f"{number}-deflated.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", data + bytes(10_000_000))
            archive.writestr("x/version", b"3")
    script = (
        "import resource, sys, torch\nfrom pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)\n"
        "from m2f_cli.errors import WeightsError\nfrom m2f_cli.weights import readers as containers\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        containers.read(path)\n        print('read', path.name)\n"
        "    except WeightsError as error:\n        assert len(str(error)) < 1000\n"
    )
    if sys.platform != "linux":
        script = script.replace("used =", "used = 0 #").replace("resource.setrlimit(resource.RLIMIT_AS", "#")
    done = fresh(script, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


# --- the containers of torch ------------------------------------------------------------------------------------------


def zipped(path, *, sizes=(2, 3), strides=(3, 1), offset=0, count=6, data=None, change=None, **options):
    """A file of torch.save with one tensor, written by hand."""
    number = lambda n: whole(n) if n >= 0 else b"\x8a\x09" + n.to_bytes(9, "little", signed=True)  # noqa: E731
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + number(count) + b"tQ"
    tensor = (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + number(offset)
        + b"("
        + b"".join(map(number, sizes))
        + b"t("
        + b"".join(map(number, strides))
        + b"t\x89}tR"
    )
    entries = {
        "data.pkl": b"\x80\x02}" + text("a") + tensor + b"s.",
        "byteorder": b"little",
        "data/0": struct.pack("<6f", *range(6)) if data is None else data,
        "version": b"3\n",
    }
    entries = {key: value for key, value in {**entries, **(change or {})}.items() if value is not None}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for key, value in entries.items():
            archive.writestr(f"x/{key}", value)
    return path


def test_a_zip_of_our_own_making_is_read(tmp_path):
    assert containers.read(zipped(tmp_path / "x.pth")).tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    turned = containers.read(zipped(tmp_path / "y.pth", sizes=(3, 2), strides=(1, 3))).tensors["a"]
    assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "settings",
    [
        {"sizes": (2**32, 4), "strides": (0, 1)},
        {"sizes": (7,), "strides": (1,)},
        {"sizes": (2, 3), "strides": (4, 1)},
        {"offset": 1},
        {"offset": -1},
        {"sizes": (2, 3), "strides": (-3, 1)},
        {"sizes": (-2, 3)},
        {"strides": (3,)},
        {"offset": 2**62},
        {"sizes": (2**40, 2**40)},
        {"sizes": (0, 2**47, 2**47), "strides": (1, 1, 1)},
        {"sizes": (1,) * 40, "strides": (1,) * 40},
        {"count": 7},
        {"count": 5},
        {"count": -1},
        {"count": 2**61},
        {"data": b""},
        {"data": bytes(100)},
        {"change": {"data/0": None}},
        {"change": {"data.pkl": None}},
        {"change": {"byteorder": b"big"}},
        {"change": {"byteorder": b"middle"}},
        {"change": {"constants.pkl": b"x"}},
        {"change": {"data.pkl": b"\x80\x02}."}},
        {"change": {"data.pkl": b""}},
        {"compression": zipfile.ZIP_DEFLATED},
        {"compression": zipfile.ZIP_BZIP2},
    ],
    ids=str,
)
def test_zips_that_do_not_fit_are_refused(tmp_path, settings):
    with pytest.raises(WeightsError):
        containers.read(zipped(tmp_path / "x.pth", **settings))


def test_zip_entries_that_lie_about_their_place(tmp_path):
    whole_file = zipped(tmp_path / "x.pth").read_bytes()
    directory = whole_file.index(b"PK\x01\x02")
    for at in range(directory, len(whole_file) - 22):
        for value in (0, 0xFF):
            changed = bytearray(whole_file)
            changed[at] = value
            (tmp_path / "y.pth").write_bytes(changed)
            with contextlib.suppress(WeightsError):
                assert containers.read(tmp_path / "y.pth").tensors["a"].shape == (2, 3)


def test_one_tensor_under_many_names_is_not_multiplied(tmp_path):
    tensor = torch.zeros(100_000, dtype=torch.float16)
    torch.save({f"layer.{i}": tensor for i in range(3000)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="names tensors of 600,000,000"):
        containers.read(tmp_path / "x.pth")
    torch.save({f"layer.{i}": tensor for i in range(4)}, tmp_path / "x.pth")
    assert len(containers.read(tmp_path / "x.pth").tensors) == 4


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
        '{"weight_map": {"a": "x\\\\\\\\y.safetensors"}}',
        "[" * 100_000,
        '{"weight_map": {"a": "x\\u0000y"}}',
        '{"weight_map": null}',
    ],
)
def test_indices_that_are_none(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(WeightsError):
        containers.read(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 999]}},
        {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}},
        {"a": {"dtype": "X99", "shape": [4], "data_offsets": [0, 16]}},
        {
            "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        },
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {"a": 3},
        {"a": {"dtype": "F32"}},
    ],
    ids=str,
)
def test_headers_of_safetensors_that_lie(tmp_path, header):
    encoded = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(16))
    with pytest.raises(WeightsError):
        containers.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, 1, 2**27, 2**39, 2**63, 2**64 - 1])
def test_a_header_of_another_size_than_it_says(tmp_path, size):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a":{}}' + bytes(100))
    with pytest.raises(WeightsError):
        containers.read(tmp_path / "x.safetensors")


# --- damage of every kind ---------------------------------------------------------------------------------------------


def whole_files(folder):
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(7)}
    tree = {"model": collections.OrderedDict(tensors), "meta": {"x": (1, 2.5, None), "n": np.arange(3)}}
    arrays = {"model": {key: tensor.float().numpy() for key, tensor in tensors.items()}, "more": [{1, 2}, "é", b"x"]}
    for form, is_zip in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(tree, buffer, _use_new_zipfile_serialization=is_zip)
        yield form, buffer.getvalue()
    for protocol in (0, 2, 4, 5):
        yield f"pickle {protocol}", pickle.dumps(arrays, protocol)
    yield "tensors in a pickle", pickle.dumps({"model": tensors}, 4)
    save_file(tensors, folder / "x.safetensors", {"a": "b"})
    yield "safetensors", (folder / "x.safetensors").read_bytes()


def test_damaged_files_are_refused_or_read(tmp_path):
    """Some hundred mutations of every form: whatever they make of the file, one kind of error comes out."""
    chance, path = random.Random(7), tmp_path / "damaged"
    refused = 0
    for form, content in whole_files(tmp_path):
        path.write_bytes(content)
        assert containers.read(path).tensors, form
        for _ in range(60):
            changed, how = bytearray(content), chance.randrange(4)
            at = chance.randrange(len(changed))
            if how == 0:
                del changed[at:]
            elif how == 1:
                del changed[at : at + chance.randrange(1, 9)]
            elif how == 2:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            else:
                for _ in range(chance.choice((1, 2, 8))):
                    changed[chance.randrange(len(changed))] = chance.choice((*b"\0\xffRb(h\x94", chance.randrange(256)))
            path.write_bytes(changed)
            try:
                containers.read(path)
            except WeightsError:
                refused += 1
    assert refused > 100


# --- nothing else opens what somebody else wrote ----------------------------------------------------------------------

UNSAFE = {
    "torch.load",
    "torch.jit.load",
    "torch.export.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "numpy.load",
    "np.load",
    "dill.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "torch._inductor.aoti_load_package",
}
# Where such calls are right: programs behind --trust-code, and records that this process packed itself in memory.
ALLOWED = {
    ("inference/engines/torch_engine.py", "torch.export.load"),
    ("inference/engines/torch_engine.py", "torch._inductor.aoti_load_package"),
    ("data/formats/coco_panoptic.py", "pickle.loads"),
    ("data/formats/coco_instance.py", "pickle.loads"),
    ("cluster/processes.py", "pickle.loads"),  # of what this process has just pickled
    ("cluster/ray_stream.py", "pickle.loads"),  # of images on their way through the user's own cluster
}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def unsafe_calls(source):
    tree = ast.parse(source)
    short = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            short |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            short |= {each.asname: each.name for each in node.names if each.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = dotted(node).partition(".")
            full = ".".join(filter(None, (short.get(first, first), rest)))
            if full in UNSAFE:
                yield full


def test_unsafe_readers_are_found():
    assert list(unsafe_calls("import torch\ntorch.load(x)")) == ["torch.load"]
    assert list(unsafe_calls("from pickle import loads\nf = loads")) == ["pickle.loads"]
    assert list(unsafe_calls("import numpy as n\nn.load(x)")) == ["numpy.load"]


def test_no_file_of_somebody_else_reaches_an_unsafe_reader():
    package = Path(m2f_cli.__file__).parent
    found = {
        (path.relative_to(package).as_posix(), call)
        for path in package.rglob("*.py")
        for call in unsafe_calls(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize("key", [np.longdouble(1), np.float32(1), np.complex64(1)], ids=str)
def test_numbers_of_numpy_that_many_share_a_hash_are_no_keys(tmp_path, key):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "extra": {key: 1}}, 4))
    with pytest.raises(WeightsError, match="as a key"):
        containers.read(tmp_path / "x.pkl")


def test_weights_are_found_beside_a_tensor_of_the_training(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "best_loss": torch.tensor(0.1)}, tmp_path / "x.pth")
    assert list(containers.read(tmp_path / "x.pth").tensors) == ["a"]
