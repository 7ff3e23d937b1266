"""Writes the tables of docs/scale.md: the 14B job's plan on several numbers of GPUs.

Run it as ``python -m tools.counting.scale_tables``; ``--check`` only says whether the page is up
to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill.planning.flops import RolePasses, forward_operations, training_pass
from distill.planning.model_meter import ModelMeter
from distill.planning.plan import JobPlan, Machine, make_plan
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import write_text
from lightx2v_sgmd.system.host_memory import GIB
from lightx2v_sgmd.system.resources import config_path

PAGE = "docs/scale.md"
GPUS = (8, 16, 32, 64)
DEGREES = (1, 2, 4, 8)
BATCH = 32
PAPER_S = {"forward": 5.0, "short backward": 15.0, "long backward": 30.0, "iteration": 77.5}
"""The times of arXiv 2605.30116, on 32 H100 with a batch of 32."""

_TABLE = re.compile(r"<!-- table (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def tables_of(page: str) -> dict[str, str]:
    """The tables of a page, by name."""
    return dict(_TABLE.findall(page))


def with_tables(page: str, tables: dict[str, str]) -> str:
    """The page with these tables in place of its own."""
    return _TABLE.sub(
        lambda found: f"<!-- table {found[1]} -->\n{tables[found[1]]}<!-- end -->\n", page
    )


def make_tables() -> dict[str, str]:
    """The tables as the plan has them now."""
    job = load_job(config_path("wan2.1_t2v_14b_sgmd.yaml"))
    model = open_teacher(job.teacher)
    meter = ModelMeter(model)
    plans = [
        plan
        for gpus in GPUS
        for degree in DEGREES
        if (plan := _plan(job, model, meter, gpus, degree)) is not None
    ]
    return {"gpus": _gpus(plans), "paper": _paper(job, model, meter)}


def _plan(job: Job, model: Model, meter: ModelMeter, gpus: int, degree: int) -> JobPlan | None:
    """The plan at the paper's batch; None where one update would have a larger one."""
    accumulation, rest = divmod(BATCH * degree, gpus * job.train.micro_batch)
    if not accumulation or rest:
        return None
    parallel = replace(job.parallel, sequence=degree)
    train = replace(job.train, accumulation=accumulation)
    return make_plan(replace(job, parallel=parallel, train=train), model, Machine(gpus=gpus), meter)


def _gpus(plans: list[JobPlan]) -> str:
    rows = []
    for plan in plans:
        parts, traffic = plan.memory.components, plan.traffic
        state = sum(plan.memory.always.values()) / GIB
        rows.append(
            [
                plan.machine.gpus,
                plan.job.parallel.sequence,
                plan.job.train.accumulation,
                f"{plan.tokens_per_rank:,}",
                f"{state:.1f}",
                f"{parts.get('activations', 0) / GIB:.1f}",
                f"{plan.memory_gib:.1f}",
                "yes" if plan.fits else "no",
                f"{plan.seconds:.0f}",
                f"{plan.seconds * 1000 / 3600 * plan.machine.gpus:,.0f}",
                f"{(traffic.gather + traffic.reduce) / 1e9:,.0f}",
                f"{traffic.exchange / 1e9:,.0f}",
            ]
        )
    heads = [
        "GPUs",
        "sequence",
        "accumulation",
        "tokens a rank",
        "state, GiB",
        "activations, GiB",
        "peak of a GPU, GiB",
        "fits 80",
        "s an iteration",
        "GPU-hours of 1000",
        "ZeRO-3, GB",
        "Ulysses, GB",
    ]
    return _table(heads, rows)


def _paper(job: Job, model: Model, meter: ModelMeter) -> str:
    plan = _plan(job, model, meter, 32, 1)
    assert plan is not None
    forward = forward_operations(model.transformer_config, plan.tokens, meter.text_rows)
    one = RolePasses(forwards=1).operations(forward)
    learning = training_pass(True, forwards=0)
    work = {
        "forward": one,
        "short backward": learning.operations(forward),
        "long backward": (learning + training_pass(True, 0, weights=False)).operations(forward),
        "iteration": sum(plan.flops.values()) / BATCH,
    }
    peak = plan.machine.peak_flops
    fitted = one / (PAPER_S["forward"] * peak)
    rows = [
        [
            name,
            f"{work[name] / 1e15:.2f}",
            f"{work[name] / (plan.machine.mfu * peak):.1f}",
            f"{work[name] / (fitted * peak):.1f}",
            f"{seconds:g}",
        ]
        for name, seconds in PAPER_S.items()
    ]
    heads = [
        "",
        "PFLOP of a video",
        f"s at MFU {plan.machine.mfu:.2f}",
        f"s at MFU {fitted:.2f}",
        "paper, s",
    ]
    return _table(heads, rows)


def _table(heads: list[str], rows: Sequence[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def main() -> None:
    """Writes the page, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = Path(__file__).resolve().parents[2] / PAGE
    page = path.read_text(encoding="utf-8")
    renewed = with_tables(page, make_tables())
    if check and renewed != page:
        sys.exit(f"{PAGE} is out of date; run python -m tools.counting.scale_tables")
    if not check:
        write_text(path, renewed)


if __name__ == "__main__":
    main()
