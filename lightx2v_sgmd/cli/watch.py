"""``lightx2v-sgmd watch``: one live page of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} watch runs/sprites_sgmd\n"
    "  openssl rand -hex 32 > token\n"
    f"  {PROG} watch runs/sprites_sgmd --host 0.0.0.0 --token-file token"
)


def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, running or finished.")],
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. One that other machines can reach needs --token-file.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8200,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the token that the page asks for."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show a run live in the browser, and print the address.

    One page has curves, samples, speed and warnings. It only reads the run's folder. Ctrl-C stops
    the server. It needs the extra `serve`.
    """
    from lightx2v_sgmd.apps.watch.watching import watch

    def started(url: str) -> None:
        print(json.dumps({"url": url}) if as_json else url, flush=True)
        if not (quiet or as_json):
            print("Ctrl-C stops", file=sys.stderr, flush=True)

    watch(run, host, port, token_file, started)
