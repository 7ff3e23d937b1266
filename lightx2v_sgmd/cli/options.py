"""Arguments and options that several commands share, each with one name and one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROG = "lightx2v-sgmd"

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job, as those in configs/.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the job; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on stdout.")]
