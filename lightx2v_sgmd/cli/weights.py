"""``lightx2v-sgmd weights``: says what weights are, and checks and uploads exported ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet, print_result
from lightx2v_sgmd.system.errors import short_line

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def weights_command() -> None:
    """Say what weights are, and check and upload exported ones."""


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


@app.command("push", epilog=f"\b\nExample:\n  {PROG} weights push student me/wan-1.3b-4-steps")
def push_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `export` wrote.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository; it is made if need be.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace files of the same names in a repository that has files.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Upload an exported folder to the Hugging Face Hub.

    The repository is private unless --public. Run the same command again after an interruption. The
    token is that of `hf auth login`, or HF_TOKEN.
    """
    from weights import push

    url = push(folder, repository, private=not public, replace=overwrite, quiet=quiet)
    print_result({"repository": repository, "url": url}, url, as_json)


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
            help="Model that the weights are a variant of; default any known model that they fit.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a file or folder of weights is: origin, names, size, types, steps, what is missing.

    It reads only headers and small files.
    """
    from lightx2v_sgmd.families.inspection.inspecting import inspect_weights

    found = inspect_weights(path, base)
    print_result(found.to_dict(), "\n".join(map(short_line, found.lines())), as_json)
