"""``lightx2v-sgmd weights``: checks exported weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json
from lightx2v_sgmd.system.errors import short_line

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def weights_command() -> None:
    """Check exported weights."""


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
