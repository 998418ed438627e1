"""Where numbers go: each logger writes for real, offline, and is read back."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest
from training.tiny import settings

from m2f_cli.dataset_tools.prepare.journal import PrepareJournal as PrepareJournal
from m2f_cli.errors import ConfigError, MissingDependency
from m2f_cli.evaluation import journal as image_journal
from m2f_cli.inference.journal import Journal
from m2f_cli.inference.sources import RUN_MARK
from m2f_cli.training import run
from m2f_cli.training.loggers import LOGGERS, JsonLinesLogger, make_loggers
from m2f_cli.workflows import demo

CONFIG = {"name": "tiny", "train": {"batch": 4, "steps": [1, 2], "nothing": None}}


def write(names, folder, from_iteration=0, iterations=range(3)):
    loggers = make_loggers(names, folder, CONFIG, from_iteration=from_iteration)
    for logger in loggers:
        for i in iterations:
            logger.log("train", i, {"loss": 10.0 - i, "lr": 1e-4})
        logger.log("val", 3, {"pq": 50.0})
        logger.close()


def test_json_lines_forget_what_is_done_again(tmp_path):
    log = JsonLinesLogger(tmp_path / "metrics.jsonl")
    for i in range(4):
        log.log("train", i, {"loss": float(i)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # killed while writing
    JsonLinesLogger(tmp_path / "metrics.jsonl", from_iteration=2).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [0.0, 1.0]


def test_unknown_and_missing_loggers(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no logger named 'tensorbord'.*tensorboard"):
        make_loggers(["tensorbord"], tmp_path, {}, from_iteration=0)
    for name in LOGGERS:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
        with pytest.raises(MissingDependency, match=rf"pip install 'm2f-cli\[{name}\]'"):
            make_loggers([name], tmp_path, {}, from_iteration=0)


def test_tensorboard_has_each_step_once_after_resuming(tmp_path):
    """A resumed run goes on in the same folder; what it does again is there once."""
    pytest.importorskip("tensorboard", reason="needs the extra m2f-cli[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(["tensorboard"], tmp_path)
    write(["tensorboard"], tmp_path, from_iteration=2, iterations=range(2, 5))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(i, 10.0 - i) for i in range(5)]
    assert [(e.step, e.value) for e in events.Scalars("val/pq")] == [(3, 50.0)]


def run_offline(name, folder, **environment):
    """In a process of its own: these packages keep threads and global state."""
    script = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from pathlib import Path\n"
        "from training.test_logs import write\n"
        f"write([{name!r}], Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "", "stdout is for results"


def chunks(data):
    """What a file of a LevelDB log holds, as wandb writes it: a header of 7 bytes, then (checksum, length, kind, data);
    the test's are all whole and in one block."""
    position = 7
    while position < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, position)
        assert kind == 1 and length < 32768
        yield data[position + 7 : position + 7 + length]
        position += 7 + length


def test_wandb_logs_offline(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra m2f-cli[wandb]")
    folder = tmp_path / "first"
    folder.mkdir()
    run_offline("wandb", folder, WANDB_MODE="offline")
    [file] = folder.glob("wandb/offline-run-*/run-*.wandb")
    from wandb.proto import wandb_internal_pb2

    rows, names = [], []
    for data in chunks(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        names += [record.run.display_name] if record.HasField("run") else []
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert "first" in names
    assert [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row] == [(0, 10), (1, 9), (2, 8)]
    assert [(row["_step"], row["val/pq"]) for row in rows if "val/pq" in row] == [(3, 50)]


def test_trackio_logs_on_this_machine(tmp_path):
    pytest.importorskip("trackio", reason="needs the extra m2f-cli[trackio]")
    import sqlite3

    folder = tmp_path / "first"
    folder.mkdir()
    run_offline("trackio", folder, TRACKIO_DIR=str(tmp_path / "kept"), HF_HUB_OFFLINE="1")
    [file] = (tmp_path / "kept").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    found = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    assert [(name, step, m["train/loss"]) for name, step, m in found if "train/loss" in m] == [
        ("first", i, 10 - i) for i in range(3)
    ]
    assert [(step, m["val/pq"]) for _, step, m in found if "val/pq" in m] == [(3, 50)]


def test_a_missing_package_is_found_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingDependency, match="--logger trackio needs the package trackio"):
        run.start(settings(), tmp_path / "run", run.TrainOptions(init="random", device="cpu", loggers=("trackio",)))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_in_place_of_a_file_that_is_added_to_is_refused(tmp_path):
    """Of a run, a demo, `data prepare`, `predict` and `eval`."""
    other = tmp_path / "other"
    other.write_text("mine")
    adding = {
        "metrics.jsonl": JsonLinesLogger,
        demo.MARK: lambda path: demo.record_file(path.parent, "x"),
        RUN_MARK: lambda path: Journal(path.parent, {"model": "x"}),
        ".table.journal": lambda path: PrepareJournal(path.parent / "table"),
        "pictures.jsonl": lambda path: image_journal.appending(path, {"model": "x"}).__enter__(),
    }
    for name, add in adding.items():
        (tmp_path / name).symlink_to(other)
        with pytest.raises(ConfigError, match="is a link, and m2f would write to what it leads to"):
            add(tmp_path / name)
    assert other.read_text() == "mine"
