"""``lightx2v-sgmd compare``: the papers' tables on a teacher of one's own."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet
from lightx2v_sgmd.system.errors import short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} compare configs/sprites_sgmd.yaml --methods sgmd,dmd2 --seeds 3 --out cmp\n"
    f"  {PROG} compare configs/sprites_sgmd.yaml --sweep method.lambda=0.05,0.1,0.2,0.5 --out lam\n"
    f"  {PROG} compare JOB.yaml --methods sgmd,dmd2 --out cmp --set train.iterations=200 \\\n"
    "      --method-set dmd2:student.optimizer.lr=5e-5 --workers 2"
)


class Compute(StrEnum):
    """What equal compute counts."""

    forwards = "forwards"
    seconds = "seconds"


def compare_command(
    job: Annotated[
        Path,
        typer.Argument(
            metavar="JOB.yaml",
            help="The job of one method. Teacher, prompts, video size, batch, iterations and the "
            "rest of `train` are taken from it for all. A method's own sections (method, "
            "student, fake_score and so on) come from the job beside it: for sprites_sgmd.yaml "
            "and dmd2 that is sprites_dmd2.yaml. Without such a file the method runs with its "
            "default options and this job's optimizers.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where everything goes: an empty or a new folder."),
    ],
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Which methods; default the job's own."),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", help="Trainings of each method, seeds from train.seed up."),
    ] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Replace a value in every job; repeatable."
        ),
    ] = None,
    method_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--method-set",
            metavar="METHOD:KEY=VALUE",
            help="Replace a value in one method's job; repeatable.",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KEY=A,B,C", help="A row for each value of this key."),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Videos of a row and seed: of held-out captions for the bundled world, otherwise "
            "of the job's first prompts.",
        ),
    ] = 200,
    curve_prompts: Annotated[
        int, typer.Option(metavar="N", help="Videos of a snapshot, for the curves.")
    ] = 100,
    every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Iterations between snapshots; default a tenth of the run."),
    ] = None,
    compute: Annotated[
        Compute,
        typer.Option(help="What equal compute counts: forward equivalents, or CPU seconds."),
    ] = Compute.forwards,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Runs side by side, each with its share of the cores (OMP_NUM_THREADS, if it is "
            "set, is kept).",
        ),
    ] = 1,
    nproc: Annotated[
        int, typer.Option(metavar="N", help="Processes (GPUs) of each run, as for distill.")
    ] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; sum up what DIR has so far.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train several methods on one teacher, and compare them.

    All are measured alike; tables and a report are written. Every run is what `distill` does.
    Interrupted (Ctrl-C, SIGTERM), the same command goes on where it stopped; methods and seeds may
    be added later. On a finished folder it only writes the report anew.
    """
    from lightx2v_sgmd.apps.comparison import RunsFailedError, compare
    from lightx2v_sgmd.apps.comparison.plan import Settings

    try:
        done = compare(
            job,
            out,
            methods=methods.split(",") if methods is not None else (),
            seeds=seeds,
            overrides=settings or (),
            method_overrides=method_settings or (),
            sweep=sweep,
            settings=Settings(prompts=prompts, curve_prompts=curve_prompts),
            every=every,
            workers=workers,
            nproc=nproc,
            compute=compute.value,
            report_only=report_only,
            quiet=quiet,
        )
    except RunsFailedError as error:
        print(f"error: {short_line(str(error))}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(done.results, indent=1), flush=True)
        return
    print((done.out / "table.md").read_text(encoding="utf-8"), end="")
    print(f"\n{done.out / 'report.html'}", flush=True)
