"""Words that people type who come from detectron2, OpenMMLab, ultralytics or transformers.

A word of `SAME` stands for an option of ours, in every command that has the option. A word of `LINES` has no option of
the same meaning: the error says the line to type.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError, M2FError, unknown_name

SAME: dict[str, tuple[str, ...]] = {  # the first that the command has
    "batch-size": ("batch",),
    "checkpoint": ("model", "init"),
    "ckpt": ("model", "init"),
    "conf": ("score-threshold",),
    "conf-thres": ("score-threshold",),
    "confidence-threshold": ("score-threshold",),
    "config": ("preset",),
    "config-file": ("preset",),
    "data-dir": ("data",),
    "data-path": ("data",),
    "data-root": ("data",),
    "dataloader-num-workers": ("workers",),
    "dataset-dir": ("data",),
    "gpus": ("devices",),
    "gradient-checkpointing": ("checkpoint-activations",),
    "load-from": ("init",),
    "max-det": ("top-k",),
    "max-epochs": ("epochs",),
    "metrics": ("metric",),
    "num-gpus": ("devices",),
    "num-train-epochs": ("epochs",),
    "num-workers": ("workers",),
    "out-dir": ("out",),
    "output": ("out",),
    "output-dir": ("out",),
    "pictures": ("images",),  # our own former names
    "pretrained": ("init",),
    "report-to": ("logger",),
    "save-dir": ("out",),
    "val-pictures": ("val-images",),
    "weights": ("model", "init"),
    "work-dir": ("out",),
}

ANY = "*"  # every command that has the options of the line
RATE = {"train": "--set train.optimizer.learning_rate={}"}
STEPS = {"train": "--set train.iterations={}"}
SHORT_EDGE = "--set test.resize.short_edge={}"
SIZES = {"train": SHORT_EDGE, "eval": SHORT_EDGE, "export": "--size {} {}", "bench": "--size {} {}"}
INPUT = {"predict": "m2f predict {}"}
GPU = {ANY: "--device cuda:{}"}

# word → command, or ANY → line to type; {} is the value that was typed
LINES: dict[str, dict[str, str]] = {
    "amp": {ANY: "--precision bf16"},
    "base-lr": RATE,
    "bf16": {ANY: "--precision bf16"},
    "cfg-options": {ANY: "--set {}"},
    "cos-lr": {"train": "--set train.schedule.name=cosine"},
    "epochs": {"demo": "--iterations {}"},
    "eval-only": {"train": "m2f eval --model RUN"},
    "eval-period": {"train": "--set train.eval_every={}"},
    "fp16": {ANY: "--precision fp16"},
    "gpu": GPU,
    "gpu-id": GPU,
    "half": {ANY: "--precision fp16"},
    "image-size": SIZES,
    "img": SIZES,
    "img-size": SIZES,
    "imgsz": SIZES,
    "input": INPUT,
    "iterations": STEPS,
    "iters": STEPS,
    "learning-rate": RATE,
    "load": {"train": "--init {}", ANY: "--model {}"},
    "lr": RATE,
    "lr0": RATE,
    "max-iter": STEPS,
    "max-iters": STEPS,
    "max-steps": STEPS,
    "model": {"train": "--preset {}"},
    "name": {ANY: "--out runs/{}"},
    "opts": {ANY: "--set KEY=VALUE"},
    "project": {ANY: "--out {}"},
    "resume-from": {"train": "--resume --out {}"},
    "resume-from-checkpoint": {"train": "--resume --out {}"},
    "save-crop": {ANY: "--save crops"},
    "save-txt": {ANY: "--save polygons"},
    "show-dir": {ANY: "--save overlay"},
    "source": INPUT,
    "val-interval": {"train": "--set train.eval_every={}"},
    "weight-decay": {"train": "--set train.optimizer.weight_decay={}"},
}

# word → what to know, in every command
NOTHING: dict[str, str] = {
    "imgsz": "Images are resized as the model was tested; --tile N shows the network more detail.",
    "iou": "Leave it out: one query answers for one object, so there is no NMS.",
    "iou-thres": "Leave it out: one query answers for one object, so there is no NMS.",
    "num-classes": "Leave it out: the classes are those of the data.",
}


def translator(command: Any) -> Callable[[str], str]:
    """Return a function that turns a word into the option of a command that it stands for. Others stay as they are."""
    own = {name.lstrip("-") for name in option_names(command, hidden=True)}

    def translate(word: str) -> str:
        word = word if word in own else word.replace("_", "-")
        return word if word in own else next((name for name in SAME.get(word, ()) if name in own), word)

    return translate


def option_names(command: Any, *, hidden: bool = False) -> list[str]:
    """Return the options of a command, with their dashes."""
    options = [each for each in command.params if each.param_type_name == "option" and (hidden or not each.hidden)]
    return [name for each in options for name in (*each.opts, *each.secondary_opts)]


def unknown_option(command: Any, path: str, option: str, typed: Sequence[str]) -> M2FError:
    """Return the error for an option that a command does not have: the line to type, or the nearest options.

    Args:
        path: the words that call the command, such as "m2f train".
        option: the option, with its dashes.
        typed: all that was typed, which has the value.
    """
    word, known = option.lstrip("-"), option_names(command)
    line = _line(path.split()[-1], word, known)
    if line is not None:
        value = shlex.quote(_value(option, typed) or "VALUE")
        return ConfigError(f"{option} is not an option of {path}.", hint=f"Type: {line.replace('{}', value)}")
    if word in NOTHING:
        return ConfigError(f"{option} is not an option of {path}.", hint=NOTHING[word])
    error = unknown_name(f"option of {path}", option, known)
    if "Did you mean" not in str(error.hint):
        error.hint = f"{path} --help lists them."
    return error


def assignment(command: Any, path: str, typed: Sequence[str]) -> M2FError | None:
    """Return the error for the first word such as epochs=100, which other tools take; None if there is none.

    Args:
        path: the words that call the command, such as "m2f train".
        typed: all that was typed.
    """
    known = option_names(command)
    for i, word in enumerate(typed):
        name, is_one, value = word.partition("=")
        if not is_one or not name or word.startswith("-") or typed[i - 1] == "--set":
            continue
        option = "--" + translator(command)(name)
        if option in known:
            return ConfigError(f"{word} is no option of {path}.", hint=f"Type: {option} {shlex.quote(value)}")
        if "." in name and "--set" in known:
            return ConfigError(f"{word} is no option of {path}.", hint=f"Type: --set {shlex.quote(word)}")
        return unknown_option(command, path, option, [f"{option}={value}"])
    return None


def _line(command: str, word: str, known: Sequence[str]) -> str | None:
    """Return the line that says in `command` what `word` says elsewhere; None if there is no such line."""
    lines = LINES.get(word, {})
    if command in lines:
        return lines[command]
    line = lines.get(ANY)
    return line if line is not None and line.split()[0] in known else None


def _value(option: str, typed: Sequence[str]) -> str | None:
    """Return the value that was typed after an option, if any."""
    for i, word in enumerate(typed):
        name, is_joined, value = word.partition("=")
        if name.replace("_", "-") != option:
            continue
        if is_joined:
            return value
        following = typed[i + 1] if i + 1 < len(typed) else "-"
        return None if following.startswith("-") else following
    return None
