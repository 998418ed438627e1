"""What the mutants of weights, archives and exports found, as the product has it right now."""

from __future__ import annotations

import zipfile

import pytest
import torch
from fuzz import exported
from fuzz.checkpoints import foreign, load, load_backbone
from fuzz.run_folders import run_parts, run_state

from m2f_cli.errors import DataError, M2FError, WeightsError, about
from m2f_cli.inference.engines import base as engines
from m2f_cli.inference.engines.onnx_engine import OnnxEngine
from m2f_cli.inference.engines.torch_engine import read_description
from m2f_cli.runtime import archives, trees
from m2f_cli.training import resume
from m2f_cli.weights import checkpoint


def test_a_name_is_put_in_front_of_errors_that_lack_it():
    with pytest.raises(WeightsError) as caught, about("a.pth"):
        raise WeightsError("It is bad.", hint="Copy it.")
    assert str(caught.value) == "a.pth: It is bad. Copy it." and caught.value.args == ("a.pth: It is bad.",)
    with pytest.raises(M2FError) as caught, about("a.pth"):
        raise M2FError("In a.pth is nothing.")
    assert str(caught.value) == "In a.pth is nothing."
    with pytest.raises(KeyError, match="^'x'$"), about("a.pth"):
        raise KeyError("x")


def left_out(state):
    state.pop("sem_seg_head.pixel_decoder.mask_features.bias")


def quantised(state):
    name = "sem_seg_head.pixel_decoder.mask_features.bias"
    state[name] = state[name].to(torch.int8)


def diverged(state):
    name = "sem_seg_head.pixel_decoder.mask_features.bias"
    state[name] = state[name] * float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [(left_out, "1 missing"), (quantised, "numbers of the type int8"), (diverged, "are NaN or infinite")],
)
def test_errors_about_the_tensors_of_a_file_name_it(tmp_path, change, message):
    state = dict(foreign())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        load(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_a_backbone_with_broken_numbers_names_its_file(tmp_path):
    names = {name.removeprefix("backbone."): x for name, x in foreign().items() if name.startswith("backbone.")}
    torch.save(
        {name: x * float("nan") if x.is_floating_point() else x for name, x in names.items()}, tmp_path / "swin.pth"
    )
    with pytest.raises(WeightsError, match=r"swin\.pth: The weights are broken"):
        load_backbone(tmp_path / "swin.pth")


def test_a_refused_pickle_names_its_file(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(WeightsError, match=r"a\.pkl: The file was refused: it asks for os\.system"):
        load(tmp_path / "a.pkl")


def test_a_header_that_is_no_json_names_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.write_safetensors(path, {"a": torch.zeros(1)}, {"m2f": "{"})
    with pytest.raises(WeightsError, match=r"The header of .*a\.safetensors is not valid json"):
        load(path)


def test_a_state_of_random_numbers_that_is_none_is_refused():
    with pytest.raises(WeightsError, match="random numbers makes no sense"):
        resume.set_random_state({"torch": "x"}, run_parts().device)
    resume.restore(run_parts(), run_state())


def test_a_zip_with_a_nameless_file_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = ""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, archive.open(info, "w") as member:
        member.write(b"x")
    with pytest.raises(DataError, match=r"a\.zip: the name '' leads out of it"):
        trees.open_tree(tmp_path / "a.zip")


def test_a_description_of_onnx_that_is_not_utf_8(tmp_path):
    content = exported.onnx_file("{" + "x" * 20)
    (tmp_path / "a.onnx").write_bytes(content.replace(b"x" * 20, b"\xfe" * 20))
    with pytest.raises(WeightsError, match=r"The description in .*a\.onnx is damaged: it is not text in UTF-8"):
        OnnxEngine(tmp_path / "a.onnx")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packed_description_of_a_program_that_is_damaged(tmp_path, method):
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/extra/m2f", str(list(range(1000))))
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pt2 is damaged or no \.pt2 file"):
        read_description(path)


def test_a_program_with_a_long_table_of_contents_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/m2f", "{}")
    monkeypatch.setattr(archives, "MOST_DIRECTORY", 10)
    with pytest.raises(WeightsError, match=r"a\.pt2 has a table of contents of \d+ bytes; 10 are allowed"):
        read_description(path)


def test_the_network_of_the_mutants_is_a_good_one(tmp_path):
    """Else every mutant would be refused for the same reason."""
    text = exported.json.dumps(exported.described())
    (tmp_path / "a.onnx").write_bytes(exported.onnx_file(text))
    assert exported.use(tmp_path / "a.onnx").size == (40, 60)
    assert engines.engine_for(tmp_path / "a.onnx") == "onnx"
