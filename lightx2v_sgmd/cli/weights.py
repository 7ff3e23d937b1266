"""``lightx2v-sgmd weights``: says what weights are, and checks exported ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, print_result
from lightx2v_sgmd.system.errors import short_line

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def weights_command() -> None:
    """Say what weights are, and check exported ones."""


@app.command("verify", epilog=f"\b\nExample:\n  {PROG} weights verify student")
def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `export` wrote.")],
    as_json: Json = False,
) -> None:
    """Check an exported folder against its manifest.

    The check needs no network. The exit code is 1 if something differs.
    """
    from weights import verify

    problems = verify(folder)
    if as_json:
        result = {"weights": str(folder), "whole": not problems, "problems": problems}
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(map(short_line, problems)) or f"{folder}: as it was written")
    if problems:
        raise typer.Exit(1)


@app.command("inspect", epilog=f"\b\nExample:\n  {PROG} weights inspect self_forcing_dmd.pt")
def inspect_command(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE_OR_DIR", help="Weights, a LoRA, a model, an export or a run."),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model that it is a variant of; default any known model that it fits.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a file or folder of weights is: origin, names, size, types, steps, what is missing.

    Reads headers and small files alone.
    """
    from lightx2v_sgmd.families.inspection import inspect_weights

    found = inspect_weights(path, base)
    print_result(found.to_dict(), "\n".join(map(short_line, found.lines())), as_json)
