"""Our own checkpoint file: complete, atomic, strict, and mapped rather than copied."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights.models import CATEGORIES, RESNET, assert_equal, config_of, network_of, shapes_of

from m2f_cli import __version__, weights
from m2f_cli.errors import ConfigError, M2FError, WeightsError
from m2f_cli.runtime.files import remove_parts


@pytest.fixture
def saved(tmp_path):
    settings = config_of()
    network = network_of(settings)
    return weights.save(tmp_path / "best.safetensors", network.state_dict(), settings, CATEGORIES), settings, network


def header_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["m2f"])


def rewrite(path, change):
    header = header_of(path)
    change(header)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"m2f": json.dumps(header)})


@pytest.mark.parametrize("backbone", [None, {**RESNET, "norm": "bn"}])
def test_there_and_back(tmp_path, backbone):
    settings = config_of(backbone)
    network = network_of(settings)
    path = weights.save(tmp_path / "runs" / "best.safetensors", network.state_dict(), settings, CATEGORIES)
    found = weights.load(path)
    assert found.config == settings
    assert found.categories == CATEGORIES
    assert found.num_classes == len(CATEGORIES)
    assert found.notes == []
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())
    again = weights.save(tmp_path / "again.safetensors", found.state_for(shapes_of(network)), settings, CATEGORIES)
    assert again.read_bytes() == path.read_bytes()


def test_the_header_says_all(saved):
    header = header_of(saved[0])
    assert header["schema_version"] == 1
    assert header["m2f"] == __version__
    assert header["config"]["model"]["decoder"]["num_queries"] == 12
    assert header["categories"][0] == CATEGORIES[0].to_dict()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensors_are_mapped_from_the_file(saved):
    path, _, network = saved
    state = weights.load(path).state_for(shapes_of(network))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert mapped
    ranges = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in mapped]
    assert all(any(a <= t.data_ptr() < b for a, b in ranges) for t in state.values())


def test_an_interrupted_save_leaves_nothing(saved, monkeypatch):
    path, settings, network = saved
    before = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        weights.save(path, network.state_dict(), settings, CATEGORIES)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_file_that_is_mapped_may_be_replaced(saved):
    path, settings, network = saved
    state = weights.load(path).state_for(shapes_of(network))
    other = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    weights.save(path, other, settings, CATEGORIES)
    assert_equal(state, network.state_dict())
    assert_equal(weights.load(path).state_for(shapes_of(network)), other)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    settings = config_of()
    with pytest.raises(M2FError, match="Cannot write"):
        weights.save(tmp_path / "file" / "best.safetensors", {}, settings, CATEGORIES)


def test_a_full_disk_is_no_fault_of_the_weights(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(M2FError, match=r"^Cannot write .*best.safetensors: No space left on device.$") as caught:
        weights.save(tmp_path / "best.safetensors", {}, config_of(), CATEGORIES)
    assert caught.value.exit_code == 1 and not list(tmp_path.iterdir())


KILLED_INSIDE_A_WRITE = """
import resource, signal, sys, torch
from pathlib import Path
from m2f_cli.weights.checkpoint import write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
write_safetensors(Path(sys.argv[1]), {"a": torch.zeros(1 << 16)}, {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files, which ends the process")
def test_what_a_kill_inside_a_write_leaves_is_removed_by_the_next_start(fresh, tmp_path):
    folder = tmp_path / "checkpoints"
    assert fresh(KILLED_INSIDE_A_WRITE, folder / "last.safetensors").returncode == -signal.SIGXFSZ
    assert len(list(folder.iterdir())) == 1
    remove_parts(tmp_path)
    assert not list(folder.iterdir())


def test_half_precision_is_widened(saved):
    path, settings, network = saved
    half = {name: tensor.bfloat16() for name, tensor in network.state_dict().items()}
    weights.save(path, half, settings, CATEGORIES)
    state = weights.load(path).state_for(shapes_of(network))
    assert_equal(state, {name: tensor.float() for name, tensor in half.items()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_values_are_named(saved, value):
    path, settings, network = saved
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["decoder.norm.bias"][3] = value
    weights.save(path, state, settings, CATEGORIES)
    with pytest.raises(WeightsError, match=r"1 of 64 values of 'decoder\.norm\.bias' are NaN or infinite"):
        weights.load(path).state_for(shapes_of(network))


def test_large_values_are_not_broken(saved):
    path, settings, network = saved
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["decoder.norm.bias"].fill_(3e38)  # finite, the sum is not
    weights.save(path, state, settings, CATEGORIES)
    assert weights.load(path).state_for(shapes_of(network))


def test_tensors_that_do_not_fit_are_all_named(saved):
    path, settings, network = saved
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["decoder.norm.bia"] = state.pop("decoder.norm.bias")
    state["decoder.norm.weight"] = torch.zeros(3)
    weights.save(path, state, settings, CATEGORIES)
    with pytest.raises(WeightsError) as caught:
        weights.load(path).state_for(shapes_of(network))
    assert "decoder.norm.weight is 3 and should be 64" in str(caught.value)
    assert "1 missing: decoder.norm.bias (nearest left over: decoder.norm.bia)" in str(caught.value)


def test_a_newer_file_says_so(saved):
    rewrite(saved[0], lambda header: header.update(schema_version=3, m2f="9.0"))
    with pytest.raises(WeightsError, match=r"written by m2f 9\.0 in version 3") as caught:
        weights.load(saved[0])
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("config"),
        lambda h: h["config"].update(speed=3),
        lambda h: h["config"].pop("model"),
        lambda h: h["categories"][0].pop("name"),
        lambda h: h.update(schema_version="one"),
    ],
)
def test_a_damaged_header(saved, change):
    rewrite(saved[0], change)
    with pytest.raises(WeightsError, match="header of .* is damaged"):
        weights.load(saved[0])


@pytest.mark.parametrize("part", ["backbone", "pixel_decoder", "decoder"])
def test_code_in_a_checkpoint_is_refused_and_not_imported(saved, tmp_path, monkeypatch, part):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_part.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    rewrite(saved[0], lambda header: header["config"]["model"][part].update(name="evil_part:Part"))
    with pytest.raises(ConfigError, match="names code of its own, 'evil_part:Part'") as caught:
        weights.load(saved[0])
    assert "--trust-code" in caught.value.hint
    assert not (tmp_path / "ran").exists()
    assert "evil_part" not in sys.modules
    assert weights.load(saved[0], trust_code=True).config.model.model_dump()[part]["name"] == "evil_part:Part"


MEASURE = """
import sys, torch
def anonymous():
    line = next(line for line in open('/proc/self/status') if line.startswith('RssAnon'))
    return int(line.split()[1]) * 1024
from m2f_cli.inference.load_network import load_model
load_model(sys.argv[1])  # imports, caches and allocator pools of a small one
before = anonymous()
model = load_model(sys.argv[2]).model
print(anonymous() - before, sum(p.numel() * 4 for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_the_weights_once(saved, tmp_path, fresh):
    """Memory of the process's own grows by less than a tenth of the file: the weights stay in the file's mapping."""
    big = config_of(
        {
            "name": "swin",
            "embed_dim": 96,
            "depths": [2, 2, 4, 2],
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
            "drop_path": 0.3,
        }
    )
    network = network_of(big)
    path = weights.save(tmp_path / "big.safetensors", network.state_dict(), big, CATEGORIES)
    size = path.stat().st_size
    assert size > 80e6
    done = fresh(MEASURE, saved[0], path)
    grown, held = map(int, done.stdout.split())
    assert held > 0.99 * size - 1e6
    assert grown < 0.1 * size
