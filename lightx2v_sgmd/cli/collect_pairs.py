"""``lightx2v-sgmd collect-pairs``: samples the teacher for the methods that train on ODE pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import (
    PROG,
    JobFile,
    Json,
    Quiet,
    Settings,
    Solver,
    print_result,
    solver_name,
)

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} collect-pairs configs/sprites_adp.yaml --count 512 --prompts sprites --out pairs\n"
    f"  {PROG} collect-pairs JOB.yaml --prompts PROMPTS.txt --out pairs --part 2/8"
)


def collect_pairs_command(
    job: JobFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder of the pairs.")],
    count: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of pairs; prompts repeat if there are fewer of them.",
        ),
    ] = 1024,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of steps of the teacher's sampler; default 50."
        ),
    ] = None,
    solver: Annotated[
        Solver,
        typer.Option(
            help="Solver of the teacher's sampler; auto is the one that its authors use: UniPC for "
            "Wan, Euler for the bundled teacher."
        ),
    ] = Solver.auto,
    shift: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="S",
            help="Flow shift of the teacher's sampler; default that of its authors: 5 for "
            "Wan2.1-14B, 8 for 1.3B, 3 for the bundled teacher.",
        ),
    ] = None,
    shard: Annotated[int, typer.Option(min=1, metavar="N", help="Number of pairs in a file.")] = 64,
    part: Annotated[
        str,
        typer.Option(
            metavar="K/N", help="Make only part K of N of the pairs, so that N machines share them."
        ),
    ] = "1/1",
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Prompt file (.txt, .jsonl or .csv) or the name of a shipped model, instead of "
            "the job's prompts.",
        ),
    ] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sample pairs of noise and latents from a job's teacher.

    The job names the teacher, its guidance, the size of the videos and the prompts. The teacher
    samples as its authors do, unless an option says otherwise. The methods
    adp and dmdx train on the pairs (data.latents). If the command is interrupted, run it again to
    make the files that are missing; existing files are never replaced.
    """
    from lightx2v_sgmd.job.loading import load_job

    # Jobs of the methods that need pairs name a folder that is being made only now.
    checked = load_job(job, settings or [])
    from distill.ode_pairs import PairPlan, collect_pairs, parse_part
    from distill.running.signals import interruptible

    number, parts = parse_part(part)
    plan = PairPlan(
        count, steps or PairPlan.steps, solver_name(solver), shift, shard, number, parts
    )
    with interruptible():
        folder = collect_pairs(checked, out, plan, prompts, quiet)
    print_result({"pairs": str(folder)}, str(folder), as_json)
