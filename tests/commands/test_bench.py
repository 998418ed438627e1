"""m2f bench from the command line, over results that nobody had to measure."""

from __future__ import annotations

import json

import pytest

from m2f_cli import cli
from m2f_cli.errors import ConfigError, DataError, ExportError, WeightsError
from m2f_cli.runtime import allocator


def tree_of(case, options=None) -> dict:
    side = {
        "seconds": [0.5],
        "median": 0.5,
        "low": 0.5,
        "high": 0.5,
        "images_per_second": 2.0,
        "cpu_seconds": 1.0,
        "other_cores": 0.0,
        "joules_per_image": None,
        "stages": None,
        "memory": {
            "resident_growth_mib": 512.0,
            "resident_peak_mib": 512.0,
            "device_peak_mib": None,
            "device_reserved_mib": None,
        },
    }
    return {
        "schema_version": 1,
        "what": case.what,
        "precision": case.precision,
        "batch": case.batch,
        "compile": case.compile,
        "engine": case.engine,
        "threads": 1,
        "rounds": 1,
        "warm_up": 1,
        "device": "a cpu",
        "protocol": "…",
        "model": {"name": case.preset or "model", "weights": "random", "parameters": {}},
        "network_input": list(case.size or (64, 96)),
        "matmul_peak": 1e9,
        "share_of_peak": None,
        "sides": {"m2f": side},
        "machine": {
            "allocator": {"name": "glibc", "settings": {}},
            "torch": "2",
            "load_before": 0.1,
            "load_after": 0.2,
            "energy": "not told",
        },
        "peer": None,
        "ratio": None,
        "difference": None,
        "flops": None,
    }


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What would have been measured."""
    from m2f_cli.benchmark import interleaved as race
    from m2f_cli.benchmark import report as results

    made = []

    def fake(case, options, on_round=None):
        made.append((case, options))
        if case.preset == "ade20k-r50":
            raise ExportError("It does not fit.")
        return tree_of(case)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(race, "bench", fake)
    monkeypatch.setattr(results, "bench", fake)
    return made


def test_every_option_arrives(calls, tmp_path, capsys):
    options = (
        "bench --preset cityscapes-swin-t --what predict --device cpu --precision bf16 --size 64 96 --batch 2 "
        "--images 3 --source photos --against huggingface-compiled --peer-precision fp32 --rounds 7 --warm-up 3 "
        "--threads 1 --compile --out here --json"
    )
    assert cli.run(options.split()) == 0
    [(case, chosen)] = calls
    assert (case.preset, case.model, case.what, case.device) == ("cityscapes-swin-t", None, "predict", "cpu")
    assert (case.precision, case.size, case.batch, case.images, case.threads) == ("bf16", (64, 96), 2, 3, 1)
    assert case.source == "photos" and case.compile and case.engine is None and not case.trust_code
    assert (chosen.rounds, chosen.warm_up, chosen.peer, chosen.peer_compile) == (7, 3, "huggingface", True)
    assert chosen.peer_precision == "fp32"
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1 and found["sides"]["m2f"]["median"] == 0.5
    file = tmp_path / "here" / "cityscapes-swin-t-predict-bf16-64x96-b2-compiled.json"
    assert json.loads(file.read_text())["what"] == "predict" and file.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        ("--what predict", True),
        ("--what forward", False),
        ("--what forward --keep-memory", True),
        ("--what predict --no-keep-memory", False),
        ("--no-keep-memory", False),
    ],
)
def test_our_side_keeps_memory_as_the_command_does(calls, words, keeps, monkeypatch):
    monkeypatch.setattr(allocator, "is_glibc", lambda: True)
    before, after = (words.split(), ["--what", "predict"]) if words == "--no-keep-memory" else ([], words.split())
    assert cli.run([*before, "bench", "--preset", "cityscapes-swin-t", *after]) == 0
    assert calls[0][0].keep_memory is keeps


@pytest.mark.parametrize(("option", "error"), [("--model", WeightsError), ("--preset", ConfigError)])
def test_a_name_that_nothing_has_starts_no_process(calls, option, error, capsys):
    assert cli.run(["bench", option, "cityscapes-swin-tt"]) == error.exit_code
    assert "Did you mean cityscapes-swin-t" in capsys.readouterr().err and not calls


def test_what_the_number_format_costs_is_told(calls, tmp_path, capsys, monkeypatch):
    from m2f_cli.benchmark import quality

    found = {
        "name": "PQ",
        "a": 60.0,
        "b": 59.9,
        "difference": -0.1,
        "low": -0.3,
        "high": 0.2,
        "pictures": 64,
        "data": "photos",
    }
    asked = []
    monkeypatch.setattr(quality, "check", lambda case, data: None)
    monkeypatch.setattr(quality, "lost", lambda case, data: asked.append((case.precision, str(data))) or found)
    (tmp_path / "mine").mkdir()
    assert cli.run(["bench", "--model", "mine", "--precision", "bf16", "--quality", "photos"]) == 0
    assert asked == [("bf16", "photos")]
    out = capsys.readouterr().out
    line = "quality in bf16: PQ 59.90 beside 60.00 in fp32, -0.10 (95 %: -0.30 to +0.20) over 64 images of photos"
    assert line in out
    [file] = (tmp_path / "runs" / "bench").glob("*.json")
    assert json.loads(file.read_text())["quality"] == found

    def broken(case, data):
        raise DataError("The disk is gone.")

    monkeypatch.setattr(quality, "lost", broken)
    assert cli.run(["bench", "--model", "mine", "--precision", "bf16", "--quality", "photos"]) == DataError.exit_code
    assert len(list((tmp_path / "runs" / "bench").glob("*.json"))) == 2  # the minutes of timing are not lost


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--preset all", "--preset all are random"),
        ("--preset ade20k-swin-t --precision bf16", "these are random"),
        ("--model mine", "compares a number format with fp32"),
    ],
)
def test_quality_needs_trained_weights_and_another_format(arguments, says, calls, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert cli.run(["bench", *arguments.split(), "--quality", "photos"]) == 2
    assert says in capsys.readouterr().err and not calls


def test_the_short_way_is_the_network_alone(calls, tmp_path, capsys):
    assert cli.run(["bench", "--model", "some/where"]) == 0
    [(case, options)] = calls
    assert (case.what, case.model, case.preset, case.size) == ("forward", "some/where", None, None)
    assert (options.peer, options.peer_compile) == (None, False)
    out = capsys.readouterr().out
    assert out.startswith("forward of model (random weights), 1 x 3 x 64 x 96, fp32, on a cpu, torch 2, 1 threads, gl")
    assert "m2f\t0.5\t" in out and "energy: not told" in out and "Results: runs/bench/model-forward" in out


def test_all_rows_go_where_the_table_looks(calls, tmp_path, capsys, monkeypatch):
    from m2f_cli.benchmark import report as results
    from m2f_cli.config import presets as config

    names = ["cityscapes-swin-t", "ade20k-r50"]
    monkeypatch.setattr(results, "table_presets", lambda: [config.load(name) for name in names])
    assert cli.run(["bench", "--preset", "all", "--precision", "bf16"]) == 1  # one of them failed
    out, err = capsys.readouterr()
    where = "a cpu, 1 thread, bf16"
    assert f"cityscapes-swin-t\t2\t0.50\t{where}" in out and "1 of 2 presets measured, in runs/bench" in out
    assert "ade20k-r50: It does not fit." in err
    assert [(case.what, options.rounds, options.warm_up) for case, options in calls] == [("picture", 20, 4)] * 2
    assert cli.run(["bench", "--preset", "all", "--precision", "bf16", "--rounds", "2", "--skip-existing"]) == 1
    assert [(case.preset, options.rounds) for case, options in calls[2:]] == [("ade20k-r50", 2)]
    capsys.readouterr()
    assert cli.run(["presets", "table", "cityscapes-swin-t", "--format", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"][:1]
    assert (row["preset"], row["measured_fps"], row["measured_on"]) == ("cityscapes-swin-t", 2.0, where)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--what forwards", "Did you mean forward"),
        ("--against torch", "huggingface"),
        ("--precision int8", "int8"),
        ("--engine warp", "warp"),
        ("--preset a --model b", "exclude each other"),
        ("--preset all --against huggingface", "without --against"),
        ("--preset all --what forward", "image or train"),
        ("--preset all --size 64 64", "without --size"),
        ("--preset all --batch 2", "without --batch"),
        ("--what post --batch 2", "--batch changes nothing about --what post"),
        ("--what load --size 9 9", "--size"),
        ("--images 2", "It is for --what predict, eval"),
        ("--source photos", "--what forward"),
        ("--what load --compile", "--compile"),
        ("--size 0 64", "--size 0 64: an image has at least one row"),
        ("--skip-existing", "is for --preset all"),
        ("--peer-precision fp32", "is for --against"),
        ("--against huggingface --peer-precision fp33", "fp33"),
        ("--what post --against published-compiled", "nothing to compile in --what post"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_measured(calls, capsys, options, words):
    assert cli.run(["bench", *options.split()]) == 2
    assert words in capsys.readouterr().err and not calls


def test_auto_is_what_the_device_is_good_at(calls, monkeypatch, tmp_path):
    from m2f_cli.benchmark import model_under_test as subject
    from m2f_cli.runtime import devices

    monkeypatch.setattr(subject, "choose_precision", lambda name, device: "bf16" if name == "auto" else name)
    assert cli.run(["bench", "--preset", "small-panoptic", "--precision", "auto", "--device", "cpu"]) == 0
    (tmp_path / "model.onnx").write_bytes(b"")
    assert cli.run(["bench", "--model", "model.onnx", "--precision", "auto"]) == 0
    assert [case.precision for case, _ in calls] == ["bf16", "fp32"]  # of a file: what it was exported in
    assert devices.choose_precision("fp16", None) == "fp16"
