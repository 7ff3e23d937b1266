"""``lightx2v-sgmd distill``: trains a student."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Processes, Quiet, Settings, print_result

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} distill configs/sprites_sgmd.yaml --set train.iterations=50\n"
    f"  {PROG} distill configs/wan2.1_t2v_1.3b_sgmd.yaml --nproc 8\n"
    f"  torchrun --nproc-per-node 8 -m lightx2v_sgmd distill configs/wan2.1_t2v_14b_sgmd.yaml"
)


def distill_command(
    job: JobFile,
    settings: Settings = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="Checkpoint to resume from: auto takes the newest in the run folder, if there is "
            "one; never refuses a run folder that has one; PATH names a run or a checkpoint.",
        ),
    ] = "auto",
    nproc: Processes = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a student, and print its run folder.

    If the run is interrupted (Ctrl-C, SIGTERM, SIGUSR1), run the same command again to resume. On
    several machines, start it on each with torchrun, or with `deepspeed --module lightx2v_sgmd
    distill JOB.yaml`.
    """
    from lightx2v_sgmd.job.loading import load_job

    checked = load_job(job, settings or [])  # first, so that a mistake in it costs no start-up
    from distill import distill

    run = distill(checked, resume=resume, nproc=nproc, quiet=quiet)
    if int(os.environ.get("RANK", "0")) == 0:
        print_result({"run": str(run)}, str(run), as_json)
