"""The lines of docs/guides/several-gpus.md are commands of m2f, wherever they are started."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
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
    return found + [c["command"] for job in documents("Job") for c in job["spec"]["template"]["spec"]["containers"]]


def documents(kind: str) -> list[dict]:
    """Objects of Kubernetes of one kind, in the order of the page."""
    found = [each for block, text in BLOCKS if block == "yaml" for each in yaml.safe_load_all(text)]
    return [each for each in found if each["kind"] == kind]


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
    assert len(commands()) == 8 and len(documents("Job")) == 2


@pytest.mark.parametrize("job", documents("Job"), ids=["one machine", "several machines"])
def test_a_job_of_kubernetes_has_its_fields(job):
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert job["apiVersion"] == "batch/v1" and pod["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] > 0
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert "memory" in mounted, "processes share tensors in /dev/shm, which has 64 MB otherwise"
    names = {each["name"]: each for each in container["env"]}
    uid = names["M2F_JOB"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert uid == "metadata.labels['batch.kubernetes.io/controller-uid']", "the same in each pod of a job"
    words = container["command"]
    assert all(isinstance(word, str) for word in words)
    count = words[words.index("--nproc-per-node" if "torchrun" in words else "--devices") + 1]
    assert int(count) == container["resources"]["limits"]["nvidia.com/gpu"]


def test_pods_of_several_machines_find_each_other():
    job, [service] = documents("Job")[1], documents("Service")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    options = dict(itertools.pairwise(words))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options["--nnodes"])
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    host, port = options["--rdzv-endpoint"].split(":")
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}" and port.isdecimal()
    assert options["--rdzv-id"] == "$(M2F_JOB)" and options["--rdzv-backend"] == "c10d"
    named = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert named["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1" and "M2F_JOB" in named


def test_the_script_of_slurm_is_one():
    [script] = [text for kind, text in BLOCKS if kind == "sh"]
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "") and script.startswith("#!/bin/bash\n#SBATCH ")
    asked = dict(re.findall(r"--([\w-]+)=(\S+)", "".join(re.findall(r"^#SBATCH (.*)$", script, re.M))))
    [words] = [words for words in commands() if words[0] == "srun"]
    options = dict(itertools.pairwise(words))
    assert asked["nodes"] == options["--nnodes"] and asked["gpus-per-node"] == options["--nproc-per-node"]
    assert asked["ntasks-per-node"] == "1", "torchrun starts the processes of a machine"
    assert options["--rdzv-id"] == "$SLURM_JOB_ID" and options["--rdzv-endpoint"] == "$first:29500"
