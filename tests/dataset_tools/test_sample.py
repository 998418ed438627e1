"""Small data sets that are shipped: copied whole, sound, free to ship."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from m2f_cli.cli import app
from m2f_cli.data.open_dataset import open_data
from m2f_cli.dataset_tools.sample import SAMPLES, copy_sample, sample_names
from m2f_cli.errors import ConfigError


@pytest.mark.parametrize("name", sample_names())
def test_a_sample_is_small_and_says_its_licence_and_source(name):
    folder = SAMPLES / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Licence: CC0" in text and "Origin: " in text


def test_the_command_copies_it_whole(tmp_path):
    result = CliRunner().invoke(app, ["data", "sample", "nuclei", "--out", str(tmp_path / "my nuclei")])
    assert result.exit_code == 0, result.output
    copied, source = tmp_path / "my nuclei", SAMPLES / "nuclei"
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert sorted(path.relative_to(copied) for path in copied.rglob("*") if path.is_file()) == files
    assert all((copied / file).read_bytes() == (source / file).read_bytes() for file in files)
    assert [path.name for path in tmp_path.iterdir()] == ["my nuclei"]
    assert "m2f data check" in result.output
    assert [len(open_data(copied, split).records) for split in ("train", "val")] == [16, 8]


def test_an_empty_folder_is_filled(tmp_path):
    assert copy_sample("nuclei", tmp_path) > 24
    with pytest.raises(ConfigError, match="no empty folder"):
        copy_sample("nuclei", tmp_path)


def test_an_unknown_name_lists_the_names(tmp_path):
    with pytest.raises(ConfigError, match="nuclei"):
        copy_sample("nucleus", tmp_path / "out")
    with pytest.raises(ConfigError):
        copy_sample("../samples/nuclei", tmp_path / "out")
    assert not list(tmp_path.iterdir())
