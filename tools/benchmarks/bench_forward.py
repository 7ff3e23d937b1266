"""Times a forward pass of the engine's network beside diffusers' on the same random weights.

    python -m tools.benchmarks.bench_forward --out docs/benchmarks/forward.json --size 480 832 5

The network has the width of a published model and a few of its blocks. Both run in one process and
take turns (A B, then B A), so that a machine whose speed changes changes both. With one thread (the
default) ratios are of the process's CPU time, which other work on the machine changes little; with
more they are of wall time, and the machine has to be quiet. The text is 120 rows of random numbers
and its padding. Rows of other sizes and of other processors that the file has already stay in it,
and a page beside the file, ``.md``, shows all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from infer.engine_plan import make_plan
from infer.network.loading import load_network
from infer.options import Options
from lightx2v_sgmd.families.text_rows import fold_text_padding, pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.parallel.ranks import Ranks
from tools.benchmarks import machines
from tools.models.random_wan import SHAPES, RandomWan, open_random_wan
from tools.own_files import check_own, write_own

TEXT_ROWS = 120
NAMES = {"stock": "diffusers", "engine": "engine", "compiled": "engine, compiled"}


def networks(model: RandomWan, with_compiled: bool) -> dict[str, Any]:
    """Diffusers' network and the engine's as it loads it on a CPU, from equal weights."""
    made = {"stock": model.load_transformer(torch.float32).requires_grad_(False)}
    for name, compile_ in (("engine", None), ("compiled", True)):
        if compile_ and not with_compiled:
            continue
        plan = make_plan(model, Options(device="cpu", compile=compile_), None)
        made[name] = load_network(model, plan, Ranks())
        fold_text_padding(made[name])
    return made


@torch.no_grad()
def measure(model: RandomWan, size: tuple[int, int, int], args: Any) -> dict[str, Any]:
    """Seconds of every contestant's forward passes at a size, and how their results differ."""
    contestants = networks(model, args.compiled)
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(1, *model.latent_shape(*size), generator=generator)
    rows = torch.randn(TEXT_ROWS, model.text_dim, generator=generator)
    text, sigma = pad_text([rows]), torch.tensor([0.9])
    padded = torch.nn.functional.pad(text, (0, 0, 0, -text.shape[1] % 16))
    texts = {name: padded if name == "compiled" else text for name in contestants}
    for name, network in contestants.items():
        # Compiled networks have to see the shape itself; for others any size starts everything up.
        warm = x_t if name == "compiled" else x_t[:, :, :1, :8, :8].contiguous()
        velocity(network, warm, sigma, texts[name])
    clock = time.process_time if args.threads == 1 else time.perf_counter
    results: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(args.rounds):
        for name in order:
            start = clock()
            results[name] = velocity(contestants[name], x_t, sigma, texts[name])
            seconds[name].append(clock() - start)
        order.reverse()
    expected = results["stock"].double()
    row: dict[str, Any] = {
        "size": list(size),
        "tokens": model.token_count(*size),
        "threads": args.threads,
    }
    for name in contestants:
        ratios = [a / b for a, b in zip(seconds["stock"], seconds[name], strict=True)]
        difference = (results[name].double() - expected).norm() / expected.norm()
        row[name] = {
            "seconds": [round(s, 3) for s in seconds[name]],
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "difference": float(difference),
        }
    return row


def machine() -> dict[str, Any]:
    """The processor and the versions of what computes."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return {
        "processor": machines.processor(),
        "instructions": instructions,
        **machines.describe(torch.device("cpu")),
    }


TITLE: Final = "# A forward pass at a real model's width, on a CPU"


def page(report: dict[str, Any]) -> str:
    """The report as Markdown, a table for each processor."""
    lines = [
        TITLE,
        "",
        f"{report['layers']} blocks of the width of `{report['model']}`, random weights, float32, "
        f"one video, {TEXT_ROWS} rows of text.",
        "",
        "Both run in one process and take turns. With one thread, seconds are of the process's CPU "
        "time, which other work on the machine changes little; with more they are of wall time. "
        "Seconds are medians; *times faster* is the median of neighbours' ratios with the lowest "
        "and the highest; *difference* is the norm of the difference over the norm of diffusers' "
        "result.",
    ]
    for processor in dict.fromkeys(row["machine"]["processor"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["machine"]["processor"] == processor]
        about = rows[-1]["machine"]
        lines += [
            "",
            f"## {processor}",
            "",
            f"{about['cores']} cores, {about['instructions']}; torch {about['torch']}, diffusers "
            f"{about['diffusers']}, Python {about['python']}.",
            "",
            "| size | tokens | threads | contestant | seconds | times faster | lowest, highest | "
            "difference |",
            "|---|---|---|---|---|---|---|---|",
            *(line for row in rows for line in _lines(row)),
            "",
            "```bash",
            *(f"python -m {row['command']}" for row in rows),
            "```",
        ]
    return "\n".join([*lines, ""])


def _lines(row: dict[str, Any]) -> Iterator[str]:
    """The lines of a row's contestants."""
    for name, label in NAMES.items():
        if name not in row:
            continue
        found, size = row[name], row["size"]
        yield (
            f"| {size[0]}x{size[1]}, {size[2]} frames | {row['tokens']} | {row['threads']} | "
            f"{label} | "
            f"{statistics.median(found['seconds']):.2f} | {found['ratio']:.2f} | "
            f"{min(found['ratios']):.2f}, {max(found['ratios']):.2f} | "
            f"{found['difference']:.1e} |"
        )


def kind_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """The subject of a row: a newer one replaces an older one of the same."""
    return row["machine"]["processor"], row["tokens"], *row["size"], row["threads"]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that a file has already; those of older files have their machine at its top."""
    if not file.is_file():
        return []
    report = json.loads(file.read_text(encoding="utf-8"))
    return [
        row if "machine" in row else {**row, "machine": report["machine"]} for row in report["rows"]
    ]


def main() -> None:
    """Measures one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", choices=SHAPES, default="1.3b", help="model whose width is taken; default 1.3b"
    )
    parser.add_argument("--layers", type=int, default=4, help="number of blocks; default 4")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=[480, 832, 5],
        metavar=("HEIGHT", "WIDTH", "FRAMES"),
        help="size of the video; default 480 832 5",
    )
    parser.add_argument("--rounds", type=int, default=4, help="turns of each network; default 4")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of both networks; default 1"
    )
    parser.add_argument("--compiled", action="store_true", help="also time the compiled engine")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file; a Markdown page goes beside it"
    )
    args = parser.parse_args()
    check_own(args.out, "bench_forward")
    before = read_rows(args.out)
    check_own(args.out.with_suffix(".md"), TITLE)
    torch.set_num_threads(args.threads)
    model = open_random_wan(args.shape, torch.device("cpu"))
    config = {**model.transformer_config, "num_layers": args.layers}
    model = replace(model, transformer_config=config)
    row = measure(model, tuple(args.size), args)
    row["command"] = "tools.benchmarks.bench_forward " + " ".join(sys.argv[1:])
    row["machine"] = machine()
    others = [each for each in before if kind_of(each) != kind_of(row)]
    report = {
        "model": SHAPES[args.shape],
        "layers": args.layers,
        "rows": sorted([*others, row], key=kind_of),
    }
    write_own(args.out, json.dumps(report, indent=1) + "\n", "bench_forward")
    write_own(args.out.with_suffix(".md"), page(report), TITLE)
    print(page(report))


if __name__ == "__main__":
    main()
