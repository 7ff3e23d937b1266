"""One method's training, measured: time by phase, passes, operations, memory beside the plan's."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from distill.building import StartingPoint, build_trainer, open_latents
from distill.counting import PassCounter
from distill.data import load_prompts
from distill.model_checks import check_against_model
from distill.planning.flops import forward_operations, iteration_passes
from distill.planning.model_meter import ModelMeter
from distill.planning.rank_memory import rank_memory
from distill.trainer import Trainer
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.teacher import with_defaults
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.host_memory import GIB
from tools.benchmarks.peaks import live_bytes, memory_growth
from tools.benchmarks.phases import PHASES, Phases, exposed, kernel_intervals
from tools.models.random_wan import RandomWan

TEXT_ROWS = 24
"""Text tokens of the made-up prompts that random weights are trained on."""

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
}
"""Dense bfloat16, by NVIDIA's data sheets; the first name that fits counts."""


def gpu_peak_tflops(name: str) -> float | None:
    """The peak of a GPU by its name; None if it is not a known one."""
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


class TrainingBench:
    """One method's trainer and what was measured of it.

    Args:
        job: The job to train.
        model: The job's teacher; a ``RandomWan`` is trained on random text embeddings, too.
        ranks: The processes of the run.
        alone: True if no other trainer is in this process, so that memory is this one's.
    """

    def __init__(self, job: Job, model: Model, ranks: Ranks, alone: bool) -> None:
        job = with_defaults(job, model)
        self.job, self.model, self.ranks, self.alone = job, model, ranks, alone
        check_against_model(job, model)
        self._cuda = ranks.device.type == "cuda"
        self._before = torch.cuda.memory_allocated() if self._cuda else live_bytes()
        self._warm = False
        start = time.perf_counter()
        self.trainer = _trainer(job, model, ranks, self._exit_step)
        self.build_s = time.perf_counter() - start
        videos = job.train.micro_batch * job.train.accumulation
        self.counter = PassCounter(self.trainer.strategy.networks, videos)
        self.phases = Phases(ranks.device)
        self.trainer.listen(self.phases)
        self.warmup_s: list[float] = []
        self.seconds: list[float] = []
        self.counts: list[dict[str, Any]] = []
        self.exposed_share: float | None = None
        self.peak_bytes: int | None = None
        self.skipped: list[str] = []
        self._done = 0

    def _exit_step(self, exit_index: int) -> int:
        """Each step in turn, but while warming up the last, which compiles what all others need."""
        method, steps = self.job.method, len(self.job.steps)
        each = 1 + (method.fake_score_updates if method.fresh_rollouts else 0)
        return (exit_index // each + exit_index % each) % steps if self._warm else steps - 1

    @property
    def last_s(self) -> float:
        """Seconds of the newest iteration; 0 before the first."""
        return next(iter([*self.seconds[-1:], *self.warmup_s[-1:]]), 0.0)

    def warm_up(self, iterations: int, enough_time: Callable[[float], bool]) -> None:
        """Runs what is not measured, while there is time for it."""
        for _ in range(iterations):
            if not enough_time(self.last_s):
                break
            self.warmup_s.append(self._timed())
        self._warm = True
        self.counter.take()
        self.phases.seconds = dict.fromkeys(PHASES, 0.0)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def measure(self) -> None:
        """Times one iteration from when all are ready."""
        self.ranks.barrier()
        with self.phases.watching_waits(), self.phases.phase("other"):
            self.seconds.append(self._timed())
        self.counts.append(self.counter.take())
        if self._cuda and self.alone:
            self.peak_bytes = torch.cuda.max_memory_allocated() - self._before

    def profile(self, trace: Path | None) -> None:
        """Runs one more iteration under torch's profiler.

        It gives the share of communication alone on GPUs, and the peak of memory on a CPU. One
        process on a GPU does not communicate, so nothing is run unless a trace is asked for.
        """
        if self._cuda and self.ranks.size == 1 and trace is None:
            self.exposed_share = 0.0
            return
        activity = torch.profiler.ProfilerActivity
        measured = dict(self.phases.seconds)
        held = 0 if self._cuda else live_bytes()
        with torch.profiler.profile(
            activities=[activity.CPU, *([activity.CUDA] if self._cuda else [])],
            profile_memory=not self._cuda,
        ) as profile:
            seconds = self._timed()
        self.phases.seconds = measured
        if trace is not None and self.ranks.first:
            profile.export_chrome_trace(str(trace))
        if self._cuda:
            self.exposed_share = exposed(*kernel_intervals(profile)) / seconds
        elif self.alone:
            self.peak_bytes = held - self._before + memory_growth(profile)[1]

    def _timed(self) -> float:
        start = time.perf_counter()
        self.trainer.iterate(self._done)
        if self._cuda:
            torch.cuda.synchronize()
        self._done += 1
        return time.perf_counter() - start

    def report(self, peak_tflops: float | None) -> dict[str, Any]:
        """The measurements so far, averaged over all ranks."""
        job, count = self.job, len(self.seconds)
        result: dict[str, Any] = {
            "method": job.method.name,
            "strategy": job.parallel.strategy,
            "iterations": count,
            "build_s": self.build_s,
            "warmup_s": self.warmup_s,
        }
        if self.skipped:
            result["skipped"] = self.skipped
        if not count:
            return result
        every = self.ranks.gather((fmean(self.seconds), self.phases.seconds))
        seconds = fmean(own for own, _ in every)
        phases = {name: fmean(own[name] for _, own in every) / count for name in PHASES}
        share = phases["communication"] / seconds
        flops, useful = self._flops()
        result |= {
            "seconds": seconds,
            "each_s": self.seconds,
            "forward_equivalents": fmean(c["forward_equivalents"] for c in self.counts),
            "phases_s": phases,
            "communication_share": share if self.exposed_share is None else self.exposed_share,
            "tflop": flops / 1e12,
            "tflops_per_s": flops / seconds / 1e12,
        }
        if peak_tflops is not None:
            result["mfu"] = flops / seconds / 1e12 / peak_tflops
            result["mfu_useful"] = useful / seconds / 1e12 / peak_tflops
        if self.peak_bytes is not None:
            result["peak_memory_gib"] = max(self.ranks.gather(self.peak_bytes)) / GIB
        return result

    def planned_memory(self) -> dict[str, Any]:
        """The plan's memory of a rank in an iteration, in GiB."""
        meter = ModelMeter(self.model, self._text_rows(), on_gpu=self._cuda)
        memory = rank_memory(self.job, meter, self.ranks.size)
        phases = {name: sum(p.values()) for name, p in memory.phases.items() if name != "samples"}
        phase = max(phases, key=lambda name: phases[name])
        parts = memory.always | memory.phases[phase]
        return {
            "total": sum(parts.values()) / GIB,
            "phase": phase,
            "components": {name: value / GIB for name, value in parts.items() if value},
        }

    def close(self) -> None:
        """Lets go of the networks and leaves the process group."""
        self.trainer.strategy.close()
        del self.trainer, self.counter, self.phases
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def _text_rows(self) -> int:
        """Text rows that the networks attend to."""
        network = self.trainer.strategy.networks["student"]
        if getattr(network, "text_padding_is_folded", False):
            return max(len(row) for row in self.trainer.batches.rows) + 1
        return TEXT_LENGTH

    def _flops(self) -> tuple[float, float]:
        """This process's operations in an iteration, with and without what is computed again."""
        job = self.job
        tokens = self.model.token_count(job.video.height, job.video.width, job.video.frames)
        config = self.model.transformer_config
        forward = forward_operations(config, tokens, self._text_rows())
        videos = job.train.micro_batch * job.train.accumulation / job.parallel.sequence
        passes = iteration_passes(job, ModelMeter(self.model).shares(job)).values()
        once = (replace(each, recomputed=0, attention_recomputed=0) for each in passes)
        flops = sum(each.operations(forward) for each in passes)
        return videos * flops, videos * sum(each.operations(forward) for each in once)


def _trainer(job: Job, model: Model, ranks: Ranks, exit_order: Callable[[int], int]) -> Trainer:
    build = partial(build_trainer, job, model, quiet=True, exit_order=exit_order)
    if isinstance(model, RandomWan):
        dtype = torch_type(job.teacher.dtype)
        rows = [Embedding({"text": row.to(dtype)}) for row in model.random_rows(9, TEXT_ROWS)]
        return build([], None, ranks, StartingPoint(), rows=rows)
    return build(load_prompts(job), open_latents(job, model), ranks, StartingPoint())
