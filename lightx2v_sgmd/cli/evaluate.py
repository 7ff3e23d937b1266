"""``lightx2v-sgmd evaluate``: measures a student beside its teacher, or any videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet

if TYPE_CHECKING:
    from lightx2v_sgmd.apps.evaluation import EvaluateOptions
    from lightx2v_sgmd.apps.evaluation.shards import Shard

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} evaluate --weights demo/student --against sprites --prompts prompts.txt --out eval\n"
    f"  {PROG} evaluate --weights student --against Wan2.1-T2V-1.3B-Diffusers \\\n"
    "      --prompts prompts.txt --seeds 2 --out eval\n"
    f"  {PROG} evaluate --weights videos_a --against videos_b --prompts prompts.txt --out ab \\\n"
    "      --metrics motion,optflow,fvd --i3d i3d_torchscript.pt\n"
    f"  {PROG} evaluate --weights student --vbench VBench --out vb --shard 2/4\n"
    f"  {PROG} evaluate --weights student --vbench VBench --out vb \\\n"
    "      --vbench-python ~/vbench-env/bin/python"
)


def evaluate_command(
    weights: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Model or videos to measure: a student that `export` wrote, a teacher (a Wan "
            "folder, sampled with its own sampler), or a folder of .mp4 files.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts, none of them trained on: .txt (one a line), .jsonl or .csv. Needed "
            "unless --vbench names them.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Reference: the teacher, another student, or a folder of .mp4.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Metrics to report; default all that can be computed: optflow, dyndeg, motion, "
            "flicker, change, sharpness, colourfulness, brightness, contrast, saturation, "
            "diversity, frechet, clip, videoalign (with _vq, _mq, _ta), fvd.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Number of videos per prompt.")] = 1,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed of the first video; later ones count up.")
    ] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Model whose features the Frechet distance compares; default the teacher among "
            "--against and --weights.",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="A teacher's guidance scale; default that of the student's training, else 5.",
        ),
    ] = None,
    guidance_scale_2: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="Guidance scale of a teacher's second, low-noise expert; default that of the "
            "student's training if --guidance-scale is not given either, else the first one's.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Prompt that a teacher's guidance leads away from; default its authors' own.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Number of steps of a teacher's sampler.")
    ] = 50,
    height: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Height of the videos; default as trained.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Width of the videos; default as trained.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(metavar="4k+1", help="Frames of the videos; default as trained.")
    ] = None,
    i3d: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TorchScript file of an I3D network, for FVD; a program, so use one you trust.",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of a transformers CLIPModel, for the CLIP score, such as a copy of "
            "openai/clip-vit-large-patch14.",
        ),
    ] = None,
    videoalign: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Checkout of VideoAlign with its weights in checkpoints/, for its scores; a "
            "program, so use one you trust.",
        ),
    ] = None,
    videoalign_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python of the environment that VideoAlign runs in; default this one.",
        ),
    ] = None,
    shown: Annotated[
        int,
        typer.Option(metavar="N", help="Maximum number of prompts whose videos are in the report."),
    ] = 16,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Device: cpu or cuda; default a GPU if there is one."),
    ] = None,
    vbench: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Score with VBench: a checkout of its code, or its VBench_full_info.json, which "
            "lists the prompts. Makes five videos of each prompt.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Make only part K of N of the videos, so that N machines share them; then run "
            "once without it.",
        ),
    ] = None,
    augmented: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts to make the videos of --vbench from, one for each prompt of the "
            "list, in its order; default the prompts themselves.",
        ),
    ] = None,
    vbench_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PYTHON",
            help="Python that has the package vbench, which runs there; default this one, if it "
            "has it.",
        ),
    ] = None,
    vbench_results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Results that vbench wrote elsewhere, to read in place of running it; repeatable.",
        ),
    ] = None,
    nproc: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of processes that make the videos on this machine, each on its own GPU.",
        ),
    ] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a student, or any videos, beside a reference.

    The command writes metrics.json, report.html (videos side by side, tables, plots) and videos/.
    If it is interrupted, run it again to resume: existing videos are not made again.

    With --vbench it makes VBench's videos instead, runs the package vbench (or reads its results)
    and reports Quality, Semantic and Total.
    """
    from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate, evaluate_shard
    from lightx2v_sgmd.apps.evaluation.shards import Shard
    from lightx2v_sgmd.system.errors import UserError

    options = EvaluateOptions(
        metrics=tuple(name.strip() for name in metrics.split(",")) if metrics is not None else (),
        seeds=seeds,
        seed=seed,
        teacher=teacher,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        negative_prompt=negative_prompt,
        steps=steps,
        height=height,
        width=width,
        num_frames=num_frames,
        i3d=i3d,
        clip=clip,
        videoalign=videoalign,
        videoalign_python=videoalign_python,
        shown=shown,
        device=device,
    )
    if vbench is not None:
        unused = {
            "--prompts": prompts,
            "--against": against,
            "--metrics": metrics,
            "--teacher": teacher,
            "--i3d": i3d,
            "--clip": clip,
            "--videoalign": videoalign,
            "--videoalign-python": videoalign_python,
            "--seeds": None if seeds == 1 else seeds,
        }
        if given := [name for name, value in unused.items() if value is not None]:
            raise UserError(
                f"{given[0]}: has no meaning with --vbench, whose prompts and scores are VBench's; "
                "leave it out"
            )
        part = None if shard is None else Shard.parse(shard)
        results = (augmented, part, tuple(vbench_results or ()), vbench_python, nproc)
        _vbench(weights, out, vbench, *results, options, quiet, as_json)
        return
    for name, value in (
        ("--augmented", augmented),
        ("--vbench-python", vbench_python),
        ("--vbench-results", vbench_results or None),
    ):
        if value is not None:
            raise UserError(f"{name}: belongs to --vbench; add --vbench DIR or leave it out")
    if prompts is None:
        raise UserError("--prompts: is missing; name a prompt file, or VBench's list by --vbench")
    if shard is not None:
        if nproc > 1:
            raise UserError("--nproc: makes all videos; leave out --shard, or give it to one each")
        part = Shard.parse(shard)
        evaluate_shard(weights, prompts, out, part, against=against, options=options, quiet=quiet)
        return
    done = evaluate(
        weights, prompts, out, against=against, options=options, nproc=nproc, quiet=quiet
    )
    if as_json:
        print(json.dumps(done.metrics, indent=1), flush=True)
        return
    _print(done.metrics)
    print(f"\n{done.out / 'report.html'}", flush=True)


def _vbench(
    weights: str,
    out: Path,
    suite: Path,
    augmented: Path | None,
    shard: Shard | None,
    results: tuple[Path, ...],
    python: Path | None,
    nproc: int,
    options: EvaluateOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """``evaluate --vbench``."""
    from lightx2v_sgmd.apps.vbench import VBenchOptions, evaluate_vbench
    from lightx2v_sgmd.apps.vbench.page import text_report

    chosen = VBenchOptions(suite, augmented, shard, results, python, nproc)
    found = evaluate_vbench(weights, out, chosen, options, quiet)
    if found is None:
        return
    if as_json:
        print(json.dumps(found, indent=1), flush=True)
        return
    print(text_report(found))
    print(f"\n{out / 'report.html'}", flush=True)


def _print(results: dict[str, object]) -> None:
    from lightx2v_sgmd.apps.evaluation.page import set_rows, side_names, table_rows

    names = list(side_names(results).values())
    heads = ["", *names, *(["difference"] if len(names) > 1 else [])]
    lines = [heads]
    for row in table_rows(results):
        lines.append([row["title"], *row["values"], *([row["difference"]] if names[1:] else [])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
    for title, value, remark in set_rows(results):
        print(f"{title}: {value} ({remark})")
