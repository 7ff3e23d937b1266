"""``lightx2v-sgmd demo``: distils, exports, generates and reports on the bundled teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet, Settings, print_result

EXAMPLES = f"\b\nExample:\n  {PROG} demo --out demo"


def demo_command(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Output folder for the run, the student, the videos and the report."
        ),
    ] = Path("demo"),
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Random seed for training and generation."),
    ] = 0,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run every stage on the bundled teacher.

    The demo distils the teacher, exports the student, generates and measures videos, and writes a
    report. It takes about ten minutes on two processor cores and needs no GPU, no compiler and no
    network. If it is interrupted, run the same command again to resume.
    """
    from lightx2v_sgmd.apps.demo import run_demo

    result = run_demo(out, seed=seed, quiet=quiet, overrides=settings or ())
    if as_json:
        print_result(result.metrics, "", as_json)
