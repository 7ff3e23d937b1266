"""Times the engine beside stock diffusers ``WanPipeline``: same weights, same run, same noise.

    python -m tools.benchmarks.bench_infer --weights student --batches 1 2 4 8 --out docs/benchmarks
    python -m tools.benchmarks.bench_infer --random 14b --batches 1 --attention auto sdpa flash3 \
        --quantize none fp8 --repetitions 3 --warmup 1 --budget 400 --out bench

The engine is measured as it comes (compiled where it compiles by itself) and, if that is compiled,
eager in a row of its own; ``--compile`` and ``--no-compile`` measure one of the two. Several
kernels and quantisations are rows of one run. What cannot run here says why in its row.

On a CPU the two take turns, so that a machine that others use slows both alike; medians are of
ratios of neighbours. On a GPU each is alone there, and ratios are of medians. ``inside`` is time
in the networks (the forwards, the VAE's decoder), measured in the same runs; ``overhead``
is what the engine adds to it. The text encoder is a stage of its own. ``peak_gib`` is what each
one's own tensors take.

The JSON is written after every row. ``--budget`` leaves out a row that would not fit, by the time
that the row before it took. A row that fails has its ``error``, the others are measured, and the
exit code is 1. With ``--random`` weights of a known shape are made on the device, and nothing is
read or written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.system.errors import UserError
from tools.benchmarks.inference_rows import (
    PEAK_RUNS,
    Side,
    Size,
    Source,
    freeing,
    measure_together,
    our_side,
    peak_gib,
    stock_side,
    summary,
)
from tools.benchmarks.machines import describe
from tools.counting.bounds import bound, machine_limits, stage_work
from tools.gpu_check.report import one_line
from tools.models.random_wan import PROMPT, open_random_wan
from tools.own_files import FIGURE, replacing_own, write_own

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STARTED = time.monotonic()


class Report:
    """The JSON, replaced whole after every row.

    Args:
        path: The file.
        content: The content before the first row.
        budget_s: Seconds since the start after which nothing new begins; None is no limit.
    """

    def __init__(self, path: Path, content: dict[str, Any], budget_s: float | None) -> None:
        self.path, self.content, self.budget_s = path, {**content, "results": []}, budget_s
        self._last_s: dict[int, float] = {}
        self.write()

    def write(self) -> None:
        """Replaces the file."""
        self.content["elapsed_s"] = round(time.monotonic() - STARTED, 1)
        write_own(self.path, json.dumps(self.content, indent=1) + "\n", "bench_infer")

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.content["results"].append(row)
        self.write()
        print(line_of(row), flush=True)

    def enough(self, seconds: float) -> bool:
        """True if that much time is left."""
        elapsed = time.monotonic() - STARTED
        return self.budget_s is None or elapsed + 1.2 * seconds < self.budget_s

    def took(self, count: int, seconds: float) -> None:
        """Notes the time that the last row of so many videos took, warming up and compiling too."""
        self._last_s[count] = seconds

    def expected_s(self, count: int) -> float:
        """An estimate of a row's time, by the last one of the nearest number; 0 before any."""
        if not self._last_s:
            return 0.0
        nearest = min(self._last_s, key=lambda known: abs(known - count))
        return self._last_s[nearest] * count / nearest


def line_of(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    label = f"batch {row['batch']}, {label_of(row)}" if "batch" in row else label_of(row)
    for key in ("unavailable", "skipped", "error"):
        if key in row:
            return f"{label}: {key}: {row[key]}"
    words = [f"{name} {seconds:.3f} s" for name, seconds in row["seconds"].items()]
    words += [f"{row['speedup']:.2f}x"] if "speedup" in row else []
    words += [f"overhead {row['overhead']:.1%}"] if "overhead" in row else []
    words += [f"forward {seconds:.4f} s ({name})" for name, seconds in row["forward"].items()]
    words += [f"peak {gib:.2f} GiB ({name})" for name, gib in row["peak_gib"].items()]
    return f"{label}: {', '.join(words)}"


def label_of(row: dict[str, Any]) -> str:
    """A row's variant in words."""
    variant = row["variant"]
    if variant == "stock":
        return "stock diffusers"
    compiled = {True: "compiled", False: "eager", None: "as it comes"}[variant["compiled"]]
    quantize = "" if variant["quantize"] == "none" else f", {variant['quantize']}"
    return f"{variant['attention']}{quantize}, {compiled}"


def engine_options(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The engine's options of each variant that is asked for."""
    for quantize, attention in product(args.quantize, args.attention):
        yield {"attention": attention, "quantize": quantize, "compile": args.compile}


def measure(source: Source, args: argparse.Namespace, report: Report) -> None:
    """All rows: the engine's variants, each beside stock or after it."""
    alone = measures_alone(source.device)
    with freeing(source.device):
        stock = None if args.ours_only else _stock(source, report)
        stock_rows: dict[int, dict[str, Any]] = {}
        if stock is not None and alone:
            for count in args.batches:
                row = one_row([stock], count, "stock", args, report)
                if "seconds" in row:
                    stock_rows[count] = row
                report.add(row)
            stock = None
    wanted = list(engine_options(args))
    for options in wanted:
        with freeing(source.device):
            compiled = measure_variant(source, options, stock, stock_rows, args, report)
        if compiled and options["compile"] is None:
            wanted.append({**options, "compile": False})


def measures_alone(device: torch.device) -> bool:
    """True if only one of the two may be on a device."""
    return device.type == "cuda"


def _stock(source: Source, report: Report) -> Side | None:
    """Stock diffusers; None if it cannot be loaded, which is then a row."""
    # Both compute in the engine's precision.
    cuda = source.device.type == "cuda"
    dtype = source.dtype or (torch.bfloat16 if cuda else torch.float32)
    try:
        return stock_side(source.pipeline(dtype), source.size, 4, source.device)
    except Exception as error:  # whatever it is, the engine may still run
        report.add({"variant": "stock", "error": noted(error)})
        return None


def noted(error: Exception) -> str:
    """An error in a line for a row; its traceback goes to the terminal."""
    traceback.print_exception(error)
    return one_line(error)


def measure_variant(
    source: Source,
    options: dict[str, Any],
    stock: Side | None,
    stock_rows: dict[int, dict[str, Any]],
    args: argparse.Namespace,
    report: Report,
) -> bool:
    """Rows of one variant of the engine for every batch size; whether it is compiled."""
    variant = {key: options[key] for key in ("attention", "quantize")}
    variant["compiled"] = options["compile"]
    if not report.enough(report.expected_s(min(args.batches))):
        report.add({"variant": variant, "skipped": "no time left"})
        return False
    try:
        student = source.student(**options)
        ours = our_side(student, source.size)
    except UserError as error:
        report.add({"variant": variant, "unavailable": str(error)})
        return False
    except Exception as error:  # out of memory, or a kernel's: it costs this variant only
        report.add({"variant": variant, "error": noted(error)})
        return False
    about = ours.about
    for count in args.batches:
        row = one_row([ours, *([stock] if stock else [])], count, about, args, report)
        beside = stock_rows.get(count)
        if beside is not None and "seconds" in row:
            for key in ("seconds", "stages", "forward", "peak_gib"):
                row[key]["stock"] = beside[key]["stock"]
            row["speedup"] = row["seconds"]["stock"] / row["seconds"]["ours"]
        if args.bounds and "seconds" in row:
            row["work"] = stage_work(student, PROMPT, count, source.size)
            for work in row["work"].values():
                work["bound"] = bound(work, report.content["limits"])
        report.add(row)
        for stage, work in row.get("work", {}).items():
            shares = ", ".join(f"{of} {share:.0%}" for of, share in work["bound"].items())
            print(f"  {stage}: {work['seconds']:.4f} s, of which {shares}", flush=True)
    return student.plan.compile


def one_row(
    sides: list[Side], count: int, variant: Any, args: argparse.Namespace, report: Report
) -> dict[str, Any]:
    """One batch size of one variant; with ``skipped`` or ``error`` if it has no figures."""
    row: dict[str, Any] = {"batch": count, "variant": variant}
    if not report.enough(report.expected_s(count)):
        return {**row, "skipped": "no time left"}
    start = time.monotonic()

    def enough(seconds: float) -> bool:
        """True if there is time for that and then for the peak's runs."""
        return report.enough((1 + PEAK_RUNS) * seconds)

    try:
        rows = measure_together(sides, count, args.warmup, args.repetitions, enough)
        if not rows:
            return {**row, "skipped": "no time left after warming up"}
        peaks = {side.name: peak_gib(side, count) for side in sides}
    except Exception as error:  # out of memory, or a kernel's: it costs this row only
        return {**row, "error": noted(error)}
    repeated = sum(each[side.name] for each in rows[1:] for side in sides)
    report.took(count, time.monotonic() - start - repeated)
    return {**row, **summary(rows, 4), "peak_gib": peaks, "rows": rows}


def cold_start(args: argparse.Namespace) -> dict[str, float]:
    """Seconds from a new process to the first video, for both."""
    height, width, num_frames = args.size
    ours = (
        "from infer import Options, load_student; import torch, sys; "
        f"s = load_student({str(args.weights)!r}, "
        f"Options(assume_schedule='sgmd', device={args.device!r})); "
        f"s.generate({PROMPT!r}, height={height}, width={width}, num_frames={num_frames})"
    )
    stock = (
        "from tools.benchmarks.inference_rows import *; d = torch.device("
        f"{args.device!r}); p = stock_pipeline(Path({str(args.weights)!r}), "
        f"torch.bfloat16 if d.type == 'cuda' else torch.float32, d); "
        f"run_stock(p, 1, {tuple(args.size)}, 4)"
    )
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(3):
        for name, code in (("ours", ours), ("stock", stock)):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def plot(report: dict[str, Any], path: Path) -> None:
    """Stacked bars: stages of both, by row, in seconds a video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"text": "#4c72b0", "denoise": "#dd8452", "decode": "#55a868", "rest": "#8c8c8c"}
    results = [row for row in report["results"] if "ours" in row.get("stages", {})]
    if not results:
        return
    several = len({label_of(row) for row in results}) > 1
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for index, result in enumerate(results):
        for shift, name in ((-0.2, "ours"), (0.2, "stock")):
            stages = result["stages"].get(name, {})
            bottom = 0.0
            for stage, colour in colours.items():
                height = stages.get(stage, 0.0) / result["batch"]
                label = stage if index == 0 and name == "stock" else None
                axes.bar(index + shift, height, 0.36, bottom, color=colour, label=label)
                bottom += height
            axes.text(index + shift, bottom, name, ha="center", va="bottom", fontsize=8)
    names = [f"{r['batch']}\n{label_of(r)}" if several else str(r["batch"]) for r in results]
    axes.set_xticks(range(len(results)), names, fontsize=6 if several else None)
    axes.set_xlabel("videos at once")
    axes.set_ylabel("seconds a video")
    axes.legend(frameon=False, fontsize=8)
    with replacing_own(path, FIGURE) as temporary:
        figure.savefig(temporary, dpi=120)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a student's folder")
    parser.add_argument(
        "--random", metavar="SHAPE", help="random weights instead: 14b, 1.3b, sprites or a hub id"
    )
    parser.add_argument("--layers", type=int, help="blocks of the random network; default all")
    parser.add_argument("--size", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "FRAMES"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="time limit of all rows; default none"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument(
        "--attention",
        nargs="+",
        default=["auto"],
        metavar="KERNEL",
        help="attention kernels; default auto",
    )
    parser.add_argument(
        "--quantize",
        nargs="+",
        default=["none"],
        metavar="KIND",
        help="kinds of weights; default none",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the blocks or not; by default both, if the engine compiles by itself here",
    )
    parser.add_argument("--ours-only", action="store_true", help="leave stock diffusers out")
    parser.add_argument("--bounds", action="store_true", help="say what bounds each stage")
    parser.add_argument("--cold", action="store_true", help="time a new process, too")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of json and plot")
    parser.add_argument("--name", default="inference")
    args = parser.parse_args()
    if (args.weights is None) == (args.random is None):
        parser.error("give --weights DIR or --random SHAPE, one of the two")
    if args.random and args.cold:
        parser.error("--cold: needs --weights DIR; random weights are made in this process")
    return args


def source_of(args: argparse.Namespace, device: torch.device) -> Source:
    """The source of the weights; sets ``args.size``."""
    dtype = DTYPES[args.dtype] if args.dtype else None
    if args.random:
        model = open_random_wan(args.random, device)
        if args.layers is not None:
            layers = {**model.transformer_config, "num_layers": args.layers}
            model = replace(model, transformer_config=layers)
        args.size = args.size or ([32, 32, 9] if args.random == "sprites" else [480, 832, 81])
        return Source(None, model, _three(args.size), device, dtype)
    if args.size is None:
        from infer.checks import check_student

        video = check_student(args.weights, "sgmd").video
        if video is None:
            raise UserError("--size: the weights do not say their size; give it")
        args.size = [video.height, video.width, video.num_frames]
    return Source(args.weights, None, _three(args.size), device, dtype)


def _three(size: list[int]) -> Size:
    return size[0], size[1], size[2]


def main() -> int:
    """Runs it: 0, 1 if a row failed, or 2 if the command line or the weights are wrong."""
    args = arguments()
    device = torch.device(args.device)
    try:
        source = source_of(args, device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    content = {
        "machine": describe(device),
        "command": " ".join(["python -m tools.benchmarks.bench_infer", *sys.argv[1:]]),
        "size": list(source.size),
    }
    if args.bounds:
        precision = source.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        content["limits"] = machine_limits(device, precision)
    report = Report(args.out / f"{args.name}.json", content, args.budget)
    measure(source, args, report)
    if args.cold:
        report.content["cold_start"] = cold_start(args)
        report.write()
        print("cold start", report.content["cold_start"])
    plot(report.content, args.out / f"{args.name}.png")
    return int(any("error" in row for row in report.content["results"]))


if __name__ == "__main__":
    sys.exit(main())
