"""What is mistyped gets the nearest name, and words of other tools are understood or answered."""

from __future__ import annotations

import shlex

import pytest
import typer
from helpers.command_tree import COMMANDS

from m2f_cli import cli
from m2f_cli.commands import words


def answer(line, capsys):
    """The error for a line of m2f."""
    assert cli.run(shlex.split(line)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("predct a.jpg", "predict"),
        ("data chek x", "check"),
        ("presets lits", "list"),
        ("--offlin", "--offline"),
        ("predict a.jpg --taks panoptic", "--task"),
        ("data check x --workrs 3", "--workers"),
        ("predict a.jpg --task panotic", "panoptic"),
        ("predict a.jpg --precision bf61", "bf16"),
        ("predict a.jpg --engine onxx", "onnx"),
        ("predict a.jpg --save overlya", "overlay"),
        ("eval --preset tiny --metric pqq", "pq"),
        ("eval --preset tiny --engine onxx", "onnx"),
        ("export --model tiny --format onxn", "onnx"),
        ("export --model tiny --precision fp61", "fp16"),
        ("export --model tiny --postprocess panotic", "panoptic"),
        ("bench --preset tiny --what forwrad", "forward"),
        ("bench --preset tiny --against hugingface", "huggingface"),
        ("presets list --dataset cityscape", "cityscapes"),
        ("presets table --format markdwn", "markdown"),
        ("presets show coco-panotic-r50", "coco-panoptic-r50"),
        ("data convert . out --to coco-instanc", "coco-instance"),
        ("data check . --task panotic", "panoptic"),
        ("data check . --format coco-panotic", "coco-panoptic"),
        ("data check . --preset smal-panoptic", "small-panoptic"),
        ("data prepare cityscape", "cityscapes"),
        ("data sample nucleii", "nuclei"),
        ("train --preset coco-panotic-r50", "coco-panoptic-r50"),
        ("train --preset tiny --set train.itertions=3", "iterations"),
        ("train --preset tiny --precision fp61", "fp16"),
        ("train --preset tiny --logger tensorbord", "tensorboard"),
        ("reproduce coco-panotic-swin-t", "coco-panoptic-swin-t"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(line, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = answer(line, capsys)
    assert "Did you mean" in said and meant in said.partition("Did you mean")[2], said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("demo --epochs 12", "--iterations 12"),
        ("demo --epochs=12 --device cpu", "--iterations 12"),
        ("train --max_iters 500", "--set train.iterations=500"),
        ("train --lr 0.001", "--set train.optimizer.learning_rate=0.001"),
        ("train --lr", "--set train.optimizer.learning_rate=VALUE"),
        ("train --resume-from 'my runs/a'", "--resume --out 'my runs/a'"),
        ("train --name mine", "--out runs/mine"),
        ("predict --source photos/", "m2f predict photos/"),
        ("predict a.jpg --half", "--precision fp16"),
        ("predict a.jpg --gpu 1", "--device cuda:1"),
        ("predict a.jpg --save-txt", "--save polygons"),
        ("export --imgsz 640", "--size 640 640"),
        ("train --model coco-panoptic-r50", "--preset coco-panoptic-r50"),
    ],
)
def test_a_word_of_another_tool_is_answered_with_the_line_to_type(line, typed, capsys):
    command, word = line.split()[0], next(word for word in line.split() if word.startswith("--"))
    word = word.partition("=")[0].replace("_", "-")
    assert answer(line, capsys) == f"error: {word} is not an option of m2f {command}. Type: {typed}\n"


def test_a_word_without_a_meaning_here_says_why(capsys):
    assert "there is no NMS" in answer("predict a.jpg --iou 0.5", capsys)
    assert "--tile N" in answer("predict a.jpg --imgsz 640", capsys)
    assert "m2f demo --help lists them" in answer("demo --zzz", capsys)


@pytest.mark.parametrize(
    "line",
    [
        "train --config-file tiny --data-root x --weights a.pth --batch-size 8 --num-gpus 1 --work-dir r",
        "train --config tiny --load-from a.pth --num-workers 2 --batch_size 8 --output_dir r --gradient-checkpointing",
        "train --preset tiny --num_train_epochs 3 --patience 2",
        "predict a.jpg --weights a.pth --conf 0.5 --max-det 5 --output o",
        "eval --checkpoint a.pth --data-path x --metrics pq --save-dir o",
    ],
)
def test_a_word_with_the_same_meaning_is_understood(line, only_parsed):
    assert cli.run(line.split()) == 0
    assert len(only_parsed) == 1


def test_a_word_that_is_understood_is_not_shown(capsys):
    assert cli.run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--batch " in shown and not [word for word in words.SAME if f"--{word} " in shown]


OPTIONS = {path.split()[-1]: set(words.option_names(command, hidden=True)) for path, command in COMMANDS.items()}


def test_each_word_leads_to_an_option_that_exists():
    every = set().union(*OPTIONS.values())
    assert [word for word, ours in words.SAME.items() if not all(f"--{name}" in every for name in ours)] == []
    for word, lines in words.LINES.items():
        for name, line in lines.items():
            named = {part for part in line.split() if part.startswith("--")}
            command = line.split()[1] if line.startswith("m2f ") else name
            assert named <= (every if command == words.ANY else OPTIONS[command]), (word, line)


def test_no_word_hides_an_option_of_ours():
    for command in COMMANDS.values():
        translate = words.translator(command)
        own = {name.removeprefix("--") for name in words.option_names(command)}
        assert {name: translate(name) for name in own} == {name: name for name in own}


def test_keys_of_lines_exist():
    """The keys that the lines set are keys of a preset."""
    from m2f_cli.config import presets

    plain = presets.load("coco-panoptic-r50")
    lines = {line for each in words.LINES.values() for line in each.values() if line.startswith("--set ")}
    settings = [line.removeprefix("--set ").replace("{}", "1") for line in lines - {"--set {}", "--set KEY=VALUE"}]
    changed = {
        setting: presets.differences(plain, presets.load("coco-panoptic-r50", [setting])) for setting in settings
    }
    assert len(changed) > 5 and all(each.partition("=")[0] in keys for each, keys in changed.items()), changed


def test_the_help_of_a_group_has_no_words(capsys):
    assert isinstance(typer.main.get_command(cli.app), cli.Commands)
    assert "m2f data" in answer("data --epochs 3", capsys)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train epochs=100", "Type: --epochs 100"),
        ("train batch_size=4 epochs=100", "Type: --batch 4"),
        ("train --set train.batch=2 lr0=0.01", "Type: --set train.optimizer.learning_rate=0.01"),
        ("train imgsz=640", "Type: --set test.resize.short_edge=640"),
        ("train SOLVER.BASE_LR=0.1", "Type: --set SOLVER.BASE_LR=0.1"),
        ("eval iou=0.7", "there is no NMS"),
        ("train epoks=100", "Did you mean --epochs"),
    ],
)
def test_assignments_of_other_tools_are_answered(line, says, capsys):
    assert says in " ".join(answer(line, capsys).split())
