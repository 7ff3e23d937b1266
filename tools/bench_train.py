"""Times training iterations of a job by phase; with several methods, beside each other.

    python -m tools.bench_train configs/sprites_sgmd.yaml --methods sgmd,dmd2
    python -m tools.bench_train JOB.yaml --nproc 2 --set parallel.strategy=zero3 --out bench.json
    torchrun --nproc-per-node 8 -m tools.bench_train configs/wan2.1_t2v_1.3b_sgmd.yaml

Methods take turns, iteration by iteration, so that a machine that others use slows all alike. Each
step of the rollout is the exit step equally often. A method's own sections come from the job beside
the named one, as in ``lightx2v-sgmd compare``.

Operations are those that ``plan`` counts, recomputed ones included (``mfu``) or not
(``mfu_useful``). Communication is, on CPUs, time in which a process waits for another; on GPUs,
what NCCL's kernels take while no other kernel runs, from a profile of one more iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from distill.building import Start, build_trainer, open_latents
from distill.counting import PassCounter
from distill.data import load_prompts
from distill.flops import forward_operations, iteration_passes
from distill.memory import Meter
from distill.trainer import Trainer
from lightx2v_sgmd.comparison.plan import method_job
from lightx2v_sgmd.job import Job, check_against_model, load_job
from lightx2v_sgmd.models.wan import TEXT_LENGTH, open_wan
from lightx2v_sgmd.parallel import Ranks, connect, training_device
from tools.phases import PHASES, Phases, exposed, kernel_intervals

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
}
"""Dense bfloat16, by NVIDIA's data sheets; the first name that fits counts."""


def jobs(args: argparse.Namespace) -> list[Job]:
    """One for each method, of the same teacher, data and sizes."""
    base = load_job(args.job, args.settings)
    if not args.methods:
        return [base]
    found = []
    for method in args.methods.split(","):
        beside = method_job(args.job, base.method.name, method)
        if method != base.method.name and not beside.is_file():
            raise SystemExit(f"--methods {method}: there is no {beside}")
        found.append(load_job(beside if method != base.method.name else args.job, args.settings))
    return found


class Bench:
    """One method's trainer and what was measured of it."""

    def __init__(self, job: Job, ranks: Ranks) -> None:
        self.job, self.ranks = job, ranks
        self.model = open_wan(job.teacher.path, job.teacher.base)
        check_against_model(job, self.model)
        latents = open_latents(job, self.model)
        self.trainer: Trainer = build_trainer(
            job, self.model, load_prompts(job), latents, ranks, Start(), quiet=True
        )
        each = 1 + (job.method.fake_score_updates if job.method.fresh_rollouts else 0)
        steps = len(job.schedule)
        batches: Any = self.trainer.batches
        batches.exit_step = lambda draw: (draw // each + draw % each) % steps
        videos = job.train.micro_batch * job.train.accumulation
        self.counter = PassCounter(self.trainer.strategy.networks, videos)
        self.phases = Phases(ranks.device)
        self.phases.watch(self.trainer)
        self.seconds: list[float] = []
        self.counts: list[dict[str, Any]] = []
        self.done = 0

    def warm_up(self, iterations: int) -> None:
        """Runs what is not measured."""
        for _ in range(iterations):
            self._iterate()
        self.counter.take()
        self.phases.seconds = dict.fromkeys(PHASES, 0.0)
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def measure(self) -> None:
        """Times one iteration from when all are ready."""
        self.ranks.barrier()
        start = time.perf_counter()
        with self.phases.watching_waits(), self.phases.phase("other"):
            self._iterate()
        self.seconds.append(time.perf_counter() - start)
        self.counts.append(self.counter.take())

    def profile(self, trace: Path | None) -> float | None:
        """Of one more iteration, the share of communication alone, on GPUs; keeps the trace."""
        cuda = self.ranks.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity
        measured = dict(self.phases.seconds)
        start = time.perf_counter()
        with torch.profiler.profile(
            activities=[activity.CPU, *([activity.CUDA] if cuda else [])]
        ) as profile:
            self._iterate()
            if cuda:
                torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.phases.seconds = measured
        if trace is not None and self.ranks.first:
            profile.export_chrome_trace(str(trace))
        return exposed(*kernel_intervals(profile)) / seconds if cuda else None

    def _iterate(self) -> None:
        self.trainer.iterate(self.done)
        self.done += 1

    def report(self, peak_tflops: float | None, exposed_share: float | None) -> dict[str, Any]:
        """What all ranks measured, on average."""
        job, count = self.job, len(self.seconds)
        every = self.ranks.gather((fmean(self.seconds), self.phases.seconds))
        seconds = fmean(own for own, _ in every)
        phases = {name: fmean(own[name] for _, own in every) / count for name in PHASES}
        share = phases["communication"] / seconds if exposed_share is None else exposed_share
        flops, useful = self._flops()
        result = {
            "method": job.method.name,
            "seconds": seconds,
            "each_s": self.seconds,
            "forward_equivalents": fmean(c["forward_equivalents"] for c in self.counts),
            "phases_s": phases,
            "communication_share": share,
            "tflop": flops / 1e12,
            "tflops_per_s": flops / seconds / 1e12,
        }
        if peak_tflops is not None:
            result["mfu"] = flops / seconds / 1e12 / peak_tflops
            result["mfu_useful"] = useful / seconds / 1e12 / peak_tflops
        if self.ranks.device.type == "cuda":
            result["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return result

    def _flops(self) -> tuple[float, float]:
        """Of this process in an iteration, with and without what is computed again."""
        job, config = self.job, self.model.transformer_config
        latents = self.model.latent_shape(job.video.height, job.video.width, job.video.num_frames)
        tokens = 1
        for length, patch in zip(latents[1:], config["patch_size"], strict=True):
            tokens *= length // patch
        rows = TEXT_LENGTH
        if getattr(self.trainer.strategy.networks["student"], "text_padding_is_folded", False):
            rows = max(len(row) for row in self.trainer.batches.rows) + 1
        forward = forward_operations(config, tokens, rows)
        videos = job.train.micro_batch * job.train.accumulation / job.parallel.sequence
        passes = iteration_passes(job, Meter(self.model).shares(job)).values()
        once = (replace(each, recomputed=0, attention_recomputed=0) for each in passes)
        flops = sum(each.operations(forward) for each in passes)
        return videos * flops, videos * sum(each.operations(forward) for each in once)


def table(report: dict[str, Any]) -> str:
    """The methods side by side, in Markdown."""
    results = report["methods"]
    shown = [name for name in PHASES if any(r["phases_s"][name] > 0 for r in results)]
    head = [
        "method",
        "s",
        "forwards",
        *shown,
        "communication, share",
        "TFLOP/s",
        "MFU",
        "s to the first",
    ]
    lines = [head, ["---"] * len(head)]
    for result in results:
        mfu = result.get("mfu")
        lines.append(
            [
                result["method"],
                f"{result['seconds']:.3f}",
                f"{result['forward_equivalents']:.1f}",
                *(f"{result['phases_s'][name]:.3f}" for name in shown),
                f"{result['communication_share']:.1%}",
                f"{result['tflops_per_s']:.3g}",
                "" if mfu is None else f"{mfu:.1%}",
                f"{result['seconds'] / results[0]['seconds']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The machine, the versions and how busy it was."""
    import diffusers

    found: dict[str, Any] = {
        "command": " ".join(["python -m tools.bench_train", *sys.argv[1:]]),
        "processes": ranks.size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def peak_of(args: argparse.Namespace, device: torch.device) -> float | None:
    """In TFLOP/s: as given, or the GPU's."""
    if args.peak_tflops is not None or device.type != "cuda":
        return args.peak_tflops
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures in this process, which may be one of several."""
    chosen = jobs(args)
    device = training_device()
    ranks = connect(chosen[0].parallel.strategy, device)
    ranks = replace(ranks, share=chosen[0].parallel.sequence)
    load = os.getloadavg()[0]
    benches = [Bench(job, ranks) for job in chosen]
    for bench in benches:
        bench.warm_up(args.warmup)
    for _ in range(args.iterations):
        for bench in benches:
            bench.measure()
    shares = []
    for bench in benches:
        wanted = device.type == "cuda" or args.trace is not None
        trace = None
        if args.trace is not None:
            trace = args.trace.with_name(f"{args.trace.stem}_{bench.job.method.name}.json")
        shares.append(bench.profile(trace) if wanted else None)
    peak = peak_of(args, device)
    results = [bench.report(peak, share) for bench, share in zip(benches, shares, strict=True)]
    machine = {**describe(device, ranks), "load_before": load, "peak_tflops": peak}
    benches[-1].trainer.strategy.close()
    return {"machine": machine, "job": chosen[0].to_yaml(), "methods": results}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("job", type=Path, metavar="JOB.yaml")
    parser.add_argument("--methods", help="A,B,C: measured in turns; default the job's own")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--iterations", type=int, default=4, help="a multiple of the steps")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--nproc", type=int, default=1, help="processes to start here")
    parser.add_argument("--peak-tflops", type=float, help="for MFU; known GPUs are recognised")
    parser.add_argument("--trace", type=Path, help="FILE.json: a Chrome trace of each method")
    parser.add_argument("--out", type=Path, help="FILE.json: everything that was measured")
    return parser.parse_args()


_AsWritten = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)


def _without_nproc(words: list[str]) -> list[str]:
    """The ranks' own command line; torchrun would take the option for one of its own."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--nproc"):
            kept.append(word)
        skip = word == "--nproc"
    return kept


def main() -> None:
    """Measures, prints a table, writes JSON."""
    args = arguments()
    if args.nproc > 1 and "RANK" not in os.environ:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={args.nproc}"]
        own = _without_nproc(sys.argv[1:])
        command = [sys.executable, "-m", *launcher, "-m", "tools.bench_train", *own]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    report = run(args)
    if int(os.environ.get("RANK", "0")) == 0:
        print(table(report), flush=True)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
