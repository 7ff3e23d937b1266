"""``lightx2v-sgmd generate``: videos of an exported student, as mp4."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet
from lightx2v_sgmd.system.errors import UserError, short_line

EXAMPLES = (
    "\b\nExamples:\n"
    f'  {PROG} generate --weights demo/student --prompt "a red circle moving left" --out red.mp4\n'
    f"  {PROG} generate --weights student --prompts prompts.jsonl --out videos --batch 4\n"
    f'  {PROG} generate --weights wan14b --prompt "a fox" --out fox.mp4 --max-memory-gib 16\n'
    "  torchrun --nproc-per-node 4 -m lightx2v_sgmd generate --weights wan14b ..."
)


class Attention(StrEnum):
    """The kernels that can be asked for; ``doctor`` says which exist here."""

    auto = "auto"
    flash4 = "flash4"
    flash3 = "flash3"
    flash2 = "flash2"
    xformers = "xformers"
    sdpa = "sdpa"
    sdpa_cudnn = "sdpa-cudnn"
    sdpa_flash = "sdpa-flash"
    sdpa_efficient = "sdpa-efficient"
    sage = "sage"


class Dtype(StrEnum):
    """Precisions that the engine runs in."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Quantize(StrEnum):
    """How the weights of the blocks are stored, and computed with."""

    none = "none"
    fp8 = "fp8"
    int8 = "int8"
    fp8_storage = "fp8-storage"


_TORCH_NAMES = {Dtype.bf16: "bfloat16", Dtype.fp16: "float16", Dtype.fp32: "float32"}


def generate_command(
    weights: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE",
            help="What `export` wrote, or a base model for --lora; diffusers' or the original "
            "layout, or sprites, the bundled teacher.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A .mp4 file for --prompt, a folder for --prompts."),
    ],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to show.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many prompts: .txt (one a line), .csv, or .jsonl whose lines may also have seed, "
            "height, width, num_frames and name. Videos that are there already are not made again.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Of the first video; each next one takes the next number."
        ),
    ] = 0,
    height: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Default as trained.")
    ] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default as trained.")] = None,
    num_frames: Annotated[
        int | None, typer.Option(metavar="4k+1", help="Default as trained.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="RATE", help="Default as the teacher's videos.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Videos of one size made together.")
    ] = None,
    attention: Annotated[
        Attention,
        typer.Option(
            help="Attention kernel; auto takes the fastest exact one that works here. sage is "
            "approximate."
        ),
    ] = Attention.auto,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Default bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    vae_dtype: Annotated[
        Dtype,
        typer.Option(
            help="Precision of the VAE. bf16 is faster and shows as banding. On a GPU, fp32 "
            "convolutions run in TF32, as PyTorch does by default."
        ),
    ] = Dtype.fp32,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:1; default a GPU if there is one."),
    ] = None,
    quantize: Annotated[
        Quantize,
        typer.Option(
            help="fp8: weights and activations, GPU only. int8: weights. fp8-storage: weights, "
            "cast back layer by layer."
        ),
    ] = Quantize.none,
    max_memory_gib: Annotated[
        float | None,
        typer.Option(
            metavar="G",
            help="To stay below it, the next four options and --quantize are chosen; default on a "
            "GPU what is free there.",
        ),
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Fetch blocks from the main memory as they come.")
    ] = False,
    one_at_a_time: Annotated[
        bool, typer.Option("--one-at-a-time", help="Text encoder, network and VAE take turns.")
    ] = False,
    tile_vae: Annotated[bool, typer.Option("--tile-vae", help="Decode in tiles.")] = False,
    text_on_cpu: Annotated[
        bool, typer.Option("--text-on-cpu", help="Encode prompts on the CPU.")
    ] = False,
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the network's blocks; the first video is slower. On by default when all "
            "weights fit on the GPU; on a CPU it gains nothing.",
        ),
    ] = None,
    compile_cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where compiled kernels stay; default the user's cache."),
    ] = None,
    fuse_qkv: Annotated[
        bool, typer.Option("--fuse-qkv/--no-fuse-qkv", help="One product for q, k and v.")
    ] = True,
    text_cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none",
            help="Where embedded prompts stay (at most 4 GiB); default the user's cache.",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For weights that are one file: the model whose VAE and text encoder they use.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:STRENGTH]", help="Add a LoRA to the weights; repeatable."),
    ] = None,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Add it into the weights: faster, rounded once.")
    ] = False,
    assume_schedule: Annotated[
        str | None,
        typer.Option(
            metavar="sgmd[:N]",
            help="For weights that carry no schedule: the one they were trained on, of 4 or N "
            "steps. A teacher runs undistilled, without guidance.",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace (.json or .json.gz; ui.perfetto.dev)."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make videos with a student, and print the files.

    One that fails does not stop the others (exit 1 at the end). Weights whose schedule is not one
    that this engine runs are refused.
    """
    if (prompt is None) == (prompts is None):
        raise UserError("--prompt, --prompts: give one of the two")
    import torch

    from infer import Lora, generate_files
    from lightx2v_sgmd.system.caches import cache_folder

    cache = Path(text_cache) if text_cache else cache_folder("text")
    if text_cache == "none":
        cache = None
    outcome = generate_files(
        weights,
        prompt if prompt is not None else prompts,  # type: ignore[arg-type]
        out,
        seed=seed,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=fps,
        batch_size=batch,
        assume_schedule=assume_schedule,
        base=base,
        profile=profile,
        quiet=quiet,
        attention=attention.value,
        dtype=getattr(torch, _TORCH_NAMES[dtype]) if dtype else None,
        vae_dtype=getattr(torch, _TORCH_NAMES[vae_dtype]),
        device=device,
        quantize=quantize.value,
        offload=offload,
        one_at_a_time=one_at_a_time,
        tile_vae=tile_vae,
        text_on_cpu=text_on_cpu,
        max_memory_gib=max_memory_gib,
        compile=compile_,
        compile_cache=compile_cache,
        fuse_qkv=fuse_qkv,
        text_cache=cache,
        loras=tuple(Lora.parse(text) for text in lora or ()),
        merge_lora=merge_lora,
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
        "options": outcome.way,
    }
    print(json.dumps(result, indent=2), flush=True)
