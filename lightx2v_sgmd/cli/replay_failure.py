"""``lightx2v-sgmd replay-failure``: repeats the update at which a training run stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, print_result

EXAMPLES = f"\b\nExample:\n  {PROG} replay-failure runs/wan_14b/failed/step_000012"


def replay_failure_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN/failed/step_N", help="State that the failed run saved."),
    ],
    as_json: Json = False,
) -> None:
    """Repeat the update at which a training run failed.

    A run fails when a number is not finite. Use this command to try a change of the code, the
    precision or the data. It prints the same line as the run did and exits with 1, or says that
    everything is finite now and exits with 0. One process loads the whole state; if the state is
    too large for that, start the command with torchrun, like the run itself.
    """
    from distill.running.failures import replay

    error = replay(folder, launched="RANK" in os.environ)
    if os.environ.get("RANK", "0") == "0":
        text = f"{folder}: everything is finite now" if error is None else str(error)
        problem = None if error is None else str(error)
        result = {"state": str(folder), "finite": error is None, "problem": problem}
        print_result(result, text, as_json)
    if error is not None:
        raise typer.Exit(1)
