"""The lines of docs/guides/several-gpus.md are commands of m2f, wherever they are started."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from m2f_cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "several-gpus.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", PAGE, re.M | re.S)


def commands() -> list[list[str]]:
    """Words of each command, from the launcher on."""
    lines = [line for kind, text in BLOCKS if kind != "yaml" for line in text.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line) for line in lines if "m2f" in line and not line.startswith("#")]
    jobs = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    return found + [c["command"] for job in jobs for c in job["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:4]))
def test_a_line_of_the_page_is_a_command(words, only_parsed):
    own = words[words.index("m2f_cli" if "m2f_cli" in words else "m2f") + 1 :]
    assert cli.run(own) == 0 and len(only_parsed) == 1


@pytest.mark.parametrize("words", [words for words in commands() if "torchrun" in words], ids=lambda words: words[0])
def test_torchrun_knows_its_options(words):
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert parsed.module and parsed.training_script == "m2f_cli" and parsed.max_restarts == 3


def test_the_page_has_a_line_for_each_place():
    assert len(commands()) == 7
    job = next(yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
    pod = job["spec"]["template"]["spec"]
    assert job["apiVersion"] == "batch/v1" and job["kind"] == "Job" and pod["restartPolicy"] == "Never"
    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert pod["containers"][0]["env"][0]["name"] == "M2F_JOB"
