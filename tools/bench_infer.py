"""Times the engine beside stock diffusers ``WanPipeline``: same weights, same run, same noise.

    python -m tools.bench_infer --weights student --batches 1 2 4 8 --out docs/benchmarks
    python -m tools.bench_infer --random Wan-AI/Wan2.1-T2V-14B-Diffusers --weights /scratch/wan14b \
        --batches 1 --compile

The two take turns, so that a machine that others use slows both alike; medians are of ratios of
neighbours. ``inside`` is the time in the networks (four forwards, the VAE's decoder), measured in
the engine's own runs; ``overhead`` is what the engine adds to it. The text encoder is a stage of
its own.

With ``--random`` a folder of random weights of a known shape is written first. Its text encoder is
small (the real one has 11 GB), so its text stage says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tools.bounds import bound, machine_limits, stage_work

PROMPT = "a red circle moving left quickly"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Inside:
    """Time spent inside modules, by stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}

    def watch(self, module: Any, stage: str) -> None:
        """Counts a module's forwards as part of a stage; hooks would take time of their own."""
        forward = module.forward

        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = forward(*args, **kwargs)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - start
            return result

        module.forward = timed_forward

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def memory_peak(device: torch.device, result: dict[str, float]) -> Iterator[None]:
    """The most memory in use during a block, in GiB: the GPU's, or this process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield
        result["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return
    done, highest = threading.Event(), [0]

    def sample() -> None:
        while not done.wait(0.002):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            highest[0] = max(highest[0], pages)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        result["gib"] = highest[0] * os.sysconf("SC_PAGE_SIZE") / 2**30


def stock_pipeline(weights: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """``WanPipeline`` as its documentation shows it: the VAE in float32."""
    from diffusers import AutoencoderKLWan, WanPipeline

    vae = AutoencoderKLWan.from_pretrained(weights, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(weights, vae=vae, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_stock(pipe: Any, count: int, size: tuple[int, int, int], steps: int) -> Any:
    """Videos of the same prompt with seeds 0, 1, ... from diffusers."""
    height, width, num_frames = size
    return pipe(
        [f"{PROMPT}" for _ in range(count)],
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(count)],
    ).frames


def run_ours(student: Any, count: int, size: tuple[int, int, int]) -> Any:
    """The same videos from the engine."""
    height, width, num_frames = size
    return student.generate(
        [PROMPT] * count, 0, height=height, width=width, num_frames=num_frames, batch_size=count
    )


def timed(compute: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of a call, the GPU's work included, and what it gave."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def measure(
    student: Any, pipe: Any, count: int, size: tuple[int, int, int], args: argparse.Namespace
) -> dict[str, Any]:
    """One batch size: warm-up, then the two in turns."""
    device = student.device
    steps = len(student.schedule)
    inside = args.inside
    ours: Callable[[], Any] = lambda: run_ours(student, count, size)  # noqa: E731
    stock: Callable[[], Any] = lambda: run_stock(pipe, count, size, steps)  # noqa: E731
    for _ in range(args.warmup):
        ours(), stock()
    rows = []
    for repetition in range(args.repetitions):
        inside["ours"].seconds, inside["stock"].seconds = {}, {}
        order = [("ours", ours), ("stock", stock)]
        row: dict[str, Any] = {}
        for name, compute in order if repetition % 2 == 0 else reversed(order):
            row[name], made = timed(compute, device)
            if name == "ours":
                row["timings"] = dict(made.timings)
        for name, watched in inside.items():
            row[f"inside_{name}"] = dict(watched.seconds)
        rows.append(row)
    peaks: dict[str, float] = {}
    for name, compute in (("ours", ours), ("stock", stock)):
        found: dict[str, float] = {}
        with memory_peak(device, found):
            compute()
        peaks[name] = found["gib"]
    return {"batch": count, **summary(rows), "peak_gib": peaks, "rows": rows}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions."""
    middle = statistics.median

    def overhead(row: dict[str, Any]) -> float:
        spent = row["inside_ours"]["denoise"] + row["inside_ours"]["decode"]
        return float((row["ours"] - row["timings"]["text"] - spent) / spent)

    return {
        "seconds": {name: middle(row[name] for row in rows) for name in ("ours", "stock")},
        "stages": {
            "ours": {s: middle(row["timings"][s] for row in rows) for s in rows[0]["timings"]},
            "stock": stock_stages(rows),
        },
        "forward": {
            name: middle(row[f"inside_{name}"]["denoise"] for row in rows) / 4
            for name in ("ours", "stock")
        },
        "speedup": middle(row["stock"] / row["ours"] for row in rows),
        "overhead": middle(overhead(row) for row in rows),
    }


def stock_stages(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Stages of diffusers, which reports none: the time inside its networks, and the rest."""
    stages = {
        stage: statistics.median(row["inside_stock"][stage] for row in rows)
        for stage in ("text", "denoise", "decode")
    }
    rest = statistics.median(
        row["stock"] - sum(row["inside_stock"][stage] for stage in stages) for row in rows
    )
    return {**stages, "rest": rest}


def cold_start(args: argparse.Namespace) -> dict[str, float]:
    """Seconds from a new process to the first video, for both."""
    height, width, num_frames = args.size
    ours = (
        "from infer import load_student; import torch, sys; "
        f"s = load_student({str(args.weights)!r}, assume_schedule='sgmd', device={args.device!r}); "
        f"s.generate({PROMPT!r}, height={height}, width={width}, num_frames={num_frames})"
    )
    stock = (
        "from tools.bench_infer import *; d = torch.device("
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


def write_random(hub_id: str, folder: Path, layers: int | None) -> None:
    """Writes random weights of a known shape, block by block small enough for the machine."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    from lightx2v_sgmd.models.known import known_transformer_config
    from tools.wan_folder import make_tokenizer, text_encoder_config, write_wan_folder

    config = known_transformer_config(hub_id)
    if config is None:
        raise SystemExit(f"--random: {hub_id} is not a shape that ships with the package")
    if layers is not None:
        config["num_layers"] = layers
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = WanTransformer3DModel.from_config(config)
    finally:
        torch.set_default_dtype(default)
    tokenizer = make_tokenizer(PROMPT.split())
    text = UMT5EncoderModel(text_encoder_config(len(tokenizer), config["text_dim"], 1, 64))
    write_wan_folder(folder, transformer, AutoencoderKLWan(), text, tokenizer, shift=3.0)


def plot(report: dict[str, Any], path: Path) -> None:
    """Stacked bars: stages of both, by batch size, in seconds a video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"text": "#4c72b0", "denoise": "#dd8452", "decode": "#55a868", "rest": "#8c8c8c"}
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for index, result in enumerate(report["results"]):
        for shift, name in ((-0.2, "ours"), (0.2, "stock")):
            stages = result["stages"][name]
            bottom = 0.0
            for stage, colour in colours.items():
                height = stages.get(stage, 0.0) / result["batch"]
                label = stage if index == 0 and name == "stock" else None
                axes.bar(index + shift, height, 0.36, bottom, color=colour, label=label)
                bottom += height
            axes.text(index + shift, bottom, name, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(report["results"])), [str(r["batch"]) for r in report["results"]])
    axes.set_xlabel("videos at once")
    axes.set_ylabel("seconds a video")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="a student's folder")
    parser.add_argument("--random", metavar="HUB_ID", help="write random weights there first")
    parser.add_argument("--layers", type=int, help="of the random network; default as its shape")
    parser.add_argument("--size", type=int, nargs=3, metavar=("HEIGHT", "WIDTH", "FRAMES"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bounds", action="store_true", help="say what bounds each stage")
    parser.add_argument("--cold", action="store_true", help="time a new process, too")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of json and plot")
    parser.add_argument("--name", default="inference")
    return parser.parse_args()


def main() -> None:
    """Runs it."""
    from infer import load_student

    args = arguments()
    if args.random:
        write_random(args.random, args.weights, args.layers)
        args.size = args.size or [480, 832, 81]
    device = torch.device(args.device)
    dtype = DTYPES[args.dtype] if args.dtype else None
    student = load_student(
        args.weights,
        assume_schedule="sgmd",
        device=device,
        dtype=dtype,
        attention=args.attention,
        quantize=args.quantize,
        compile=args.compile,
    )
    pipe = stock_pipeline(args.weights, student.dtype, device)
    manifest = student.checked.manifest
    if args.size is None:
        assert manifest is not None, "the weights do not say their size: give --size"
        args.size = [manifest.video.height, manifest.video.width, manifest.video.num_frames]
    args.inside = {"ours": Inside(device), "stock": Inside(device)}
    for name, network, decoding in (
        ("ours", student.transformer, [student.decoder]),
        ("stock", pipe.transformer, [pipe.vae.post_quant_conv, pipe.vae.decoder]),
    ):
        args.inside[name].watch(network, "denoise")
        for module in decoding:
            args.inside[name].watch(module, "decode")
    args.inside["stock"].watch(pipe.text_encoder, "text")
    size = (args.size[0], args.size[1], args.size[2])
    report: dict[str, Any] = {
        "machine": describe(device),
        "command": " ".join(sys.argv[1:]),
        "size": list(size),
        "dtype": str(student.dtype),
        "attention": student.attention,
        "quantize": args.quantize,
        "compiled": student.plan.compile,
        "results": [],
    }
    if args.bounds:
        report["limits"] = machine_limits(device, student.dtype)
    for count in args.batches:
        result = measure(student, pipe, count, size, args)
        report["results"].append(result)
        seconds = result["seconds"]
        print(
            f"batch {count}: ours {seconds['ours']:.3f} s, stock {seconds['stock']:.3f} s, "
            f"{result['speedup']:.2f}x, overhead {result['overhead']:.1%}, forward "
            f"{result['forward']['ours']:.4f} s, peak {result['peak_gib']['ours']:.2f} GiB",
            flush=True,
        )
        if args.bounds:
            result["work"] = stage_work(student, PROMPT, count, size)
            for stage, work in result["work"].items():
                work["bound"] = bound(work, report["limits"])
                shares = ", ".join(f"{of} {share:.0%}" for of, share in work["bound"].items())
                print(f"  {stage}: {work['seconds']:.4f} s, of which {shares}", flush=True)
    if args.cold:
        report["cold_start"] = cold_start(args)
        print("cold start", report["cold_start"])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, args.out / f"{args.name}.png")


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    import diffusers

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


if __name__ == "__main__":
    main()
