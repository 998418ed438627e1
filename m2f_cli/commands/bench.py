"""m2f bench: measure time and memory, alone or beside a peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..errors import ConfigError, unknown_name
from ..runtime import allocator
from . import completion
from . import options as opt
from .bench_plan import plan as show_plan
from .help_page import help_page

if TYPE_CHECKING:
    from ..benchmark.case import Case
    from ..benchmark.interleaved import Round

ALL = "all"
OF_FILES = "int8"  # only an exported file may be in it
IMAGE, FORMER_NAME = "image", "picture"  # a work, and its name in results
SOME_FAILED = 1
COMPILED = "-compiled"
ROUNDS, WARM_UP, IMAGES = 6, 1, 4
# Built-in work that an option does not change: an error, not ignored. Work of plug-ins decides for itself.
NO_MATTER = {
    "--batch": ("post", "eval", "load"),
    "--size": ("load",),
    "--compile": ("post", "load"),
    "--images": ("forward", "picture", "post", "load", "train"),
    "--source": ("forward", "picture", "post", "eval", "load", "train"),
}
PLANNED = 32  # images that --plan measures by default
NOT_OF_ALL = ("--size", "--batch", "--against", "--engine", "--model")  # the protocol of --preset all has its own


@help_page(
    "m2f bench --preset coco-panoptic-swin-t",
    "m2f bench --model runs/train/small-panoptic --what image --precision bf16",
    most_used=("preset", "model", "what", "device", "precision"),
)
def bench(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preset to time with random weights, or all of them.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.presets,
        ),
    ] = None,
    model: opt.Model = None,
    what: Annotated[
        str | None,
        typer.Option(
            metavar="WORK",
            help="Work to time: forward (default), image (with post-processing), predict, post, eval, load or train.",
            rich_help_panel=opt.DATA,
            autocompletion=completion.parts("workloads"),
        ),
    ] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "fp32",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W",
            help="Size of the images, not resized; by default usual for the preset's data.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass; by default 1.", rich_help_panel=opt.DATA)
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=1,
            help=f"Images per run of predict and eval; by default {IMAGES}.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of images for predict; by default generated ones.", rich_help_panel=opt.DATA
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            help="Peer to time in turns, with the same weights: huggingface, huggingface-compiled or published (order "
            "of post-processing).",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.parts("peers"),
        ),
    ] = None,
    peer_precision: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Number format of the peer; by default that of --precision.",
            rich_help_panel=opt.SPEED,
            autocompletion=completion.words(*opt.PRECISIONS),
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timed runs of each side; by default 6, with --preset all 20 (train: 5).",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Further untimed runs; by default 1, with --preset all 4 (train: 1).",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    threads: opt.Threads = None,
    compile_: opt.Compile = False,
    keep_memory: Annotated[
        bool | None,
        typer.Option(
            "--keep-memory/--no-keep-memory",
            help="Keep freed memory (glibc), without the peer; by default for predict and eval.",
            rich_help_panel=opt.SPEED,
        ),
    ] = None,
    quality: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Annotated images to measure the loss by --precision on; with --model.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    plan: Annotated[
        int | None,
        typer.Option(
            metavar="N_IMAGES",
            min=1,
            help="Measure m2f predict on --images, and print the hours, device-hours and storage of so many images.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    engine: opt.Engine = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for NAME.json and NAME.png.", rich_help_panel=opt.OUTPUT)
    ] = Path("runs/bench"),
    skip_existing: opt.SkipExisting = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.AsJson = False,
) -> None:
    """Time a piece of work, alone or beside a peer that does the same with the same weights.

    Run it on a quiet machine; the load is part of the result. With --compile there are no times of single stages.
    """
    if plan is not None:
        what = _predict_for_plan(
            preset,
            {
                "--what": what,
                "--against": against,
                "--compile": compile_ or None,
                "--quality": quality,
                "--rounds": rounds,
                "--warm-up": warm_up,
                "--skip-existing": skip_existing or None,
            },
        )
    what = what or (IMAGE if preset == ALL else "forward")
    what = FORMER_NAME if what == IMAGE else what
    _check_names(what, precision, engine, against, peer_precision, model)
    given = {
        "--batch": batch,
        "--images": images,
        "--source": source,
        "--size": size,
        "--compile": compile_ or None,
        "--against": against,
        "--engine": engine,
        "--model": model,
        "--preset": preset,
        "--skip-existing": skip_existing or None,
        "--peer-precision": peer_precision,
    }
    _check_options(what, {name: value for name, value in given.items() if value is not None})
    if keep_memory is None:
        keep_memory = context.parent and context.parent.params.get("keep_memory")  # m2f --no-keep-memory bench

    from ..benchmark.case import Case
    from ..benchmark.model_under_test import chosen_precision
    from ..config import presets as configuration
    from ..weights.resolve import check_reference

    # Before processes start, which takes seconds.
    if model is not None:
        check_reference(model)
    if preset not in (None, ALL):
        configuration.load(preset)
    case = Case(
        what=what,
        preset=preset,
        model=model,
        device=device,
        precision=precision,
        size=size,
        batch=batch or 1,
        images=images or (IMAGES if plan is None else PLANNED),
        source=source,
        threads=threads,
        compile=compile_,
        engine=engine,
        trust_code=trust_code or (preset or "").endswith((".yaml", ".yml")),  # a file of the user's own
        keep_memory=allocator.is_kept_by(what) if keep_memory is None else keep_memory,
    )
    case = chosen_precision(case)
    if plan is not None:
        return show_plan(case, plan, as_json=as_json)
    if preset == ALL:
        if quality is not None:
            raise ConfigError("--quality needs trained weights, and those of --preset all are random.")
        _all(case, out, (rounds, warm_up), skip_existing=skip_existing, as_json=as_json)
        return

    from ..benchmark import interleaved as race
    from ..benchmark import report as results
    from ..benchmark.quality import check, lost
    from ..results.writers import write_json

    if quality is not None:
        check(case, quality)

    peer = None if against is None else against.removesuffix(COMPILED)
    options = race.BenchOptions(
        rounds=rounds or ROUNDS,
        warm_up=WARM_UP if warm_up is None else warm_up,
        peer=peer,
        peer_compile=against != peer,
        peer_precision=peer_precision,
    )
    tree = race.bench(case, options, _show_round)
    files = results.write(tree, out)
    if quality is not None:
        console.note(f"Evaluating on {quality}, in fp32 and in {case.precision}.")
        tree["quality"] = lost(case, quality)
        write_json(files[0], tree)  # again: the timing was there already, should the evaluation have failed
    if as_json:
        console.emit_json({**tree, "files": [str(path) for path in files]})
    else:
        _print(tree, files)


def _predict_for_plan(preset: str | None, given: dict[str, Any]) -> str:
    """Return the work that a plan measures.

    Raises:
        ConfigError: an option was given that a plan has no use for.
    """
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is not None:
        raise ConfigError(f"--plan measures m2f predict, and {wrong} changes nothing about it.", hint="Leave it out.")
    if preset == ALL:
        raise ConfigError("--plan is for one model.", hint="Name a preset, or pass --model.")
    return "predict"


def _check_names(
    what: str, precision: str, engine: str | None, against: str | None, peer_precision: str | None, model: str | None
) -> None:
    opt.one_of("work", what, plugins.table("workloads"))
    opt.one_of("precision", precision, (*opt.PRECISIONS, opt.AUTO, *([OF_FILES] if model else [])))
    opt.one_of("precision", peer_precision, opt.PRECISIONS)
    opt.one_of("engine", engine, plugins.table("engines"))
    if against is not None and against.removesuffix(COMPILED) not in plugins.table("peers"):
        raise unknown_name("peer", against, plugins.table("peers"))


def _check_options(what: str, given: dict[str, Any]) -> None:
    """Check the options that were given, by name.

    Raises:
        ConfigError: options that do not go together, or that would change nothing.
    """
    preset, against = given.get("--preset"), given.get("--against")
    if preset is not None and preset != ALL and "--model" in given:
        raise ConfigError(
            "--preset and --model exclude each other.",
            hint="A preset is timed with random weights, a model with its own.",
        )
    for name in NOT_OF_ALL if preset == ALL else ():
        if name in given:
            raise ConfigError(
                f"--preset all measures for the reference table, by a protocol without {name}.",
                hint=f"Leave {name} out, or name one preset.",
            )
    for name, works in NO_MATTER.items():
        if name in given and what in works:
            hint = f"It is for --what {', '.join(each for each in plugins.table('workloads') if each not in works)}."
            raise ConfigError(f"{name} changes nothing about --what {what}.", hint=hint)
    if min(given.get("--size", (1, 1))) < 1:
        raise ConfigError(f"--size {' '.join(map(str, given['--size']))}: an image has at least one row and column.")
    if "--skip-existing" in given and preset != ALL:
        raise ConfigError("--skip-existing is for --preset all.", hint="Other results get a file of their own each.")
    if "--peer-precision" in given and against is None:
        raise ConfigError("--peer-precision is for --against.", hint="Pass --precision, or a peer with --against.")
    if against is not None and against.endswith(COMPILED) and what in NO_MATTER["--compile"]:
        raise ConfigError(
            f"--against {against}: there is nothing to compile in --what {what}.",
            hint=f"Compare with {against.removesuffix(COMPILED)}.",
        )


def _show_round(each: Round) -> None:
    console.note(f"{each.phase} {each.number + 1}: {each.side} {each.seconds:.4g} s")


def _all(case: Case, out: Path, rounds: tuple[int | None, int | None], *, skip_existing: bool, as_json: bool) -> None:
    from ..benchmark import report as results

    options = results.table_options(case.what, *rounds)
    presets = results.table_presets()
    rows: list[list[str]] = []
    trees: list[dict[str, Any]] = []
    failed = []
    with console.progress("Measuring", len(presets), "presets") as advance:
        for name, found in results.sweep(case, presets, out, options, console.note, skip_existing=skip_existing):
            is_tree = isinstance(found, dict)
            advance(None if is_tree else f"{name}: {found}")
            if not is_tree:
                failed.append({"preset": name, "error": str(found)})
                continue
            trees.append(found)
            gib = found.get("memory_gib", found.get("train_memory_gib"))
            speed = found["sides"]["m2f"]["images_per_second"]
            rows.append([name, f"{speed:.4g}", results.told(gib, ".2f"), found["device"]])
    if as_json:
        console.emit_json({"rows": trees, "failed": failed, "out": str(out)})
    else:
        work = IMAGE if case.what == FORMER_NAME else case.what
        console.show_table(f"{work}, {case.precision}", ["preset", "images/s", "memory GiB", "on"], rows)
        console.out(f"{len(rows)} of {len(presets)} presets measured, in {out}; see: m2f presets table")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _print(tree: dict[str, Any], files: list[Path]) -> None:
    from ..benchmark import report as results

    console.out(results.headline(tree))
    console.show_table("", *results.rows(tree))
    columns, stages = results.stage_rows(tree)
    if stages:
        console.show_table("", columns, stages)
    for line in results.findings(tree):
        console.out(line)
    console.out(f"Results: {', '.join(map(str, files))}")
