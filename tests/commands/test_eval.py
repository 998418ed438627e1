"""m2f eval from the command line, over a network of a few thousand random numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import coco_panoptic
from helpers.parts import tiny_config
from PIL import Image
from training.tiny import settings

from m2f_cli import cli, weights
from m2f_cli.benchmark.case import Case
from m2f_cli.benchmark.quality import lost
from m2f_cli.config import presets as config
from m2f_cli.config.schema import DataConfig, SlideConfig
from m2f_cli.data.synthetic.scenes import CATEGORIES as SCENES
from m2f_cli.inference import segmenter
from m2f_cli.model import build
from m2f_cli.results.colors import COLOR_BLIND


def write_run(folder: Path, categories=SCENES, trained_on: str | None = None, seed: int = 3, **more) -> Path:
    """What training leaves: a checkpoint that describes itself, and how it was trained."""
    tree = settings().model_copy(update={"model": tiny_config(), **more})
    torch.manual_seed(seed)
    model = build(tree.model, len(categories))
    with torch.no_grad():  # queries that differ, sure of many classes: otherwise everything is one class
        for name, parameter in model.decoder.named_parameters():
            if name.startswith("query"):
                parameter.normal_(0, 10)
        model.decoder.class_embed.weight.normal_(0, 1)
        model.decoder.class_embed.bias.zero_()[-1] = -9
    weights.save(folder / "checkpoints" / "best.safetensors", model.state_dict(), tree, categories)
    (folder / "env.json").write_text(json.dumps({"options": {"data": trained_on}}))
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("eval") / "mine")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, finished_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    shutil.copytree(finished_run, tmp_path / "runs" / "train" / "mine")
    return tmp_path


MINE = ["eval", "--model", "runs/train/mine", "--device", "cpu"]


def results(folder: str = "runs/eval/mine") -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def one_error(capsys) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_a_run_on_its_own_data(capsys):
    assert cli.run(MINE) == 0
    out, _ = capsys.readouterr()
    assert "figure\t%" in out and "\npq\t" in out and "class\tpq\tsq\trq" in out
    assert out.endswith(
        "Scored 3 of 3 images. Results: runs/eval/mine\n"
        "Next: m2f predict IMAGES --model runs/train/mine   or   m2f export --model runs/train/mine\n"
        "Report: runs/eval/mine/report.html\n"
    )
    tree, folder = results(), Path("runs/eval/mine")
    assert (tree["schema_version"], tree["scored"], tree["of"], tree["failed"]) == (1, 3, 3, 0)
    assert tree["data"]["format"] == "synthetic" and tree["data"]["folder"] is None and tree["published"] == []
    assert set(tree["per_class"]["pq"]) == {category.name for category in SCENES}
    assert tree["settings"]["thresholds"] == {"score_threshold": 0.0} and len(tree["model"]["weights"]) == 16
    assert config.load(folder / "config.yaml").test.top_k == 12
    assert json.loads((folder / "env.json").read_text())["options"]["model"] == "runs/train/mine"
    assert len((folder / "pictures.jsonl").read_text().splitlines()) == 1 + 3
    assert len((folder / "views.jsonl").read_text().splitlines()) == 1 + 3
    assert "Evaluation of" in (folder / "report.html").read_text()


def test_without_a_report_nothing_is_kept_for_it(capsys):
    assert cli.run([*MINE, "--no-report"]) == 0
    assert "Report:" not in capsys.readouterr().out
    assert sorted(path.name for path in Path("runs/eval/mine").iterdir()) == [
        *("config.yaml", "env.json", "pictures.jsonl", "results.json")
    ]


def test_thumbnails_have_the_size_that_is_asked_for():
    assert cli.run([*MINE, "--thumbnails", "40", "--limit", "1"]) == 0
    view = json.loads(Path("runs/eval/mine/views.jsonl").read_text().splitlines()[1])
    assert max(view["thumbnail"]["size"]) == 40


def test_a_page_that_cannot_be_written_costs_no_figures(capsys):
    assert cli.run(MINE) == 0
    Path("runs/eval/mine/report.html").unlink()
    Path("runs/eval/mine/report.html").mkdir()
    assert cli.run([*MINE, "--resume"]) == 0
    assert "The report was not written" in capsys.readouterr().err and results()["scored"] == 3


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    dry = [*MINE, "--set", "test.top_k=7", "--object-threshold", "0.4", "--limit", "2", "--dry-run"]
    assert cli.run(dry) == 0
    out = capsys.readouterr().out
    assert "Changed: test.top_k = 7\nChanged: object_threshold = 0.4\nImages: 3 images, 9 classes, " in out
    assert "Metrics: pq, of a network with " in out and "Estimate: " in out and "(images: 2 x " in out
    assert out.endswith("Nothing was written. To do it: the same command without --dry-run.\n")
    assert cli.run([*dry, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["data"]["images"] == 3 and tree["data"]["objects"] > 2 and tree["evaluated"] == 2
    assert tree["config"]["test"]["top_k"] == 7 and tree["problems"] == [] and tree["parameters"]["total"] > 1000
    assert tree["seconds"]["whole"] == pytest.approx(2 * tree["seconds"]["image"])
    assert sorted(tmp_path.rglob("*")) == before
    assert cli.run(["eval", "--compare", "a", "b", "--dry-run"]) == 2
    assert "--dry-run looks at the evaluation of a model" in one_error(capsys)


def test_everything_in_one_pass_and_as_json(capsys, monkeypatch):
    seen = []
    infer = segmenter.Segmenter.infer
    monkeypatch.setattr(segmenter.Segmenter, "infer", lambda self, batch: seen.append(1) or infer(self, batch))
    assert cli.run([*MINE, "--metric", "all", "--json", "--out", "o"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree == results("o") and len(seen) == 3
    assert {"pq", "ap", "miou", "boundary-ap", "boundary-iou"} <= set(tree["per_class"])
    assert {"pq", "pq_things", "ap", "ap50", "miou", "fwiou", "pacc"} <= set(tree["figures"])
    assert cli.run([*MINE, "--metric", "pq,miou", "--json", "--out", "p"]) == 0
    some = json.loads(capsys.readouterr().out)
    assert list(some["per_class"]) == ["pq", "miou"]
    assert some["per_class"]["miou"] == tree["per_class"]["miou"]


def test_it_goes_on_and_is_never_overwritten(capsys):
    mine = [*MINE, "--metric", "pq,miou"]
    assert cli.run([*mine, "--limit", "2"]) == 0
    assert "Scored 2 of 3 images. Results: runs/eval/mine\n" in capsys.readouterr().out
    assert cli.run(mine) == 2
    assert "runs/eval/mine exists already. Use --resume to go on" in one_error(capsys)
    assert cli.run([*mine, "--resume"]) == 0
    whole = results()
    assert whole["scored"] == 3
    assert cli.run([*mine, "--out", "fresh"]) == 0
    fresh = results("fresh")
    assert fresh["figures"]["miou"] > 0 and fresh["figures"] == whole["figures"]
    assert fresh["per_class"] == whole["per_class"]
    assert cli.run([*mine, "--resume", "--object-threshold", "0.3"]) == 2
    capsys.readouterr()
    assert cli.run([*mine, "--resume", "--set", "test.overlap_threshold=0.1"]) == 2
    assert "holds an evaluation with test" in one_error(capsys)
    assert cli.run([*MINE, "--resume"]) == 2
    assert "holds an evaluation with metrics" in one_error(capsys)
    write_run(Path("runs/train/mine"), seed=1)
    assert cli.run([*mine, "--resume"]) == 2
    assert "holds an evaluation with weights" in one_error(capsys)


def test_predictions_are_saved_and_score_the_same(capsys):
    assert cli.run([*MINE, "--metric", "pq,ap", "--save", "coco-panoptic,coco-instance", "--save", "overlay"]) == 0
    out = Path("runs/eval/mine/predictions")
    assert len(json.loads((out / "panoptic.json").read_text())["annotations"]) == 3
    assert (out / "instances.json").is_file() and len(list((out / "overlay").iterdir())) == 3
    assert cli.run([*MINE, "--metric", "miou", "--save", "coco-instance", "--out", "o"]) == 2


def test_overlays_are_drawn_as_asked_for(capsys):
    command = [*MINE, "--metric", "miou", "--limit", "1", "--save", "overlay-png"]
    assert cli.run([*command, "--draw", "masks", "--opacity", "1", "--palette", "color-blind"]) == 0
    (path,) = Path("runs/eval/mine/predictions/overlay").iterdir()
    with Image.open(path) as overlay:
        colors = {color for _, color in overlay.getcolors(2**20)}
    assert colors & set(COLOR_BLIND)
    assert json.loads(Path("runs/eval/mine/env.json").read_text())["options"]["draw"]["opacity"] == 1
    capsys.readouterr()
    assert cli.run([*command, "--classes", "squares", "--out", "o"]) == 2
    assert "no class named 'squares'" in one_error(capsys)
    assert cli.run([*MINE, "--legend", "--out", "o"]) == 2
    assert "Add --save overlay." in one_error(capsys) and not Path("o").exists()


def test_what_cannot_be_read_is_reported(tmp_path, capsys):
    coco_panoptic(tmp_path / "coco")
    write_run(tmp_path / "own", _coco_classes(), trained_on="coco")
    assert cli.run(["eval", "--model", "own", "--device", "cpu"]) == 0
    capsys.readouterr()
    (tmp_path / "coco" / "val2017" / "1.jpg").write_text("no image")
    assert cli.run(["eval", "--model", "own", "--device", "cpu", "--out", "o"]) == 1
    assert "None of 1 images could be evaluated. The first, 1:" in one_error(capsys)


def _coco_classes():
    from m2f_cli.data.open_dataset import open_data

    return open_data("coco", "val").categories


def test_some_failures_are_exit_code_3(tmp_path, capsys, monkeypatch):
    from m2f_cli.errors import M2FError

    infer = segmenter.Segmenter.infer
    calls = []

    def second_fails(self, batch):
        calls.append(1)
        if len(calls) == 2:
            raise M2FError("answered with NaN.")
        return infer(self, batch)

    monkeypatch.setattr(segmenter.Segmenter, "infer", second_fails)
    assert cli.run(MINE) == 3
    out, err = capsys.readouterr()
    assert "Scored 2 of 3 images, 1 failed." in out and "failed: scene-000001: answered with NaN." in out
    assert "warning: scene-000001: answered with NaN." in err
    assert results()["failures"] == [{"name": "scene-000001", "message": "answered with NaN."}]
    assert cli.run([*MINE, "--resume"]) == 0 and results()["failed"] == 0


def test_published_figures_stand_beside(tmp_path, capsys):
    published = [
        {"metric": "pq", "value": 50.0, "source": "a paper"},
        {"metric": "miou", "value": 60.0, "source": "a paper", "verified": False},
        {"metric": "pq", "value": 55.0, "source": "a paper", "setting": "multi-scale + flip"},
        {"metric": "fps_a100", "value": 5.0, "source": "a table"},
    ]
    tree = config.parse({**settings().model_dump(mode="json", exclude_none=True), "published": published}, "here")
    write_run(tmp_path / "known", published=tree.published)
    command = ["eval", "--model", "known", "--device", "cpu", "--metric", "pq,miou"]
    assert cli.run(command) == 0
    out, err = capsys.readouterr()
    rows = {row.split("\t")[0]: row.split("\t") for row in out.split("figure\tmeasured")[1].splitlines()[1:3]}
    pq = results("runs/eval/known")["figures"]["pq"]
    assert rows["pq"][1:] == [f"{pq:.2f}", "50.00", f"{pq - 50:+.2f}", "single scale", "a paper"]
    assert rows["miou"][2] == "60.00?" and "fps" not in out and "not comparable" in err
    one, two = results("runs/eval/known")["published"]
    assert one["difference"] == pytest.approx(pq - 50) and not one["comparable"] and not two["verified"]


def test_a_preset_stands_beside_other_weights(tmp_path, capsys):
    path = tmp_path / "other.yaml"
    tree = settings("test.object_threshold=0.05", "data.scenes.val=2")
    path.write_text(config.dump(tree, named=False))
    assert cli.run([*MINE, "--preset", str(path)]) == 0
    assert results("runs/eval/other")["settings"]["test"]["object_threshold"] == 0.05
    assert results("runs/eval/other")["scored"] == 2
    assert cli.run(["eval", "--preset", str(path)]) == 2
    assert "configuration without weights" in capsys.readouterr().err


def test_errors_are_told_apart(capsys):
    assert cli.run([*MINE, "--metric", "pq,pq-errors,calibration"]) == 0
    out, _ = capsys.readouterr()
    assert "error\tPQ\tsegments" in out and "pq_lost" not in out
    worst = results()["tables"]["pq-errors"]["worst_pictures"]
    assert {row["name"] for row in worst} <= {f"scene-{i:06d}" for i in range(3)} and worst
    assert all(f"\n{row['name']}\t" in out for row in worst)


def test_thresholds_are_swept(capsys):
    assert cli.run([*MINE, "--metric", "miou", "--sweep-thresholds", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["threshold_sweep"]["images"] == 3 and "caution" in tree["threshold_sweep"]
    assert tree["threshold_sweep"]["now"]["object_threshold"] == 0.4


def test_two_evaluations_are_compared(capsys):
    assert cli.run([*MINE, "--metric", "pq,miou"]) == 0
    smaller = ["--out", "b", "--limit", "2", "--set", "test.resize.max_edge=64"]
    assert cli.run([*MINE, "--metric", "pq,miou", *smaller]) == 0
    capsys.readouterr()
    assert cli.run(["eval", "--compare", "runs/eval/mine", "b", "--metric", "miou"]) == 0
    out, _ = capsys.readouterr()
    assert "figure\tA\tB\tdifference" in out and "miou: B - A = " in out
    assert "2 images (1 only in A, 0 only in B)" in out
    assert cli.run(["eval", "--compare", "b", "b", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["metric"] == "pq" and all(each["difference"] in (0.0, None) for each in tree["figures"])
    assert cli.run(["eval", "--compare", "b", "b", "--metric", "pq,miou"]) == 2
    assert cli.run(["eval", "--compare", "runs/eval/mine", "b", "--no-report", "--out", "compared"]) == 2
    assert "page of --compare" in capsys.readouterr().err and not Path("compared").exists()
    assert cli.run(["eval", "--compare", "runs/eval/mine", "b", "--out", "compared"]) == 0
    assert [path.name for path in Path("compared").iterdir()] == ["comparison.html"]


def test_files_of_others_are_scored(tmp_path, capsys):
    """What --save wrote, against the annotations that it was measured by: the same figures."""
    coco_panoptic(tmp_path / "coco")
    write_run(tmp_path / "own", _coco_classes(), trained_on="coco")
    command = ["eval", "--model", "own", "--device", "cpu", "--metric", "pq", "--save", "coco-panoptic"]
    assert cli.run([*command, "--object-threshold", "0"]) == 0
    assert cli.run(["eval", "--predictions", "runs/eval/own/predictions", "--ground-truth", "coco", "--out", "s"]) == 0
    out, err = capsys.readouterr()
    assert "Scored 1 images" in out and "predictions are" in err
    assert results("s")["figures"] == results("runs/eval/own")["figures"]
    assert results("s")["per_class"] == results("runs/eval/own")["per_class"]
    files = ["--predictions", "runs/eval/own/predictions", "--ground-truth", "coco"]
    assert cli.run(["eval", *files, "--metric", "all", "--json"]) == 0
    assert {"pq", "pq-errors"} <= set(json.loads(capsys.readouterr().out)["per_class"])
    assert cli.run(["eval", *files, "--out", "s"]) == 2
    assert "s exists already" in one_error(capsys)


def test_views_and_tiles(capsys):
    """Tiles of more than the image change nothing; views and smaller tiles do, and are written down."""
    for name, more in (("plain", []), ("large", ["--tile", "128"]), ("small", ["--tile", "48"]), ("views", ["--tta"])):
        assert cli.run([*MINE, "--metric", "miou", "--out", name, *more]) == 0
    figures = {name: results(name)["figures"] for name in ("plain", "large", "small", "views")}
    assert figures["plain"] == figures["large"] and figures["small"] != figures["plain"] != figures["views"]
    assert results("views")["settings"]["tta"] and results("small")["settings"]["tile"] == 48
    assert "views of each image" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_of_torchrun(tmp_path, capsys):
    """The command itself in two processes; the figures are those of one."""
    command = [sys.executable, "-m", "m2f_cli", *MINE, "--out", "two", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Scored 3 of 3 images") == 1
    assert cli.run([*MINE, "--out", "one"]) == 0
    assert results("two")["figures"] == results("one")["figures"]
    assert results("two")["per_class"] == results("one")["per_class"]


@pytest.mark.slow
def test_a_cluster_gives_the_figures_of_one_process(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
    command = [sys.executable, "-m", "m2f_cli", *MINE, "--out", "ray", "--on", "ray", "--ray-address", "local"]
    done = subprocess.run([*command, "--save", "coco-panoptic"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Scored 3 of 3 images" in done.stdout and "The bottleneck is:" in done.stdout
    assert cli.run([*MINE, "--out", "one", "--save", "coco-panoptic"]) == 0
    assert results("ray")["figures"] == results("one")["figures"]
    assert results("ray")["per_class"] == results("one")["per_class"]
    for name in ("ray", "one"):
        assert (
            Path(name, "predictions/panoptic.json").read_bytes() == Path("one/predictions/panoptic.json").read_bytes()
        )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["eval"], 2, "Nothing says what to evaluate"),
        (["eval", "--metric", "pqq"], 2, "no metric named 'pqq'. Did you mean pq"),
        (["eval", "--preset", "coco-panoptic-r51"], 2, "Did you mean coco-panoptic-r50"),
        ([*MINE, "--task", "panoptc"], 2, "no task named 'panoptc'"),
        ([*MINE, "--task", "instance", "--metric", "pq"], 2, "'pq' is about panoptic results"),
        ([*MINE, "--max-dets", "300"], 2, "--max-dets is for average precision, which is none of: pq"),
        ([*MINE, "--set", "model.decoder.num_queries=3"], 2, "no effect on an evaluation. It may change: test, data"),
        ([*MINE, "--set", "test.top_q=3"], 2, "Did you mean top_k"),
        ([*MINE, "--data", "nowhere"], 3, "nowhere does not exist"),
        ([*MINE, "--split", "tets"], 2, "no split named 'tets'"),
        ([*MINE, "--predictions", "x"], 2, "belong together"),
        (["eval", "--compare", "a", "b"], 3, "a"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, says, capsys):
    assert cli.run(arguments) == code
    assert says in one_error(capsys)
    assert not Path("runs/eval").exists()


def test_other_classes_are_refused(tmp_path, capsys):
    coco_panoptic(tmp_path / "coco")
    assert cli.run([*MINE, "--data", "coco"]) == 3
    message = one_error(capsys)
    assert "The model has 9 classes and the data (coco) have 3" in message and "class 0 is" in message


def test_where_the_data_of_a_preset_are(tmp_path, capsys, monkeypatch):
    tree = settings().model_copy(update={"data": DataConfig(dataset="coco", classes="checkpoint")})
    coco_panoptic(tmp_path / "sets" / "coco")
    (tmp_path / "coco").symlink_to(tmp_path / "sets" / "coco")
    write_run(tmp_path / "own", _coco_classes(), data=tree.data)
    command = ["eval", "--model", "own", "--device", "cpu"]
    assert cli.run(command) == 3
    assert "and there is no datasets/coco. Pass --data DIR, or set DETECTRON2_DATASETS" in one_error(capsys)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    assert cli.run(command) == 0
    out, _ = capsys.readouterr()
    assert "Scored 1 of 5000 images" in out and results("runs/eval/own")["data"]["full_split"] == 5000
    assert results("runs/eval/own")["data"]["folder"] == str(tmp_path / "sets" / "coco")


def test_what_each_layer_changes(capsys):
    assert cli.run([*MINE, "--metric", "pq", "--diagnose-queries", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["query_diagnosis"]
    assert len(found["utilisation"]) == len(found["mask_consistency"]) + 1
    assert found["utilisation"][-1] == 100.0 and 0 <= found["matched_in_all_layers"] <= 100
    assert cli.run([*MINE, "--metric", "pq", "--diagnose-queries", "--out", "o"]) == 0
    assert "targets with their final query" in capsys.readouterr().out


def test_what_a_number_format_costs():
    case = Case(model="runs/train/mine", device="cpu", precision="bf16")
    found = lost(case, None)
    assert cli.run([*MINE, "--precision", "bf16"]) == 0
    assert found["name"] == "pq" and found["b"] == pytest.approx(results()["figures"]["pq"])
    assert found["difference"] == pytest.approx(found["b"] - found["a"]) and found["low"] <= found["high"]
    assert found["pictures"] == results()["scored"]


def test_the_overlap_of_tiles_is_a_part_of_the_evaluation(capsys):
    tiles = [*MINE, "--metric", "miou", "--tile", "32", "--limit", "1"]
    assert cli.run([*tiles, "--tile-overlap", "0.5"]) == 0
    assert "overlap by 16" in capsys.readouterr().err
    assert results()["settings"]["tile_overlap"] == 0.5
    assert cli.run([*tiles, "--resume"]) == 2
    assert "holds an evaluation with tile_overlap" in one_error(capsys)


def test_a_checkpoint_that_asks_for_sliding_windows(capsys):
    test = settings().test.model_copy(update={"slide": SlideConfig(crop=(32, 32), stride=(16, 16))})
    write_run(Path("runs/train/slides"), test=test)
    slides = ["eval", "--model", "runs/train/slides", "--device", "cpu", "--metric", "miou"]
    assert cli.run(slides) == 0
    assert cli.run([*slides, "--set", "test.slide=null", "--out", "whole"]) == 0
    capsys.readouterr()
    assert results("runs/eval/slides")["settings"]["test"]["slide"] is not None
    assert results("runs/eval/slides")["figures"]["miou"] != results("whole")["figures"]["miou"]
