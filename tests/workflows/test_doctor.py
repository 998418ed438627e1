"""The doctor: each thing that can be wrong is found, said with what to do, and hides nothing else."""

from __future__ import annotations

import platform
import types
from importlib import metadata

import pytest
import torch

from m2f_cli import plugins
from m2f_cli.config import presets as config
from m2f_cli.errors import ConfigError
from m2f_cli.ops import deformable_attention as op
from m2f_cli.ops.cpu import linear
from m2f_cli.runtime import devices
from m2f_cli.workflows import doctor, requirements
from m2f_cli.workflows.doctor import DoctorFinding, diagnose
from m2f_cli.workflows.requirements import Requirement, is_older


def found(examine):
    return {finding.name: finding for finding in examine()}


@pytest.fixture
def installed(monkeypatch):
    """`installed(torch="2.1.0", …)`: the versions that metadata tells; None and all others are not installed."""

    def put(**versions):
        def version(name):
            known = versions.get(name.replace("-", "_"))
            if known is None:
                raise metadata.PackageNotFoundError(name)
            return known

        monkeypatch.setattr(metadata, "version", version)

    return put


@pytest.fixture
def gpus(monkeypatch):
    """`gpus((name, bytes, major, minor), …)`: what torch says of CUDA devices; none of them can compute."""

    def put(*cards):
        cards = [types.SimpleNamespace(name=n, total_memory=b, major=x, minor=y) for n, b, x, y in cards]
        index = lambda device: torch.device(device).index  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cards[index(device)])
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: (cards[index(device)].major, cards[index(device)].minor)
        )

    return put


# --- the whole --------------------------------------------------------------------------------------------------------


def test_this_machine_can_run_m2f_and_findings_are_sorted():
    findings = diagnose()
    assert [finding for finding in findings if finding.status == "problem"] == []
    groups = list(dict.fromkeys(finding.group for finding in findings))
    assert groups == list(doctor.EXAMINATIONS)
    for group in groups:
        names = [finding.name.casefold() for finding in findings if finding.group == group]
        assert names == sorted(names)
    by_name = {finding.name: finding.value for finding in findings}
    assert by_name["torch"] == metadata.version("torch")
    assert by_name["python"].startswith(platform.python_version())
    assert by_name["presets"].startswith(f"{len(config.preset_names())} in ")
    assert all(finding.hint for finding in findings if finding.status != "ok")


def test_an_examination_that_fails_is_a_finding_and_keeps_what_it_found(monkeypatch):
    def half():
        yield DoctorFinding("devices", "cpu", "fine")
        raise OSError("no such library\nmore")

    whole = lambda: iter([DoctorFinding("caches", "a", "b")])  # noqa: E731
    monkeypatch.setattr(doctor, "EXAMINATIONS", {"devices": half, "caches": whole})
    cpu, failed, cache = diagnose()
    assert (cpu.name, cache.name) == ("cpu", "a")
    assert (failed.status, failed.value) == ("problem", "failed: OSError: no such library")


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch>=2.6", Requirement("torch", "2.6", "")),
        ("huggingface-hub >=0.30", Requirement("huggingface-hub", "0.30", "")),
        ("numpy", Requirement("numpy", "", "")),
        ("timm>=1.0; extra == 'timm'", Requirement("timm", "1.0", "timm")),
        ('ruff ; extra == "test"', Requirement("ruff", "", "test")),
    ],
)
def test_requirements_are_read(line, expected):
    assert Requirement.parse(line) == expected


def test_our_own_metadata_is_read_whole():
    ours = requirements.requirements()
    assert {"torch", "numpy", "opencv-python", "safetensors"} <= {each.name for each in ours if not each.extra}
    assert {each.extra for each in ours} >= {"", "timm", "supervision", "huggingface", "test"}
    assert requirements.required_python() == "3.10"


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("2.6.0+cu124", "2.6", False),
        ("2.10.0", "2.6", False),
        ("2.6", "2.6.0", False),
        ("2.5.1", "2.6", True),
        ("10.0.1", "10.1", True),
        ("0.4.3rc1", "0.4.3", False),
        ("1.0", "", False),
        ("0.9", "1", True),
    ],
)
def test_versions_are_compared_by_number(version, minimum, expected):
    assert is_older(version, minimum) is expected


def test_required_packages_that_are_old_or_missing_are_problems(installed):
    torch_wanted, opencv = Requirement("torch", "2.6", ""), Requirement("opencv-python", "4.8", "")
    installed(torch="2.1.0", opencv_contrib_python_headless="4.10.0")
    assert doctor.check_required(torch_wanted) == DoctorFinding(
        "packages", "torch", "2.1.0, too old", "problem", "Run: pip install --upgrade 'torch>=2.6'"
    )
    assert doctor.check_required(opencv) == DoctorFinding(
        "packages", "opencv-python", "4.10.0 (opencv-contrib-python-headless)"
    )
    installed()
    assert doctor.check_required(torch_wanted) == DoctorFinding(
        "packages", "torch", "not installed", "problem", "Run: pip install 'torch>=2.6'"
    )


@pytest.mark.parametrize(
    ("error", "value", "command"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file"),
            "libGL.so.1: cannot open",
            "opencv-python-headless",
        ),
        (RuntimeError("operator does not exist"), "RuntimeError: operator does not exist", "'opencv-python'"),
    ],
)
def test_a_package_that_is_there_and_cannot_be_imported(installed, monkeypatch, error, value, command):
    def fail(name):
        assert name == "cv2"
        raise error

    installed(opencv_python="4.10.0")
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    finding = doctor.check_required(Requirement("opencv-python", "4.8", ""))
    assert finding.status == "problem" and finding.value.startswith(f"4.10.0, cannot be imported: {value}")
    assert finding.hint == f"Run: pip install --force-reinstall {command}"


def test_optional_packages_that_are_old_or_missing_are_notes(installed):
    timm = Requirement("timm", "1.0", "timm")
    installed(timm="1.0.9")
    assert doctor.check_optional(timm) == DoctorFinding("optional packages", "timm", "1.0.9")
    installed(timm="0.9.16")
    assert doctor.check_optional(timm).hint == "If you use it, run: pip install -U 'm2f-cli[timm]'"
    installed()
    missing = doctor.check_optional(timm)
    assert (missing.status, missing.value) == ("note", "not installed")
    assert missing.hint == "If you want it, run: pip install 'm2f-cli[timm]'"
    assert "ruff" not in found(doctor.check_optional_packages)


def test_an_optional_package_of_two_extras_is_told_once():
    """The real metadata: onnx belongs to the extras onnx and openvino."""
    names = [finding.name for finding in doctor.check_optional_packages()]
    assert "onnx" in names and len(names) == len(set(names))


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.18")
    assert doctor.check_python("3.10").status == "problem"
    assert doctor.check_python("3.9").status == "ok"


# --- devices ----------------------------------------------------------------------------------------------------------


def test_no_gpu_is_a_note_with_a_cuda_build_and_nothing_without(gpus, monkeypatch):
    gpus()
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cuda = found(doctor.check_devices)["cuda"]
    assert (cuda.status, cuda.value) == ("note", "torch is built for CUDA 12.6 and sees no GPU")
    assert "CUDA_VISIBLE_DEVICES=''" in cuda.hint
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert found(doctor.check_devices)["cuda"].status == "ok"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "Install a CUDA build" in found(doctor.check_devices)["cuda"].hint


def test_gpus_and_what_auto_takes(gpus):
    gpus(("Tesla T4", 15 << 30, 7, 5), ("NVIDIA H200", 139 << 30, 9, 0))
    devices = found(doctor.check_devices)
    assert devices["cuda:0"].value == "Tesla T4, 15.0 GiB, capability 7.5"
    assert devices["cuda:1"].value == "NVIDIA H200, 139.0 GiB, capability 9.0"
    assert devices["--device auto"].value == "takes cuda" and "cuda" not in devices
    precisions = found(doctor.check_precisions)
    assert precisions["cuda:0"].value == "good at fp32, fp16"
    assert precisions["cuda:1"].value == "good at fp32, fp16, bf16"


def test_what_torch_warns_of_is_said(gpus, monkeypatch):
    def warns():
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    gpus()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", warns)
    assert found(doctor.check_devices)["cuda"].hint == "The NVIDIA driver on your system is too old"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), ["fp32"]),
        ((7, 0), ["fp32", "fp16"]),
        ((8, 0), ["fp32", "fp16", "bf16"]),
        ((12, 0), ["fp32", "fp16", "bf16"]),
    ],
)
def test_precisions_of_a_gpu(capability, expected):
    assert devices.gpu_precisions(capability) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", ["fp32", "bf16"]),
        ("flags\t\t: fpu amx_bf16\n", ["fp32", "bf16"]),
        ("Features\t: fp asimd bf16 i8mm\n", ["fp32", "bf16"]),
        ("flags\t\t: fpu avx512f avx2\n", ["fp32"]),
        ("", ["fp32"]),
    ],
)
def test_precisions_of_a_cpu(tmp_path, monkeypatch, text, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n{text}")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    assert devices.cpu_precisions() == expected
    assert doctor.cpu_name() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "none")
    assert devices.cpu_precisions() == ["fp32"]


def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", limit)
    plain = doctor.memory_size()
    limit.write_text("max\n")
    assert doctor.memory_size() == plain
    limit.write_text(f"{256 << 20}\n")
    assert doctor.memory_size() == f"256.0 MiB (limit of the container; the machine has {plain})"


# --- deformable attention ---------------------------------------------------------------------------------------------


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(doctor, "devices", lambda: [torch.device("cpu")])


def test_all_implementations_agree_here(only_cpu, monkeypatch):
    monkeypatch.delenv("M2F_DEFORM_ATTN", raising=False)
    findings = found(doctor.check_deform_attn)
    assert set(findings) == {f"cpu {impl}" for impl in op.EVERYWHERE}
    assert all(finding.status == "ok" for finding in findings.values())
    assert [name for name, each in findings.items() if each.value.endswith(", used here")] == ["cpu bag"]


def test_a_wrong_value_is_found(only_cpu, monkeypatch):
    right = op.embedding_bag.sample
    monkeypatch.setattr(op.embedding_bag, "sample", lambda *inputs: right(*inputs) + 3e-4)
    findings = found(doctor.check_deform_attn)
    assert findings["cpu bag"].status == "problem" and findings["cpu gather"].status == "ok"
    assert findings["cpu bag"].value.startswith("off by 3.0e-04 from the reference")


@pytest.mark.parametrize("wrong", [0, 2, 3, 4])
def test_a_wrong_gradient_is_found(only_cpu, monkeypatch, wrong):
    """Of the values, x, y or weights; the output itself stays right."""
    right = op.gather.sample

    def doubled(*inputs):
        inputs = list(inputs)
        inputs[wrong] = 2 * inputs[wrong] - inputs[wrong].detach()
        return right(*inputs)

    monkeypatch.setattr(op.gather, "sample", doubled)
    findings = found(doctor.check_deform_attn)
    assert findings["cpu gather"].status == "problem" and findings["cpu bag"].status == "ok"


def test_nan_and_failure_are_problems_where_it_is_used(only_cpu, monkeypatch):
    right = op.embedding_bag.sample
    monkeypatch.setattr(op.embedding_bag, "sample", lambda *inputs: right(*inputs) * float("nan"))
    assert found(doctor.check_deform_attn)["cpu bag"].status == "problem"

    def fails(*inputs):
        raise NotImplementedError("aten::x is not implemented for this device.\nmore")

    monkeypatch.setattr(op.embedding_bag, "sample", fails)
    bag = found(doctor.check_deform_attn)["cpu bag"]
    assert bag.status == "problem" and "NotImplementedError: aten::x is not implemented" in bag.value
    monkeypatch.setenv("M2F_DEFORM_ATTN", "gather")
    assert found(doctor.check_deform_attn)["cpu bag"].status == "note"


def test_the_override_is_shown(only_cpu, monkeypatch):
    monkeypatch.setenv("M2F_DEFORM_ATTN", "gather")
    findings = found(doctor.check_deform_attn)
    assert (findings["M2F_DEFORM_ATTN"].status, findings["M2F_DEFORM_ATTN"].value) == ("note", "gather")
    assert findings["cpu gather"].value.endswith(", used here")
    monkeypatch.setenv("M2F_DEFORM_ATTN", "fastest")
    findings = found(doctor.check_deform_attn)
    assert findings["M2F_DEFORM_ATTN"].status == "problem" and "'fastest'" in findings["M2F_DEFORM_ATTN"].value
    assert findings["cpu bag"].status == "ok"


def test_the_way_of_linear_layers_is_shown(monkeypatch):
    monkeypatch.delenv("M2F_LINEAR", raising=False)
    monkeypatch.setattr(linear, "is_blas_slow", lambda: True)
    monkeypatch.setattr(linear, "fused_kernel_available", lambda dtype: True)
    slow = "MKL's matrix products are slow on this processor"
    assert found(doctor.check_linear)["cpu"].value == f"training fused, prediction fused; {slow}"
    monkeypatch.setattr(linear, "is_blas_slow", lambda: False)
    monkeypatch.setattr(linear, "fused_kernel_available", lambda dtype: False)
    assert found(doctor.check_linear)["cpu"].value == "training blas, prediction blas"
    monkeypatch.setenv("M2F_LINEAR", "fused")
    findings = found(doctor.check_linear)
    assert (findings["M2F_LINEAR"].status, findings["cpu"].value) == ("note", "training fused, prediction fused")
    monkeypatch.setenv("M2F_LINEAR", "fastest")
    assert found(doctor.check_linear)["M2F_LINEAR"].status == "problem"


# --- files and settings -----------------------------------------------------------------------------------------------


def test_caches_say_where_how_much_and_whether_there_is_a_network(tmp_path, monkeypatch):
    (tmp_path / "m2f" / "weights").mkdir(parents=True)
    file = tmp_path / "m2f" / "weights" / "a.pkl"
    file.write_bytes(bytes(3 << 20))
    file.with_name("link.pkl").symlink_to(file)
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "m2f"))
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@mirror.example:8080/hub")
    for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    caches = found(doctor.check_caches)
    assert caches["M2F_HOME"].value.startswith(f"{tmp_path / 'm2f' / 'weights'}: 3.0 MiB used, ")
    assert (caches["network"].status, caches["network"].value) == ("ok", "allowed, the hub is mirror.example")
    monkeypatch.setenv("M2F_OFFLINE", "1")
    assert found(doctor.check_caches)["network"].status == "note"
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "new"))
    assert "0.0 MiB used" in found(doctor.check_caches)["M2F_HOME"].value
    assert not (tmp_path / "new").exists()


def test_a_cache_that_is_full_or_locked_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 30))
    full = doctor.check_cache("M2F_HOME", tmp_path)
    assert full.status == "note" and "1.0 GiB free" in full.value
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    locked = doctor.check_cache("M2F_HOME", tmp_path / "deeper")
    assert locked.status == "note" and locked.value.endswith(", not writable") and "set M2F_HOME" in locked.hint


def test_presets_that_are_missing_or_broken(monkeypatch):
    monkeypatch.setattr(config, "preset_names", lambda: ())
    presets = found(doctor.check_configuration)["presets"]
    assert presets.status == "problem" and "--force-reinstall m2f-cli" in presets.hint

    def broken(name):
        raise ConfigError(f"{name}: the key 'task' is missing.")

    monkeypatch.setattr(config, "preset_names", lambda: ("mine",))
    monkeypatch.setattr(config, "load", broken)
    *_, failed = doctor.examined("configuration", doctor.check_configuration)
    assert failed.status == "problem" and "mine: the key 'task' is missing." in failed.value


def test_plug_ins_of_others(monkeypatch):
    entries = [
        metadata.EntryPoint("good", "m2f_cli.errors:M2FError", "m2f.backbones"),
        metadata.EntryPoint("bad", "no_such_module_at_all:x", "m2f.metrics"),
        metadata.EntryPoint("swin", "m2f_cli.errors:M2FError", "m2f.backbones"),
        metadata.EntryPoint("else", "x:y", "console_scripts"),
    ]
    package = types.SimpleNamespace(metadata={"Name": "my-pkg"}, entry_points=entries)
    monkeypatch.setattr(metadata, "distributions", lambda: [package])
    findings = found(doctor.check_plugins)
    assert set(findings) == {"backbones good", "metrics bad", "backbones swin"}
    assert findings["backbones good"].value == "m2f_cli.errors:M2FError of my-pkg"
    assert findings["metrics bad"].status == "problem" and findings["metrics bad"].hint == "Repair or uninstall my-pkg."
    assert "swin" in plugins.BUILT_IN["backbones"] and findings["backbones swin"].status == "note"
    monkeypatch.setattr(metadata, "distributions", list)
    assert [each.value for each in doctor.check_plugins()] == ["none"]


def test_an_implementation_that_does_not_run_here(monkeypatch):
    monkeypatch.setenv("M2F_DEFORM_ATTN", "triton")
    found = list(doctor.check_deform_attn())
    [finding] = [each for each in found if each.name == "cpu triton"]
    assert finding.status == "problem" and "M2F_DEFORM_ATTN" in finding.hint
    assert any(each.name == "cpu reference" for each in found)
