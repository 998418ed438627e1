"""What lies in tests/golden: every stage, few megabytes, and nothing but what make.py makes of the full fixtures."""

from __future__ import annotations

import gzip
import importlib.util
import sys

import numpy as np
import pytest
from helpers.golden_files import OURS, files_in, info_of, read, read_list

STAGES = ["01", "02_", "02b", "03", "04", "05a", "05b", "06", "07", "08a", "08b", "08c", "08d", "08e", "09"]
STAGES += ["v01", "v02_", "v02b", "v03_", "v04"]
LISTS = [
    f"{kind}_{method}"
    for kind in ("10_optimiser", "11_param_names")
    for method in ("mask2former", "maskformer", "mpformer")
]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_file_in_the_repository(stage):
    found = files_in(OURS, (stage,))
    assert found
    for path in found:
        file = read(path)
        assert file.tensors and set(file.info.get("tensors", file.tensors)) == set(file.tensors)


def test_lists_of_names_and_groups_are_in_the_repository():
    assert all(read_list(name)["models"] for name in [*LISTS, "12_hf_key_lists"])
    assert read_list("12_hf_name_table")["tables"]
    assert all(map(read_list, ("v06_param_names_eomt", "v06_param_names_pmt", "v07_hf_key_lists", "v07_hf_name_table")))


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in OURS.iterdir() if path.is_file()) < 20e6


def test_a_file_is_found_by_its_stage_whatever_its_form(tmp_path):
    from safetensors.torch import save_file

    [path, *_] = files_in(OURS, ("05a",))
    file = read(path)
    save_file(file.tensors, tmp_path / "05z_other.safetensors")
    (tmp_path / "05z_other.json").write_text(path.read_text())
    (tmp_path / "05_alone.json").write_text("{}")
    assert files_in(tmp_path, ("05",)) == [tmp_path / "05z_other.json"]
    again = read(tmp_path / "05z_other.json")
    assert again.tensors.keys() == file.tensors.keys()
    assert all(again.tensors[name].equal(tensor) for name, tensor in file.tensors.items())


def test_make_gives_what_is_committed(shared_dir, tmp_path):
    spec = importlib.util.spec_from_file_location("make_golden", OURS / "make.py")
    make = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = make
    spec.loader.exec_module(make)
    make.build(shared_dir / "golden", tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in OURS.iterdir() if path.is_file()} - {"make.py", "README.md"}
    for path in files_in(tmp_path, ("0", "v")):
        assert info_of(path) == info_of(OURS / path.name)
        with np.load(path.with_suffix(".npz")) as ours, np.load(OURS / f"{path.stem}.npz") as committed:
            assert ours.files == committed.files
            assert all(np.array_equal(ours[name], committed[name]) for name in ours.files)
    for path in tmp_path.glob("*.gz"):
        assert gzip.decompress(path.read_bytes()) == gzip.decompress((OURS / path.name).read_bytes())
