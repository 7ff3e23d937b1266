"""``lightx2v-sgmd generate``: videos of an exported student, as mp4."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from infer.options import GenerateOptions
from lightx2v_sgmd.cli.options import PROG, Json, Quiet, read_options, with_options
from lightx2v_sgmd.system.errors import UserError, short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f'  {PROG} generate --weights demo/student --prompt "a red circle moving left" --out red.mp4\n'
    f"  {PROG} generate --weights student --prompts prompts.jsonl --out videos --batch 4\n"
    f'  {PROG} generate --weights wan14b --prompt "a fox" --out fox.mp4 --max-memory-gib 16\n'
    f"  {PROG} generate --weights /mnt/wan14b --prompts p.txt --out videos --ray first:6379\n"
    "  torchrun --nproc-per-node 4 -m lightx2v_sgmd generate --weights wan14b ..."
)


@with_options(GenerateOptions)
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
        typer.Option(
            metavar="PATH",
            help="Output: a .mp4 file for --prompt (.png where the model makes images), a folder "
            "otherwise.",
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Prompt: a description of the video.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of prompts: .txt (one a line), .csv, or .jsonl whose lines may also have "
            "seed, height, width, num_frames, name and image. Existing videos are not made again.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make videos with a student, and print the files.

    Students of SD3 and SDXL make images. A video that fails does not stop the others (exit 1 at the
    end). Weights whose schedule is not one that this engine runs are refused.
    """
    if (prompt is None) == (prompts is None):
        raise UserError("--prompt, --prompts: give one of the two")
    from infer import generate_files

    outcome = generate_files(
        weights,
        prompt if prompt is not None else prompts,  # type: ignore[arg-type]
        out,
        GenerateOptions(**read_options(options)),
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
