"""One forward of the network: stock diffusers and the engine, eager, compiled, in fp8.

Networks are made and measured one at a time, so that each peak is its own. All have the same
weights, noise and text; the velocity of the first step is compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.checks import engine_schedule
from infer.engine import Student
from infer.engine_plan import EnginePlan, make_plan, why_not_quantize
from infer.memory_mode import Workload, needed_gib
from infer.options import Options
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.networks import attention as kernels
from lightx2v_sgmd.rollout import rollout
from tools.gpu_check.context import Context, relative_difference
from tools.gpu_check.report import NotHere, Row, Step
from tools.gpu_check.steps.kernel_table import kernel_table

SEED = 0
TEXT_ROWS = 38
Denoise = Callable[[Any], Tensor]
"""Runs the steps on one video, calling its argument after each one with index and latents."""


@dataclass(frozen=True)
class Variant:
    """The subject of a row.

    Attributes:
        label: The row's label.
        options: The engine's options; None: stock diffusers.
        compiled: True if stock is; the engine's options say it for the engine.
        table: True if the kernels' times are taken, too.
    """

    label: str
    options: Options | None
    compiled: bool = False
    table: bool = False


def run(context: Context, step: Step) -> None:
    """A row for each variant, what matters most first."""
    measure_all(context, step, variants(context))
    for slower in ("stock, eager", "stock, compiled"):
        step.data[f"times_faster_than_{slower.replace(', ', '_')}"] = _times(step, slower)


def measure_all(context: Context, step: Step, wanted: list[Variant]) -> None:
    """Measures the wanted variants, a row for each."""
    stock = step.out / "stock_velocity.pt"
    for variant in wanted:

        def measure(row: Row, variant: Variant = variant) -> None:
            one_variant(context, variant, row, stock)

        step.row(variant.label, expected_s(context, variant), measure)


def variants(context: Context) -> list[Variant]:
    """Stock, the engine as it comes, in fp8, and eager, and stock compiled."""

    def options(**chosen: Any) -> Options:
        return Options(device=context.device, **chosen)

    rows = [
        Variant("stock, eager", None, table=True),
        Variant("engine, as it comes", options(), table=True),
        Variant("engine, compiled", options(compile=True)),
        Variant("stock, compiled", None, compiled=True),
        Variant("engine, fp8", options(quantize="fp8"), table=True),
        Variant("engine, eager", options(compile=False)),
    ]
    plan = make_plan(context.model, rows[1].options or Options(), context.size)
    if plan.compile:  # the same as the row before it
        del rows[2]
    return rows


def kernel_variants(context: Context) -> list[Variant]:
    """The engine compiled with each exact kernel that runs here."""
    return [
        Variant(kernel.name, Options(device=context.device, compile=True, attention=kernel.name))
        for kernel in kernels.kernels(context.device, context.dtype, context.head_dim)
        if kernel.available and not kernels.KERNELS[kernel.name].approximate
    ]


def expected_s(context: Context, variant: Variant) -> float:
    """Estimates the step's seconds: making the weights, compiling, and six forwards."""
    compiled = variant.compiled if variant.options is None else variant.options.compile is not False
    if not context.cuda and variant.options is not None and variant.options.compile is None:
        compiled = False
    compiling = context.compile_s if compiled else 0.0
    return 4 + compiling + 7 * context.forward_s


def one_variant(context: Context, variant: Variant, row: Row, stock: Path) -> None:
    """Fills a row: milliseconds of a forward, compiling, peak, difference, kernels."""
    torch._dynamo.reset()
    with context.peak(row, "load_peak_gib"):
        start = time.perf_counter()
        denoise, about, short = prepared(context, variant)
        context.sync()
        row["load_s"] = time.perf_counter() - start
    row |= about
    times: list[float] = []
    first: list[Tensor] = []
    with context.peak(row):
        context.sync()
        since = time.perf_counter()

        def on_step(index: int, x_t: Tensor) -> None:
            nonlocal since
            context.sync()
            now = time.perf_counter()
            times.append(now - since)
            if index == 0:
                first.append(x_t.detach().float().cpu())
            since = time.perf_counter()

        denoise(on_step)
    row["first_s"], row["each_ms"] = times[0], [1e3 * each for each in times[1:]]
    row["ms"] = statistics.median(row["each_ms"])
    work = context.operations.linear + context.operations.attention
    row["tflops"] = work / row["ms"] / 1e9
    if variant.label == "stock, eager":
        torch.save(first[0], stock)
    elif stock.is_file():
        row["difference_to_stock"] = velocity_difference(context, first[0], stock)
    if not first[0].isfinite().all():
        raise ArithmeticError("the network gave numbers that are not finite")
    if variant.table:
        row |= kernel_table(context, short)


def prepared(context: Context, variant: Variant) -> tuple[Denoise, Row, Callable[[], Any]]:
    """A network that is ready: all steps of it, what it is, and one step of it."""
    rows = torch.randn(
        TEXT_ROWS - 1, context.model.text_dim, generator=torch.Generator().manual_seed(SEED)
    )
    if variant.options is None:
        return _stock(context, variant, rows)
    if variant.options.quantize != "none":
        reason = why_not_quantize(variant.options.quantize, context.device)
        if reason is not None:
            raise NotHere(f"{variant.options.quantize} {reason}")
    student = Student(context.checked, make_plan(context.model, variant.options, context.size))
    mode = replace(student.plan.memory_mode, one_at_a_time=True)
    alone = replace(student.plan, memory_mode=mode)
    about = {
        "attention": student.attention,
        "compiled": student.plan.compile,
        "dtype": str(student.dtype),
        "memory_mode": student.plan.memory_mode.flags(),
        # The network alone: text encoder and VAE are not loaded here.
        "needed_gib": planned_gib(context, alone)["denoise"],
    }

    def denoise(on_step: Any) -> Tensor:
        return student.denoise([Embedding({"text": rows})], [SEED], context.size, on_step)

    def short() -> Tensor:
        whole = student.checked
        student.checked = replace(whole, schedule=engine_schedule(1))
        try:
            return denoise(None)
        finally:
            student.checked = whole

    return denoise, about, short


def planned_gib(context: Context, plan: EnginePlan) -> dict[str, float]:
    """The memory that the engine plans for one video of the context's size, by stage."""
    bytes_each = plan.dtype.itemsize
    work = Workload(context.model, *context.size, 1, bytes_each, context.cuda)
    return needed_gib(work, plan.memory_mode)


def _stock(
    context: Context, variant: Variant, rows: Tensor
) -> tuple[Denoise, Row, Callable[[], Any]]:
    network = context.model.load_transformer(context.dtype)
    if variant.compiled:
        network.compile_repeated_blocks(fullgraph=True)
    text = pad_text([rows]).to(context.device)
    noise = noise_of(context).to(context.device)

    @torch.no_grad()
    def denoise(on_step: Any, steps: int = 4) -> Tensor:
        return rollout(
            lambda x_t, sigma: velocity(network, x_t, sigma, text),
            noise,
            engine_schedule(steps),
            on_step=on_step,
        )

    about = {"attention": "diffusers' default", "compiled": variant.compiled}
    return denoise, about | {"dtype": str(context.dtype)}, lambda: denoise(None, 1)


def noise_of(context: Context) -> Tensor:
    """The noise that the engine starts from, ``[1, C, T, h, w]``."""
    shape = context.model.latent_shape(*context.size)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED))[None]


def velocity_difference(context: Context, first: Tensor, stock: Path) -> float:
    """Relative difference of the first step's velocities, from the latents after it."""
    noise = noise_of(context)
    expected = torch.load(stock, weights_only=True)
    return relative_difference(first - noise, expected - noise)


def _times(step: Step, slower: str) -> float | None:
    ours, theirs = step.rows.get("engine, as it comes", {}), step.rows.get(slower, {})
    return theirs["ms"] / ours["ms"] if "ms" in ours and "ms" in theirs else None
