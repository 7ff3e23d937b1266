"""The nearest job that fits where a planned one does not: less in memory, or on more GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import gcd

from distill.model_checks import check_against_model
from distill.planning.model_meter import ModelMeter
from distill.planning.plan import (
    CHECKPOINTING,
    JobPlan,
    Machine,
    check_layout,
    make_plan,
    total_gib,
)
from distill.planning.rank_memory import (
    Memory,
    block_inputs,
    latent_bytes,
    least_bytes,
    rank_memory,
)
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import with_defaults
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import STUDENT
from lightx2v_sgmd.parallel.sequence import sequence_degrees
from lightx2v_sgmd.system.errors import LINE, UserError
from lightx2v_sgmd.system.host_memory import GIB

MORE_GPUS = 1024
"""Largest number that is tried when a job does not fit."""


def check_possible(job: Job, model: Model, machine: Machine, meter: ModelMeter) -> None:
    """Refuses a job that is far too large for any layout, before activations are metered.

    Raises:
        UserError: it is, or it cannot run there whatever the memory.
    """
    job = with_defaults(job, model)
    check_against_model(job, model)
    check_layout(job, model, machine)
    student = meter.of(job, STUDENT).model
    layouts = [(job, machine), *((job, at) for _, job, at in _changes(job, machine, meter))]
    # Latents and inputs are counted at once; what comes with them needs the network, and seconds.
    inputs = min(block_inputs(job, student) for job, _ in layouts)
    least = (inputs + latent_bytes(job, model)) / GIB
    if least <= machine.memory_gib:
        least = min(least_bytes(job, meter, at.gpus) for job, at in layouts) / GIB
    if least > machine.memory_gib:
        raise UserError(
            f"{job.teacher.path} with {job.method.name} needs at least {least:.1f} GiB of a GPU's "
            f"{machine.memory_gib:g}, with any layout and up to {MORE_GPUS} GPUs; use smaller "
            "videos, a smaller micro-batch or GPUs with more memory"
        )


def check_plan(plan: JobPlan, model: Model, meter: ModelMeter) -> None:
    """Refuses a plan that does not fit.

    Raises:
        UserError: it does not; names the nearest change that does.
    """
    if plan.fits:
        return
    machine = plan.machine
    problem = (
        f"needs {plan.memory_gib:.1f} GiB of a GPU's {machine.memory_gib:g} "
        f"({plan.memory.peak_phase})"
    )
    found, least, lasting = _nearest(plan, model, meter)
    if found:
        raise UserError(_with_offers(f"{problem}; nearest that fits: ", found, plan))
    if least is None:
        raise UserError(
            f"{problem}; with any other layout and up to {MORE_GPUS} GPUs, at least {lasting:.1f} "
            "GiB would be taken: use smaller videos, a smaller micro-batch or GPUs "
            "with more memory"
        )
    raise UserError(
        f"{problem}; the least found, with other layouts and up to {MORE_GPUS} GPUs, is "
        f"{total_gib(least, machine):.1f} GiB in the phase '{least.peak_phase}': use smaller "
        "videos, a smaller micro-batch or GPUs with more memory"
    )


def _nearest(
    plan: JobPlan, model: Model, meter: ModelMeter
) -> tuple[list[tuple[list[str], JobPlan]], Memory | None, float]:
    """Finds the nearest changes that fit, on these GPUs and on more.

    Activations are metered only where everything else fits, because that takes seconds.

    Returns:
        The changes with their plans; the least memory of the changes that were metered; the least
        of all changes in GiB, without activations.
    """
    least: Memory | None = None
    least_gib = float("inf")
    fitting = {}
    changes = list(_changes(plan.job, plan.machine, meter))
    if changes:
        _, job, machine = max(changes, key=_spared)
        budget = (machine.memory_gib - machine.reserve_gib) * GIB
        if least_bytes(job, meter, machine.gpus) <= budget:
            memory = rank_memory(job, meter, machine.gpus)
            if memory.least_peak > budget:  # so no other one need be metered
                return [], memory, least_gib
    for change, job, machine in changes:
        more = machine.gpus != plan.machine.gpus
        always = least_bytes(job, meter, machine.gpus) / GIB + machine.reserve_gib
        least_gib = min(least_gib, always)
        if more in fitting or always > machine.memory_gib:
            continue
        memory = rank_memory(job, meter, machine.gpus)
        least = memory if least is None else min(least, memory, key=lambda each: each.peak)
        if total_gib(memory, machine) <= machine.memory_gib:
            fitting[more] = change, make_plan(job, model, machine, meter)
    return [fitting[more] for more in sorted(fitting)], least, least_gib


def _spared(change: tuple[list[str], Job, Machine]) -> tuple[int, int, int, int]:
    """The memory that a change saves on a GPU: the larger, the fewer activations are left."""
    _, job, machine = change
    layout = job.parallel
    kind = list(CHECKPOINTING.values()).index(layout.gradient_checkpointing)
    return (kind, layout.sequence, int(layout.offload in ("all", "nvme")), machine.gpus)


def _with_offers(problem: str, found: Sequence[tuple[list[str], JobPlan]], plan: JobPlan) -> str:
    """The problem and the changes, with as much of what they need as fits into a line."""
    whole = [_in_words(change, other, _needs(other, plan)) for change, other in found]
    short = [_in_words(change, other) for change, other in found]
    lines = [problem + ", or ".join(offers) for offers in (whole, short, whole[:1], short[:1])]
    return next((line for line in lines if len(line) <= LINE), lines[-1])


def _needs(other: JobPlan, plan: JobPlan) -> Iterator[str]:
    """Names the needs of a change beside a GPU's memory."""
    if other.memory.host:
        host = sum(other.per_node(other.memory.host).values())
        yield f"{host:.0f} GiB of a node's CPU memory"
    if other.global_batch != plan.global_batch:
        yield f"a global batch of {other.global_batch}, not {plan.global_batch}"


def _in_words(change: list[str], other: JobPlan, needs: Iterable[str] = ()) -> str:
    return f"{' '.join(change)} ({', '.join([f'{other.memory_gib:.1f} GiB', *needs])})"


def _changes(
    job: Job, machine: Machine, meter: ModelMeter
) -> Iterator[tuple[list[str], Job, Machine]]:
    """Other jobs and machines, as few changes as possible first, cheap ones before dear ones."""
    layout = job.parallel
    checkpointing = list(CHECKPOINTING.values())  # the fastest first
    checkpointing = checkpointing[checkpointing.index(layout.gradient_checkpointing) :]
    strategies = [layout.strategy]
    if layout.strategy == "local":
        strategies.append("zero3")
    offloads = ["none", "optimizer", "all"]
    # The GPU's memory is the same with nvme as with all.
    offloads = ["nvme"] if layout.offload == "nvme" else offloads[offloads.index(layout.offload) :]
    gpus, node = [machine.gpus], machine.node_gpus
    while gpus[-1] < MORE_GPUS:
        gpus.append(gpus[-1] * 2 if gpus[-1] < node else (gpus[-1] // node + 1) * node)
    heads = gcd(*(each.model.num_heads for each in (meter, *meter.others(job))))
    degrees = [d for d in sequence_degrees(heads) if d >= layout.sequence and d <= node]
    found = []
    for again, strategy, degree, offload, count in product(
        checkpointing, strategies, degrees, offloads, gpus
    ):
        sharded = strategy == "zero3"
        if count % degree or (not sharded and (count > 1 or degree > 1 or offload != "none")):
            continue
        settings = {
            "gradient_checkpointing": again,
            "strategy": strategy,
            "sequence": degree,
            "offload": offload,
        }
        changed = [key for key, value in settings.items() if getattr(layout, key) != value]
        words = [f"--set parallel.{key}={str(settings[key]).lower()}" for key in changed]
        teacher = job.teacher
        if sharded and teacher.quantize != "none":  # which only one process can have
            words.append("--set teacher.quantize=none")
            teacher = replace(teacher, quantize="none")
        if count != machine.gpus:
            words.append(f"--gpus {count}")
        # Settings that cost no money come first, and more GPUs come before offloading all.
        dearness = (len(words), offloads.index(offload), count, degree, checkpointing.index(again))
        parallel = replace(layout, **settings)  # type: ignore[arg-type]
        other = replace(job, parallel=parallel, teacher=teacher)
        found.append((dearness, words, other, replace(machine, gpus=count)))
    for _, words, other, where in sorted(found, key=lambda item: item[0]):
        if words:
            yield words, other, where
