"""``lightx2v-sgmd serve``: an HTTP server of a student's videos."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from infer.options import Options
from lightx2v_sgmd.cli.options import PROG, Json, Quiet, read_options, with_options

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} serve --weights demo/student\n"
    f"  {PROG} serve --weights wan14b --port 9000 --data /var/lib/videos\n"
    f"  {PROG} serve --weights student --weights before=old/student --max-memory-gib 40\n"
    "  openssl rand -hex 32 > token\n"
    f"  {PROG} serve --weights wan14b --host 0.0.0.0 --token-file token"
)


@with_options(Options)
def serve_command(
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR|FILE",
            help="Weights that `export` wrote, or a base model for --lora; sprites is the bundled "
            "teacher. Repeatable: requests name one as `model`, by default the first.",
        ),
    ] = None,
    weights_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder whose folders and files of weights are served."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. One that other machines can reach needs --token-file.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one."
        ),
    ] = 8000,
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of the queue and the videos; a server that is started on it again "
            "continues.",
        ),
    ] = Path("serve"),
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the token that clients must send as `Authorization: Bearer TOKEN`.",
        ),
    ] = None,
    queue_limit: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=100_000,
            help="Maximum number of waiting videos; further requests get 429.",
        ),
    ] = 100,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Maximum number of videos of one size made together; default depends on the size.",
        ),
    ] = None,
    lora_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of LoRAs (.safetensors) that requests may name.",
        ),
    ] = None,
    nproc: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of processes (GPUs) that make one video together on this machine.",
        ),
    ] = 1,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Make the videos on the machines of a Ray cluster: that of RAY_ADDRESS, or one of "
            "this machine alone.",
        ),
    ] = False,
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Maximum number of engines with --ray; default one for each GPU.",
        ),
    ] = None,
    keep_hours: Annotated[
        float,
        typer.Option(metavar="HOURS", min=0, help="Hours after which finished videos are removed."),
    ] = 168.0,
    keep_gib: Annotated[
        float,
        typer.Option(
            metavar="GIB",
            min=0,
            help="Size of all videos in GiB, above which the oldest ones are removed.",
        ),
    ] = 20.0,
    quiet: Quiet = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Serve students over HTTP, and print the address.

    The API is OpenAI's videos API: POST /v1/videos, GET /v1/videos/ID, GET /v1/videos/ID/content. A
    page at / uses it. Accepted requests survive a restart on the same --data folder. Ctrl-C stops.
    """
    from infer.serve.names import named_weights
    from infer.serve.options import Served, ServeOptions
    from infer.serve.server import serve

    settings = ServeOptions(
        host=host,
        port=port,
        data=data,
        token_file=token_file,
        queue_limit=queue_limit,
        batch_size=batch,
        lora_folder=lora_folder,
        nproc=nproc,
        ray=ray,
        replicas=replicas,
        keep_hours=keep_hours,
        keep_gib=keep_gib,
    )

    def started(url: str, served: tuple[Served, ...]) -> None:
        names = [one.name for one in served]
        if as_json:
            facts = {"url": url, "model": names[0], "models": names, "data": str(data)}
            print(json.dumps(facts), flush=True)
        else:
            print(url, flush=True)
            if not quiet:
                print(f"serving {', '.join(names)}; Ctrl-C stops", file=sys.stderr, flush=True)

    serve(
        named_weights(weights or [], weights_folder),
        settings,
        Options(**read_options(options)),
        started,
    )
