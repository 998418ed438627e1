"""What --compile compiles, and what it says where it cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.small_segmenter import random_image, small_segmenter

from m2f_cli.errors import ConfigError
from m2f_cli.inference import compile as compiling
from m2f_cli.model.pixel_decoders import deformable
from m2f_cli.ops.deformable_attention import embedding_bag


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)


OPERATORS = (embedding_bag.corners_on_cpu, deformable.softmax_on_cpu)


@pytest.fixture
def plain_again(monkeypatch):
    for each in OPERATORS:
        monkeypatch.setattr(each, "runs", each.eager)  # put back afterwards


def test_on_a_cpu_a_few_operators(monkeypatch, plain_again):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: (function, dynamic))
    segmenter = small_segmenter()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: pytest.fail("a part of the network"))
    compiling.compile_parts(segmenter)
    assert [each.runs for each in OPERATORS] == [(each.eager, True) for each in OPERATORS]


def test_elsewhere_the_parts_of_the_network(monkeypatch):
    segmenter, called = copy.copy(small_segmenter()), []
    segmenter.device = torch.device("meta")
    for name, part in compiling.parts_of(segmenter.model).items():
        monkeypatch.setattr(part, "compile", lambda name=name: called.append(name))
    compiling.compile_parts(segmenter)
    assert called == ["backbone", "pixel decoder", "decoder"]


def test_without_a_compiler_there_is_one_sentence(no_compiler):
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and none of c\\+\\+, g\\+\\+") as error:
        compiling.compile_parts(small_segmenter())
    assert "CXX" in error.value.hint


@pytest.mark.slow
@pytest.mark.skipif(not any(map(compiling.shutil.which, compiling.COMPILERS)), reason="there is no C++ compiler")
def test_the_answer_is_the_same(plain_again):
    segmenter = small_segmenter()
    batch = [segmenter.prepare(random_image())]
    [before] = segmenter.infer(batch)
    compiling.compile_parts(segmenter)
    assert embedding_bag.corners_on_cpu.runs is not embedding_bag.corners_on_cpu.eager
    [after] = segmenter.infer(batch)
    torch.testing.assert_close(after.class_logits_QK, before.class_logits_QK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.masks.embeds_QC, before.masks.embeds_QC, atol=1e-4, rtol=1e-4)
