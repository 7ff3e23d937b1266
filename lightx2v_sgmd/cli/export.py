"""``lightx2v-sgmd export``: writes a student's weights for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet, print_result
from lightx2v_sgmd.system.errors import short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} export runs/sprites_sgmd --format diffusers --out student --dtype fp32\n"
    f"  {PROG} export runs/wan_14b --format wan --dtype fp8 --out student_fp8\n"
    f"  {PROG} export runs/wan_14b --format lora --rank 64 --out student_lora"
)


def export_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run folder (its newest checkpoint), a checkpoint (also one of LightX2V's "
            "trainer), or an exported folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder, new or empty.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Layout: diffusers is a folder that diffusers loads as it is, wan has original "
            "names, for LightX2V, comfyui is one file and a workflow, lora has adapters for the "
            "teacher.",
        ),
    ] = "diffusers",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Precision of the weights: bf16, fp16, fp32, fp8 (wan and comfyui only) or "
            "fp8-legacy (for ComfyUI before December 2025). "
            "Default bf16, or the source's own if it is an exported folder.",
        ),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option(
            "--ema/--no-ema",
            help="Export the EMA weights if the run kept them; --no-ema exports the last step.",
        ),
    ] = True,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="LoRA rank (lora only); default 64.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the weight change that the LoRA keeps, from 0 to 1, instead of a rank.",
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="Names of the layers in the LoRA's file (lora only): portable for ComfyUI, "
            "LightX2V and diffusers, with a copy for PEFT; or diffusers, peft, musubi or "
            "lightx2v_train. Default portable.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART",
            help="Part of the change that the LoRA holds (lora only): blocks for the linear layers "
            "of the blocks alone, which every program applies. Default all of it.",
        ),
    ] = None,
    relative_to: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Weights that the LoRA of a fine-tune's student is added to (lora only): base, so "
            "that it holds teacher.loras too, or teacher, so that it goes on top of them. "
            "Default base.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Largest size of one weights file (diffusers, wan)."),
    ] = "5GB",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an unchanged export in DIR, and nothing else."),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Upload the finished export to this repository of the Hugging Face Hub, private "
            "unless --public. `weights push` resumes an interrupted upload.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the pushed repository public.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a student's weights for other programs.

    Every file is read back and compared before the folder appears; the exit code is 1 if something
    differs.
    """
    from weights import ExportError, export

    try:
        folder = export(
            source,
            format_,
            out,
            dtype=dtype,
            ema=ema,
            rank=rank,
            energy=energy,
            names=names,
            only=only,
            relative_to=relative_to,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            push=push,
            public=public,
            quiet=quiet,
        )
    except ExportError as error:
        print(f"error: {short_line(str(error))}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
    result = {"weights": str(folder)} | ({} if push is None else {"repository": push})
    print_result(result, str(folder), as_json)
