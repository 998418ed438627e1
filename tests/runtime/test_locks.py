"""One process at a time writes a folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from m2f_cli.errors import ConfigError
from m2f_cli.runtime.locks import LOCK, is_lock, locked, staged

HOLD = (
    "import sys, time; from pathlib import Path; from m2f_cli.runtime.locks import locked\n"
    "with locked(Path(sys.argv[1]), 'A training'): print('in', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path, holder):
    refused = pytest.raises(ConfigError, match=rf"A training is at work in .* \(process {holder.pid} on ")
    with refused, locked(tmp_path, "A training"):
        pass


@pytest.mark.parametrize("content", ["[" * 200_000, '{"pid": 1e999, "host": "x", "since": "x"}', "pipe"])
def test_a_damaged_record_of_the_owner(tmp_path, holder, content):
    record = tmp_path / f"{LOCK}.json"
    record.unlink()
    if content == "pipe":
        os.mkfifo(record)
    else:
        record.write_text(content)
    with pytest.raises(ConfigError, match="its process is not known"), locked(tmp_path, "A training"):
        pass


def test_a_lock_of_a_killed_process_stops_nobody(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path, "A training"):
        pass


def test_nothing_stays_and_a_folder_made_for_the_lock_goes_too(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with locked(tmp_path / name, "A training"):
            assert str(os.getpid()) in (tmp_path / name / ".m2f.lock.json").read_text()
            assert all(is_lock(path) for path in (tmp_path / name).iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and not list((tmp_path / "old").iterdir())
    with locked(tmp_path / "new", "A training"):
        (tmp_path / "new" / "x").write_text("")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_the_same_process_does_not_lock_twice(tmp_path):
    refused = pytest.raises(ConfigError, match="A training is at work")
    with locked(tmp_path, "A training"), refused, locked(tmp_path, "A training"):
        pass
    with locked(tmp_path, "A training"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    """Workers of a training live on for some seconds when it is killed."""
    script = (
        "import os, signal, sys, time; from pathlib import Path; from m2f_cli.runtime.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'A training'):\n"
        "    child = os.fork()\n"
        "    if child == 0: os.close(1); time.sleep(60)\n"
        "    print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, check=False)
    child = int(done.stdout)
    try:
        os.kill(child, 0)  # it is there
        with locked(tmp_path, "A training"):
            pass
    finally:
        os.kill(child, 9)


def test_where_nothing_can_be_locked_the_record_of_the_owner_counts(tmp_path, monkeypatch, holder):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ConfigError, match=f"process {holder.pid} on "), locked(tmp_path, "A training"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path, "A training"):
        pass


def test_a_staging_folder_is_one_process_s_and_is_cleared(tmp_path):
    left = tmp_path / ".x.onnx.part" / "new"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    refused = pytest.raises(ConfigError, match=r"An export is at work in .*/x.onnx already")
    with staged(tmp_path / "x.onnx", "An export") as folder:
        assert not list(folder.iterdir())
        with refused, staged(tmp_path / "x.onnx", "An export"):
            pass
        with staged(tmp_path / "y.onnx", "An export"):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("name", [".m2f.lock", ".m2f.lock.json"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_place_of_the_lock_changes_no_other_file(tmp_path, name, exists):
    (tmp_path / "run").mkdir()
    other = tmp_path / "other"
    if exists:
        other.write_text("mine")
    (tmp_path / "run" / name).symlink_to(other)
    if name == ".m2f.lock":
        refused = pytest.raises(ConfigError, match=r"m2f.lock is a link, .* Remove the link.")
        with refused, locked(tmp_path / "run", "A training"):
            pass
    else:
        with locked(tmp_path / "run", "A training"):
            pass
    assert (other.read_text() == "mine") if exists else not other.exists()


def test_a_process_killed_while_it_wrote_its_record_leaves_nothing(tmp_path):
    """The record is written whole, so that half of one has a temporary name. Folders inside are another process's."""
    room, inside = tmp_path / ".out.part", tmp_path / ".out.part" / "other"
    inside.mkdir(parents=True)
    (room / ".12-34.part").write_text("{")
    (inside / ".12-34.part").write_text("{")
    with locked(room, "An export"):
        assert not (room / ".12-34.part").exists() and (inside / ".12-34.part").exists()
    (inside / ".12-34.part").unlink()
    inside.rmdir()
    (room / ".12-34.part").write_text("{")
    with staged(tmp_path / "out", "An export"):
        pass
    assert not list(tmp_path.iterdir())
