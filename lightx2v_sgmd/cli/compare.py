"""``lightx2v-sgmd compare``: trains several methods on one teacher, and compares them."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet, Solver, solver_name
from lightx2v_sgmd.system.errors import short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} compare configs/sprites_sgmd.yaml --methods sgmd,dmd2 --seeds 3 --out cmp\n"
    f"  {PROG} compare configs/sprites_sgmd.yaml --sweep method.lambda=0.05,0.1,0.2,0.5 --out lam\n"
    f"  {PROG} compare JOB.yaml --methods sgmd,dmd2 --out cmp --set train.iterations=200 \\\n"
    "      --method-set dmd2:student.optimizer.lr=5e-5 --workers 2"
)


class Compute(StrEnum):
    """The unit of equal compute."""

    forwards = "forwards"
    seconds = "seconds"


def compare_command(
    job: Annotated[
        Path,
        typer.Argument(
            metavar="JOB.yaml",
            help="Job of one method. All methods use its teacher, prompts, video size, batch, "
            "iterations and the rest of `train`. A method's own sections (method, "
            "student, fake_score and so on) come from the job beside it: for sprites_sgmd.yaml "
            "and dmd2 that is sprites_dmd2.yaml. Without such a file the method runs with its "
            "default options and this job's optimizers.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Output folder: new, empty, or that of a comparison to resume."
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Methods to compare; default the job's own."),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of runs per method; seeds count up from train.seed."
        ),
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
        typer.Option(metavar="KEY=A,B,C", help="Add a row for each value of this key."),
    ] = None,
    prompts: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Number of evaluation prompts, each with one video per row and seed; at most as "
            "many as there are.",
        ),
    ] = 200,
    evaluation_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to measure on (.txt, .jsonl or .csv), none of them a training prompt. "
            "Default: held-out captions for the bundled world, otherwise "
            "configs/prompts/evaluation.txt.",
        ),
    ] = None,
    teacher_solver: Annotated[
        Solver,
        typer.Option(
            help="Solver of the teacher's row; auto is the one that its authors use: UniPC for "
            "Wan, Euler for the bundled teacher."
        ),
    ] = Solver.auto,
    curve_prompts: Annotated[
        int, typer.Option(metavar="N", help="Number of videos per snapshot, for the curves.")
    ] = 100,
    every: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of iterations between snapshots; default a tenth of the run."
        ),
    ] = None,
    compute: Annotated[
        Compute,
        typer.Option(help="Unit of equal compute: forward equivalents, or CPU seconds."),
    ] = Compute.forwards,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Number of parallel runs; each uses its share of the cores, or OMP_NUM_THREADS "
            "if it is set.",
        ),
    ] = 1,
    nproc: Annotated[
        int, typer.Option(metavar="N", help="Number of processes (GPUs) per run, as for distill.")
    ] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; summarise the results in DIR.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train several methods on one teacher, and compare them.

    All methods are measured in the same way, and tables and a report are written. Every run does
    what `distill` does. If the command is interrupted (Ctrl-C, SIGTERM), run it again to resume;
    methods and seeds may be added later. In a finished folder it only writes the report again.
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
            settings=Settings(
                prompts=prompts,
                curve_prompts=curve_prompts,
                evaluation=None if evaluation_prompts is None else str(evaluation_prompts),
                solver=solver_name(teacher_solver),
            ),
            every=every,
            workers=workers,
            nproc=nproc,
            compute=compute.value,
            report_only=report_only,
            quiet=quiet,
        )
    except RunsFailedError as error:
        print(f"error: {short_line(str(error))}", file=sys.stderr, flush=True)
        raise typer.Exit(error.code) from error
    if as_json:
        print(json.dumps(done.results, indent=1), flush=True)
        return
    print((done.out / "table.md").read_text(encoding="utf-8"), end="")
    print(f"\n{done.out / 'report.html'}", flush=True)
