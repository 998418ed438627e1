"""Checkpoints over a base that a stranger wrote: each is refused in one sentence, and nothing else is read for it."""

from __future__ import annotations

import shutil
import socket

import pytest
import torch
from helpers import over_a_base
from helpers.over_a_base import CHANGE, rewrite

from m2f_cli import weights
from m2f_cli.errors import M2FError, WeightsError
from m2f_cli.inference.load import load
from m2f_cli.inference.load_network import load_model

ODD_NAMES = ("~nobody-of-this-name/x", "x" * 5000, "/" + "a/" * 3000)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    return over_a_base.write(folder)


@pytest.fixture
def checkpoint(tmp_path, written):
    return shutil.copy(written, tmp_path / "a.safetensors")


def backbone(**options):
    return lambda header: header["config"]["model"]["backbone"].update(options)


def base(**entries):
    return lambda header: header["base"].update(entries)


def test_the_sample_itself_is_read(checkpoint):
    assert load_model(checkpoint).config.model.backbone.lora is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint_path": "/etc/passwd"}, "'checkpoint_path' of the timm model .* is none of a network"),
        ({"pretrained_cfg_overlay": {"file": "/etc/passwd"}}, "'pretrained_cfg_overlay' of the timm model"),
        ({"cache_dir": "/tmp"}, "'cache_dir' of the timm model"),
        ({"device": "meta"}, "'device' of the timm model"),
        ({"model": "hf-hub:a/b"}, "no timm model named 'hf-hub:a/b'"),
        ({"model": "local-dir:/etc"}, "no timm model named 'local-dir:/etc'"),
        ({"model": "a/b"}, "no timm model named 'a/b'"),
        ({"model": "resnet50"}, "does not fit the timm model 'resnet50'"),
        ({"bad_option": 3}, "unexpected keyword argument 'bad_option'"),
        ({"num_heads": 0}, "does not fit the timm model"),
        ({"img_size": "64"}, "does not fit the timm model"),
        ({"embed_dim": 16383, "depth": 40}, r"the model has [\d,]+ numbers, the file [\d,]+"),
        ({"depth": 10**6}, "depth = 1,000,000, where 0 to 500 is possible"),
        ({"drop_path": 2}, "drop_path = 2, where 0 to 0.99 is possible"),
        ({"lora": {"rank": 10**9}}, "rank"),
        ({"lora": {"rank": 3}}, "does not hold the changes of LoRA .* the rank is 3"),
        ({"lora": {"rank": 2, "alpha": float("nan")}}, "alpha"),
        ({"lora": None}, "is changed, and the configuration has no lora"),
        ({"lora": {"rank": 2, "targets": ["q"]}}, "does not hold the changes of LoRA"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_a_network_that_make_no_sense_are_refused(checkpoint, monkeypatch, options, says):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a server was asked"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a file was read by timm"))
    with pytest.raises(M2FError, match=says):
        load_model(rewrite(checkpoint, backbone(**options)))


@pytest.mark.parametrize("kind", ["pretrained", "init"])
@pytest.mark.parametrize(
    "reference",
    ["../..", "/dev/zero", "https://host/x.safetensors", *ODD_NAMES, "", "\0"],
    ids=lambda text: text[:10].encode("unicode_escape").decode(),
)
def test_a_base_that_is_no_file_is_refused(checkpoint, kind, reference):
    with pytest.raises(WeightsError, match="(?s)holds only what was trained, and its base .* is not usable"):
        weights.load(rewrite(checkpoint, base(reference=reference, kind=kind)))


@pytest.mark.parametrize("reference", ODD_NAMES, ids=lambda text: text[:10])
@pytest.mark.parametrize("load", [weights.load, load], ids=["weights", "segmenter"])
def test_a_name_that_no_file_can_have_is_one_sentence(load, reference):
    with pytest.raises(WeightsError, match=r"There is no |Cannot look for "):
        load(reference)


def test_a_chain_of_bases_ends(tmp_path, written):
    for number in range(20):
        shutil.copy(written, tmp_path / f"{number}.safetensors")
        next_one = str(tmp_path / f"{number + 1}.safetensors")
        rewrite(tmp_path / f"{number}.safetensors", base(kind="init", reference=next_one))
    with pytest.raises(WeightsError, match=r"8\.safetensors is the base of a base, more than 8 times"):
        weights.load(tmp_path / "0.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {CHANGE + "A": None},
        {CHANGE + "B": None},
        {CHANGE + "A": torch.zeros(2, 1, 200_000), CHANGE + "B": torch.zeros(2, 200_000, 1)},
        {CHANGE + "B": torch.zeros(2, 1, 2)},
        {CHANGE + "B": torch.zeros(())},
        {CHANGE + "A": torch.zeros(1, 2, 36)},
        {"x.parametrizations.weight.0.A": torch.zeros(3)},
    ],
    ids=lambda tensors: str({name[-1]: x if x is None else tuple(x.shape) for name, x in tensors.items()}),
)
def test_changes_that_are_not_those_of_the_layer_are_refused_before_they_take_memory(checkpoint, tensors):
    with pytest.raises(WeightsError, match="does not hold the changes of LoRA that it describes"):
        load_model(rewrite(checkpoint, tensors=tensors))
