"""``lightx2v-sgmd generate``: videos of an exported student, as mp4."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from infer.options import GenerateOptions, Lora, Options, flag_of
from lightx2v_sgmd.cli.options import PROG, Json, Quiet
from lightx2v_sgmd.system.errors import UserError, short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f'  {PROG} generate --weights demo/student --prompt "a red circle moving left" --out red.mp4\n'
    f"  {PROG} generate --weights student --prompts prompts.jsonl --out videos --batch 4\n"
    f'  {PROG} generate --weights wan14b --prompt "a fox" --out fox.mp4 --max-memory-gib 16\n'
    "  torchrun --nproc-per-node 4 -m lightx2v_sgmd generate --weights wan14b ..."
)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds to a command an option for each field of ``GenerateOptions``, for its ``**options``."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values()]
    named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    engine = {option.name for option in fields(Options)}
    # The options of the videos first: they are what most people look for.
    ordered = sorted(fields(GenerateOptions), key=lambda option: option.name in engine)
    parameters = [*named, *map(_parameter, ordered)]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(option: Field[Any]) -> inspect.Parameter:
    """The option of a field."""
    about, default = option.metadata, option.default
    flag = flag_of(option.name, about["flag"])
    kind, names = about["kind"], [flag]
    if kind is bool and default is not False:
        names = [f"{flag}/--no-{flag.removeprefix('--')}"]
    if default is None or default == ():
        kind, default = kind | None, None
    choice = typer.Option(
        *names, help=about["meaning"], metavar=about["metavar"] or None, min=about["least"]
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, choice],
    )


@with_options
def generate_command(
    weights: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE",
            help="Weights that `export` wrote, or a base model for --lora, in diffusers' or the "
            "original layout; sprites is the bundled teacher.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Output: a .mp4 file for --prompt, a folder otherwise."),
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Prompt: a description of the video.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of prompts: .txt (one a line), .csv, or .jsonl whose lines may also have "
            "seed, height, width, num_frames and name. Videos that are there are not made again.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make videos with a student, and print the files.

    A video that fails does not stop the others (exit 1 at the end). Weights whose schedule is not
    one that this engine runs are refused.
    """
    if (prompt is None) == (prompts is None):
        raise UserError("--prompt, --prompts: give one of the two")
    from infer import generate_files
    from lightx2v_sgmd.system.caches import cache_folder

    cache = options.pop("text_cache")
    if cache != "none":
        options["text_cache"] = Path(cache) if cache else cache_folder("text")
    options["loras"] = tuple(Lora.parse(text) for text in options["loras"] or ())
    outcome = generate_files(
        weights,
        prompt if prompt is not None else prompts,  # type: ignore[arg-type]
        out,
        GenerateOptions(**options),
        quiet=quiet,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        _print(outcome, as_json)
    if outcome.failed:
        raise typer.Exit(1)


def _print(outcome: Any, as_json: bool) -> None:
    names = [str(file) for file in outcome.files]
    if not as_json:
        print("\n".join(names), flush=True)
        for name, reason in outcome.failed:
            typer.echo(f"error: {short_line(f'{name}: {reason}')}", err=True)
        return
    result = {
        "videos": names,
        "skipped": outcome.skipped,
        "failed": [{"name": name, "reason": reason} for name, reason in outcome.failed],
        "timings": {stage: round(seconds, 4) for stage, seconds in outcome.timings.items()},
        "options": outcome.memory_mode,
    }
    print(json.dumps(result, indent=2), flush=True)
