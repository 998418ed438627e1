"""Progress of a training on the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .. import console

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalResult
    from ..training.loop import StepRecord
    from ..training.prepare import Run


class Display:
    """Progress of a training on stderr: a bar in a terminal, else a line every few seconds."""

    every_seconds = 15.0

    def __init__(self, iterations: int):
        self.iterations = iterations
        self.slow_data = 0.0
        self.shown = 0.0

    def __enter__(self) -> Display:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        stderr = console.stderr()
        self.is_terminal = stderr.is_terminal
        columns = (
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self.bar = Progress(*columns, console=stderr, disable=not self.is_terminal)
        self.task = self.bar.add_task("train", total=self.iterations, numbers="")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, run: Run) -> None:
        from ..runtime import distributed

        data, val = run.train_data, run.val_data
        things = sum(category.isthing for category in data.categories)
        classes = f"{len(data.categories)} classes ({things} things, {len(data.categories) - things} stuff)"
        held_back = f"{len(val.records)} to evaluate on" if val else "nothing to evaluate on"
        console.note(f"Data: {data.format}, {len(data.records)} images to train on, {held_back}, {classes}.")
        for text in run.notes:
            console.warn(text)
        train = run.settings.train
        processes = distributed.world_size()
        cut = [run.parts.accumulate, train.batch // (run.parts.accumulate * processes)]
        shape = " x ".join(map(str, [*([processes] if processes > 1 else []), *cut]))
        console.note(
            f"{train.iterations} iterations of {train.batch} images ({shape}), "
            f"{train.precision}, on {run.parts.device}, in {run.folder}."
        )
        rows = [[part, f"{trainable:,}", f"{every:,}"] for part, trainable, every in run.trainable()]
        for part, trainable, every in rows:
            console.note(f"  {part:14} {trainable:>12} of {every:>12} numbers are trained")
        self.iterations = train.iterations
        self.bar.update(self.task, completed=run.state.iteration, total=train.iterations)

    def step(self, step: StepRecord) -> None:
        self.slow_data = 0.95 * self.slow_data + 0.05 * step.data_seconds / step.seconds
        losses = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in step.losses.items())
        numbers = f"loss {step.total:.3f} ({losses}) lr {step.learning_rate:.1e} {step.images / step.seconds:.1f} img/s"
        if self.slow_data > 0.3:
            numbers += f" - {100 * self.slow_data:.0f} % of the time waits for data (more --workers)"
        self.bar.update(self.task, completed=step.iteration + 1, numbers=numbers)
        now = time.monotonic()
        if not self.is_terminal and (now - self.shown > self.every_seconds or step.iteration + 1 == self.iterations):
            self.shown = now
            console.note(f"iteration {step.iteration + 1}/{self.iterations}: {numbers}")

    def evaluated(self, iteration: int, result: EvalResult) -> None:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in list(result.figures.items())[:4] if value == value)
        console.note(f"evaluated after {iteration}: {figures} ({result.images} images, {result.seconds:.0f} s)")
