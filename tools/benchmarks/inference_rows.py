"""The engine and stock diffusers on the same prompts and noise: time by stage, and memory.

On a CPU both are in memory and take turns, so that a machine that others use slows both alike. On a
GPU each is measured alone: two networks of 14B would share its memory, and peaks would be sums.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infer.checks import Checked, engine_schedule
from infer.engine import Student, load_student
from infer.engine_plan import make_plan
from infer.memory_mode import sizes_of
from infer.options import Options
from lightx2v_sgmd.system.host_memory import GIB
from tools.benchmarks.peaks import gpu_peak, peak_growth
from tools.models.random_wan import PROMPT, RandomWan

Size = tuple[int, int, int]
Enough = Callable[[float], bool]
"""Tells whether so many seconds are left."""
PEAK_RUNS = 2
"""The most runs that ``peak_gib`` makes."""


class Inside:
    """Time spent inside modules, by stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

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


@dataclass
class Side:
    """One of the two that are compared.

    Attributes:
        name: ``ours`` or ``stock``.
        run: Makes so many videos.
        inside: The record of its networks' time.
        weights: Bytes of its networks.
        about: A description for the report.
    """

    name: str
    run: Callable[[int], Any]
    inside: Inside
    weights: Callable[[], int]
    about: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The source of the weights.

    Attributes:
        folder: A student's folder, or None.
        model: A model with random weights instead, or None.
        size: Height, width and frames.
        device: The device to compute on.
        dtype: Precision of the network; None is the engine's default.
    """

    folder: Path | None
    model: RandomWan | None
    size: Size
    device: torch.device
    dtype: torch.dtype | None

    def student(self, **options: Any) -> Student:
        """The engine with some of its options."""
        options = {"device": self.device, "dtype": self.dtype, **options}
        if self.model is None:
            assert self.folder is not None, "a source has a folder or a model"
            return load_student(self.folder, Options(assume_schedule="sgmd", **options))
        plan = make_plan(self.model, Options(**options), self.size)
        return Student(Checked(self.model, None, engine_schedule()), plan)

    def pipeline(self, dtype: torch.dtype) -> Any:
        """``WanPipeline`` as its documentation shows it: the VAE in float32."""
        if self.model is None:
            assert self.folder is not None, "a source has a folder or a model"
            return stock_pipeline(self.folder, dtype, self.device)
        from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

        text = self.model.load_text_encoder(dtype)
        pipe = WanPipeline(
            tokenizer=text.tokenizer,
            text_encoder=text.network,
            vae=self.model.load_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=engine_schedule().shift),
            transformer=self.model.load_transformer(dtype),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)


def stock_pipeline(weights: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A folder's ``WanPipeline``, without progress bars."""
    from diffusers import AutoencoderKLWan, WanPipeline

    vae = AutoencoderKLWan.from_pretrained(weights, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(weights, vae=vae, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def our_side(student: Student, size: Size) -> Side:
    """The engine; its networks are loaded here."""
    inside = Inside(student.device)
    height, width, num_frames = size
    inside.watch(student.transformer, "denoise")
    inside.watch(student.decoder, "decode")

    def run(count: int) -> Any:
        return student.generate(
            [PROMPT] * count, 0, height=height, width=width, num_frames=num_frames, batch_size=count
        )

    def weights() -> int:
        encoder = sizes_of(student.model).text_encoder * student.texts.dtype.itemsize
        return encoder + _bytes(student.transformer, student.decoder)

    plan = student.plan
    about = {"attention": student.attention, "quantize": plan.memory_mode.quantize}
    return Side("ours", run, inside, weights, about | {"compiled": plan.compile})


def stock_side(pipe: Any, size: Size, steps: int, device: torch.device) -> Side:
    """Stock diffusers."""
    inside = Inside(device)
    inside.watch(pipe.transformer, "denoise")
    inside.watch(pipe.vae.post_quant_conv, "decode")
    inside.watch(pipe.vae.decoder, "decode")
    inside.watch(pipe.text_encoder, "text")

    def weights() -> int:
        return _bytes(pipe.transformer, pipe.vae, pipe.text_encoder)

    return Side("stock", lambda count: run_stock(pipe, count, size, steps), inside, weights, {})


def run_stock(pipe: Any, count: int, size: Size, steps: int) -> Any:
    """Videos of the same prompt with seeds 0, 1, ... from diffusers."""
    height, width, num_frames = size
    return pipe(
        [PROMPT] * count,
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(count)],
    ).frames


def timed(compute: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall time of a call, the GPU's work included, and what it gave."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def measure_together(
    sides: list[Side], count: int, warmup: int, repetitions: int, enough: Enough
) -> list[dict[str, Any]]:
    """Rows of one batch size, the sides in turns within each; fewer, or none, if the time is up.

    Args:
        sides: One or both.
        count: Videos at once.
        warmup: Runs before the first row; the first compiles.
        repetitions: Rows.
        enough: True if there is time for another row.
    """
    device = sides[0].inside.device
    rows: list[dict[str, Any]] = []
    spent = 0.0  # by the run before; the first one compiles, and foretells nothing
    for number in range(warmup):
        if not enough(spent):
            return rows
        start = time.perf_counter()
        for side in sides:
            side.run(count)
        spent = time.perf_counter() - start if number else 0.0
    for repetition in range(repetitions):
        if not enough(spent):
            break
        row: dict[str, Any] = {}
        start = time.perf_counter()
        for side in sides if repetition % 2 == 0 else reversed(sides):
            side.inside.seconds = {}
            row[side.name], made = timed(lambda side=side: side.run(count), device)  # type: ignore[misc]
            row[f"inside_{side.name}"] = dict(side.inside.seconds)
            if side.name == "ours":
                row["timings"] = dict(made.timings)
        spent = time.perf_counter() - start
        rows.append(row)
    return rows


def peak_gib(side: Side, count: int) -> float:
    """The most that a side's own tensors take in a run: on a GPU it must be alone there."""
    device = side.inside.device
    if device.type == "cuda":
        found: dict[str, float] = {}
        with gpu_peak(device, found, "gib"):
            side.run(count)
        return found["gib"]
    side.run(count)  # what is loaded when first needed is there before the count begins
    return (side.weights() + peak_growth(lambda: side.run(count))) / GIB


def summary(rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Medians over the rows, of the sides that are in them."""
    middle = statistics.median
    names = [name for name in ("ours", "stock") if name in rows[0]]
    found: dict[str, Any] = {
        "seconds": {name: middle(row[name] for row in rows) for name in names},
        "stages": {},
        "forward": {
            name: middle(row[f"inside_{name}"]["denoise"] for row in rows) / steps for name in names
        },
    }
    if "ours" in names:
        stages = rows[0]["timings"]
        found["stages"]["ours"] = {s: middle(row["timings"][s] for row in rows) for s in stages}
        found["overhead"] = middle(_overhead(row) for row in rows)
    if "stock" in names:
        found["stages"]["stock"] = stock_stages(rows)
    if len(names) == 2:
        found["speedup"] = middle(row["stock"] / row["ours"] for row in rows)
    return found


def _overhead(row: dict[str, Any]) -> float:
    spent = row["inside_ours"]["denoise"] + row["inside_ours"]["decode"]
    return float((row["ours"] - row["timings"]["text"] - spent) / spent)


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


@contextmanager
def freeing(device: torch.device) -> Iterator[None]:
    """Frees the device's memory that the block held, when it ends."""
    import gc

    try:
        yield
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _bytes(*modules: Any) -> int:
    tensors = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            # A library's own layout has no address.
            key = tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)
            tensors[key] = tensor.nbytes
    return sum(tensors.values())
