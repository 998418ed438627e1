"""Reading files of weights: every kind, damaged ones, and ones that want to run code."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m2f_cli.errors import WeightsError
from m2f_cli.weights import readers as containers

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}


def check(container, names=TENSORS):
    assert set(container.tensors) == set(names)
    for name, tensor in container.tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


# --- every kind of file, whatever it is called ------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch_files_are_read(tmp_path, zipped, key):
    path = tmp_path / "weights.pkl"
    tree = TENSORS if key is None else {key: TENSORS, "iteration": 3, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    container = containers.read(path)
    check(container)
    assert container.extra.get("iteration") == (None if key is None else 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["numpy", "torch", "parameter"])
def test_pickles_of_detectron2(tmp_path, protocol, kind):
    make = {
        "numpy": lambda t: t.numpy(),
        "torch": lambda t: t.clone(),
        "parameter": lambda t: torch.nn.Parameter(t.clone(), requires_grad=False),
    }[kind]
    path = tmp_path / "weights.pth"
    tree = {"model": collections.OrderedDict((n, make(t)) for n, t in TENSORS.items()), "__author__": "third_party"}
    path.write_bytes(pickle.dumps(tree, protocol))
    container = containers.read(path)
    check(container)
    assert container.extra["__author__"] == "third_party"


def test_a_pickle_of_python_2(tmp_path):
    """Python 2 writes the bytes of an array as a string, and numpy was numpy.core then."""
    array = TENSORS["a.weight"].numpy()
    text = pickle.dumps({"model": {"a.weight": array}}, 2).replace(b"numpy._core", b"numpy.core")
    spelled = array.tobytes().decode("latin1").encode()
    call = text.index(b"X" + struct.pack("<I", len(spelled)) + spelled)
    end = text.index(b"R", call + 5 + len(spelled))
    start = text.rindex(b"h", 0, call)  # the call of _codecs.encode begins by fetching it from the memo
    old = text[:start] + b"T" + struct.pack("<i", array.nbytes) + array.tobytes() + text[end + 1 :]
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    assert pickle.loads(old, encoding="latin1")["model"]["a.weight"].tolist() == array.tolist()
    check(containers.read(path), ["a.weight"])


def test_arrays_of_another_byte_order_and_scalars(tmp_path):
    path = tmp_path / "weights.pkl"
    values = {
        "a": np.arange(3, dtype=">f4"),
        "b": np.float32(1.5),
        "c": np.zeros((0, 4), np.float32),
        "d": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    }
    path.write_bytes(pickle.dumps(values))
    tensors = containers.read(path).tensors
    assert tensors["a"].tolist() == [0, 1, 2]
    assert tensors["b"].item() == 1.5
    assert tensors["c"].shape == (0, 4)
    assert tensors["d"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_safetensors_are_mapped_and_bring_their_header(tmp_path):
    path = tmp_path / "weights.bin"
    save_file(TENSORS, path, {"note": "hello"})
    container = containers.read(path)
    check(container)
    assert container.extra == {"note": "hello"}


def shards(folder):
    for i, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, folder / f"model-{i + 1:05}-of-00002.safetensors")
    return {name: f"model-{i + 1:05}-of-00002.safetensors" for i, name in enumerate(TENSORS)}


def write_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_shards_are_read_as_one(tmp_path):
    check(containers.read(write_index(tmp_path, shards(tmp_path))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.count": "model-00003-of-00002.safetensors"}, "Cannot read .*model-00003"),
        ({"a.count": "../model-00002-of-00002.safetensors"}, "outside its own folder"),
        ({"b": "model-00001-of-00002.safetensors"}, "lists 'b'"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        containers.read(write_index(tmp_path, {**shards(tmp_path), **change}))


class HistoryBuffer:
    """Pickles as mmengine's does: its statistics are methods of its own, which pickle spells with getattr."""

    def __init__(self):
        self._log_history = np.arange(4.0)
        self._statistics_methods = {"mean": HistoryBuffer.mean}

    def mean(self):
        raise AssertionError


@pytest.mark.parametrize("zipped", [True, False, None])
def test_harmless_objects_of_training_frameworks(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
    tree = {
        "state_dict": TENSORS,
        "meta": {"dataset_meta": {"classes": ("a", "b")}, "seed": np.int64(3)},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    }
    path = tmp_path / "epoch_1.pth"
    if zipped is None:
        path.write_bytes(pickle.dumps(tree, 2))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    container = containers.read(path)
    check(container)
    assert container.extra["meta"]["dataset_meta"]["classes"] == ("a", "b")
    assert container.extra["meta"]["seed"] == 3


# --- files that want to run code --------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


class Build:
    """Pickles as `what`, filled with `state` by BUILD."""

    def __init__(self, what, state):
        self.what, self.state = what, state

    def __reduce__(self):
        return (self.what[0], self.what[1:], self.state)


def op(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stacked(module, name):
    """STACK_GLOBAL of protocol 4, which also follows dotted names."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


def object_array(value):
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def storage_bytes(payload):
    """A tensor in a plain pickle holds a whole torch file as bytes: here with something else in it."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


MARK = "touch {marker}"


def hostile(marker):
    """Name → bytes of a plain pickle, or an object to be pickled."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    arguments = text(command) + b"\x85R."
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "in the weights": {"model": {"a": Call(os.system, command)}, "__author__": "me"},
        "in a torch file in a tensor": {"model": {"a": storage_bytes(Call(os.system, command))}},
        "in an array of objects": {"model": {"a": object_array(Call(os.system, command))}},
        "protocol 0 name": b"\x80\x02" + op("posix", "system") + arguments,
        "python 2 name": b"\x80\x02" + op("__builtin__", "eval") + text(code) + b"\x85R.",
        "os through a module": stacked("torch.serialization", "os.system") + arguments,
        "dotted stack_global": stacked("os", "path.os.system") + arguments,
        "dotted below an allowed name": stacked("torch._utils", "_rebuild_tensor_v2.__globals__") + b".",
        "dotted below a class": stacked("collections", "OrderedDict.__init__.__globals__") + b".",
        "getattr": b"\x80\x02" + op("builtins", "getattr") + op("os", "path") + text("os") + b"\x86R.",
        "inst opcode": b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
        "obj opcode": b"\x80\x02(" + op("os", "system") + text(command) + b"o.",
        "extension": b"\x80\x02\x82\x01.",
        "subprocess": b"\x80\x02" + op("subprocess", "getoutput") + arguments,
        "numpy loads": b"\x80\x02" + op("numpy", "load") + arguments,
        "torch.load": Call(torch.load, str(marker)),
        "codecs to run": b"\x80\x02" + op("_codecs", "lookup") + text("latin1") + b"\x85R.",
        "runpy": b"\x80\x02" + op("runpy", "run_path") + text(str(marker)) + b"\x85R.",
        "persistent id": b"\x80\x02" + text("id") + b"Q.",
    }


HOSTILE = [(name, "plain") for name in hostile("x")]
HOSTILE += [(name, "torch") for name, payload in hostile("x").items() if not isinstance(payload, bytes)]


@pytest.mark.parametrize(("name", "kind"), HOSTILE)
def test_hostile_files_are_refused_and_do_not_run(tmp_path, name, kind):
    marker, path = tmp_path / "ran", tmp_path / "model_final.pkl"
    payload = hostile(marker)[name]
    if kind == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(payload if isinstance(payload, bytes) else pickle.dumps(payload))
    with pytest.raises(WeightsError):
        containers.read(path)
    assert not marker.exists()


def test_the_payloads_would_have_run(tmp_path):
    """Otherwise the test above could not fail."""
    ran = []
    for name in (
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "in the weights",
        "protocol 0 name",
        "inst opcode",
        "obj opcode",
        "dotted stack_global",
        "in an array of objects",
        "os through a module",
        "subprocess",
    ):
        marker = tmp_path / "ran"
        payload = hostile(marker)[name]
        pickle.loads(payload if isinstance(payload, bytes) else pickle.dumps(payload))
        ran.append(marker.exists())
        marker.unlink(missing_ok=True)
    assert all(ran)


def test_the_refusal_names_what_was_asked_for(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(WeightsError, match=r"asks for posix\.system"):
        containers.read(path)
    torch.save({"model": {"a": Call(os.system, "true")}}, path)
    with pytest.raises(WeightsError, match=r"asks for (posix|os)\.system"):
        containers.read(path)


def test_build_cannot_change_what_a_pickle_may_call(tmp_path):
    """BUILD sets attributes of whatever is on the stack: also of functions and classes."""
    path = tmp_path / "weights.pkl"
    state = b"N}" + text("_function") + op("collections", "OrderedDict") + b"s\x86b."  # (None, {"_function": …})
    places = [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("mmengine.config.config", "ConfigDict"),
        ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ]
    for module, name in places:
        path.write_bytes(b"\x80\x02" + op(module, name) + state)
        with pytest.raises(WeightsError):
            containers.read(path)
    path.write_bytes(pickle.dumps({"model": {n: t.numpy() for n, t in TENSORS.items()}}))
    check(containers.read(path))


def test_build_cannot_change_a_type_of_numpy(tmp_path):
    path = tmp_path / "weights.pkl"
    state = b"(K\x03" + text(">") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb."
    path.write_bytes(b"\x80\x02" + op("numpy", "dtype") + text("f4") + b"\x89\x89\x87R" + state)
    with pytest.raises(WeightsError):
        containers.read(path)
    assert np.dtype("f4").isnative


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": object_array("text")}}))
    with pytest.raises(WeightsError, match="Python objects"):
        containers.read(path)


# --- files that are something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n  <html><head>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b'{"model_type": "mask2former"}', "JSON"),
        (b"hello, world, this is text", "not a file of weights"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a file of weights"),
        (b"PK\x03\x04" + b"\0" * 60, "damaged or incomplete"),
        (b"\x80", "not a file of weights"),
        (b"\x80\x04", "damaged or incomplete"),
        (struct.pack("<Q", 10_000) + b'{"a":', "damaged or incomplete"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, message):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        containers.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        containers.read(tmp_path / "model.pth")


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_pipes_and_devices_are_no_weights(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    for path in (tmp_path / "model.pth", Path("/dev/zero")):
        with pytest.raises(WeightsError, match="is no regular file"):
            containers.read(path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "pickle"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, kind, kept):
    path = tmp_path / "model"
    tensors = {"a": torch.randn(64, 64)}
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {"a": tensors["a"].numpy()}}))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        containers.read(path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1, 2], "holds a list"),
        ({"model": {"a": "text"}}, "'a' is a str, not a tensor"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({}, "no weights"),
    ],
)
def test_pickles_of_something_else(tmp_path, tree, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(WeightsError, match=message):
        containers.read(path)
    torch.save(tree, path)
    with pytest.raises(WeightsError, match=message):
        containers.read(path)
