"""Arguments and options that several commands share, each with one name and one text."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

PROG = "lightx2v-sgmd"

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="Job file, like those in configs/.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the job; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on stdout.")]


class Solver(StrEnum):
    """The solver of a teacher's sampler."""

    auto = "auto"
    unipc = "unipc"
    euler = "euler"


def solver_name(solver: Solver) -> Literal["unipc", "euler"] | None:
    """The name of a chosen solver; None for ``auto``, the one that the teacher's authors use."""
    names: dict[Solver, Literal["unipc", "euler"] | None]
    names = {Solver.auto: None, Solver.unipc: "unipc", Solver.euler: "euler"}
    return names[solver]


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result on stdout, as JSON or as text."""
    print(json.dumps(result, indent=2) if as_json else text, flush=True)
