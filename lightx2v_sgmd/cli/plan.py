"""``lightx2v-sgmd plan``: predicts the memory, compute and time of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Settings

if TYPE_CHECKING:
    from distill.planning.plan import JobPlan
    from lightx2v_sgmd.job.schema import Job

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} plan configs/wan2.1_t2v_14b_sgmd.yaml --gpus 32\n"
    f"  {PROG} plan configs/wan2.1_t2v_1.3b_sgmd.yaml --gpus 8 --gpu-memory-gib 24 --json"
)


def plan_command(
    job: JobFile,
    settings: Settings = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of GPUs in total; default 8 for zero3, 1 for local."
        ),
    ] = None,
    gpu_memory_gib: Annotated[
        float, typer.Option(min=1, metavar="M", help="Memory per GPU in GiB.")
    ] = 80.0,
    node_gpus: Annotated[
        int, typer.Option(min=1, metavar="K", help="Number of GPUs in a node.")
    ] = 8,
    mfu: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1,
            metavar="SHARE",
            help="Share of the peak FLOP/s that training reaches; used for time and GPU-hours.",
        ),
    ] = 0.4,
    peak_tflops: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="P",
            help="Peak of a GPU in TFLOP/s, in the job's precision; default an H100's in bf16.",
        ),
    ] = 989.0,
    host_bandwidth: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="B",
            help="Gigabytes per second from the machine's memory to a GPU, for parallel.offload; "
            "default a PCIe 4.0 x16 card's.",
        ),
    ] = 25.0,
    as_json: Json = False,
) -> None:
    """Predict what a job needs before it runs.

    The plan lists memory per GPU, operations, traffic, time and GPU-hours, and loads no weights.
    A job that does not fit is refused (exit 2), and the nearest job that fits is named. All figures
    are predictions. Time assumes the given share of the given peak, or the given rate at which
    weights come from the machine's memory, whichever takes longer.
    """
    from lightx2v_sgmd.job.loading import load_job

    checked = load_job(job, settings or [])
    from distill.building import check_images
    from distill.planning.model_meter import ModelMeter
    from distill.planning.nearest import check_plan, check_possible
    from distill.planning.plan import Machine, make_plan
    from lightx2v_sgmd.families.teacher import open_teacher, with_defaults

    machine = Machine(
        gpus=gpus or (8 if checked.parallel.strategy == "zero3" else 1),
        memory_gib=gpu_memory_gib,
        node_gpus=node_gpus,
        peak_flops=peak_tflops * 1e12,
        mfu=mfu,
        host_bandwidth=host_bandwidth * 1e9,
    )
    model = open_teacher(checked.teacher)
    checked = with_defaults(checked, model)
    if Path(checked.data.prompts).is_file():  # a plan needs none, and may be made elsewhere
        check_images(checked, model)
    meter = ModelMeter(model)
    check_possible(checked, model, machine, meter)
    plan = make_plan(checked, model, machine, meter)
    print(json.dumps(plan.to_dict(), indent=2) if as_json else as_text(plan), flush=True)
    check_plan(plan, model, meter)


def as_text(plan: JobPlan) -> str:
    """Formats the plan as a few short tables."""
    job, machine, found = plan.job, plan.machine, plan.to_dict()
    video, layout, memory = job.video, job.parallel, found["memory_gib"]
    lines = [
        f"{job.method.name} on {job.teacher.path}, {plan.parameters / 1e9:.2f} billion weights",
        *[f"{role} from {path}" for role, path in _own_paths(job).items()],
        f"{video.width}x{video.height}, {video.frames} frames: {plan.tokens:,} tokens, "
        f"{plan.tokens_per_rank:,} a rank (sequence {layout.sequence})",
        f"{machine.gpus} GPU(s), {layout.strategy}, offload {layout.offload}, gradient "
        f"checkpointing {_shown(layout.gradient_checkpointing)}, global batch "
        f"{plan.global_batch}",
        "",
        f"memory of a GPU in GiB, at its peak ({memory['peak_phase']}), a prediction",
        *_rows({**memory["components"], "reserve (not counted, allowed for)": memory["reserve"]}),
        *_rows({"total": memory["total"], "of": machine.memory_gib}),
        "",
        "also, in GiB",
        *_rows({f"a pass's activations {k}": v for k, v in memory["activations"].items()}),
        *_rows({"text encoder, at the start only": memory["text_encoder_at_start"]}),
        *_rows({f"a node's CPU memory, {k}": v for k, v in memory["host_per_node"].items()}),
        *_rows({f"a node's disk, {k}": v for k, v in memory["disk_per_node"].items()}),
        "",
        f"{'passes of a video':<18}{'forwards':>10}{'again':>8}{'backward':>10}{'weights':>9}"
        f"{'PFLOP':>10}",
    ]
    for role, passes in plan.passes.items():
        lines.append(
            f"  {role:<16}{passes.forwards:>10.1f}{passes.recomputed:>8.1f}"
            f"{passes.backwards:>10.1f}{passes.weight_backwards:>9.2f}"
            f"{plan.flops[role] / 1e15:>10.4g}"
        )
    for name in plan.flops.keys() - plan.passes.keys():
        lines.append(f"  {name:<16}{plan.flops[name] / 1e15:>53.4g}")
    traffic, stop = plan.traffic, plan.preemption
    hours = plan.seconds * job.train.iterations / 3600
    return "\n".join(
        [
            *lines,
            "  (PFLOP of an iteration and its whole batch)",
            "",
            "a GPU receives in an iteration, in GB",
            *_rows({"weights (ZeRO-3)": traffic.gather / 1e9}),
            *_rows({"gradients (ZeRO-3)": traffic.reduce / 1e9}),
            *_rows({"tokens and heads (Ulysses)": traffic.exchange / 1e9}),
            *_rows({"weights from CPU memory (offload)": traffic.fetch / 1e9}),
            "",
            f"{_speed(plan)}: {plan.seconds:.4g} s an iteration, {hours:.4g} h and "
            f"{plan.gpu_hours:.4g} GPU-hours for {job.train.iterations} iterations",
            f"told to stop: up to {stop.seconds:.3g} s for {stop.longest}, then a checkpoint of "
            f"{stop.checkpoint_bytes / 1e9:.4g} GB, at most {stop.rank_bytes / 1e9:.4g} by a rank",
        ]
    )


def _speed(plan: JobPlan) -> str:
    """The assumption that decides the time."""
    machine = plan.machine
    compute = f"{machine.mfu:.0%} of {machine.peak_flops / 1e12:g} TFLOP/s"
    if plan.fetch_seconds <= plan.compute_seconds:
        return f"at {compute}"
    return (
        f"at {machine.host_bandwidth / 1e9:g} GB/s from CPU memory, which takes longer than the "
        f"{plan.compute_seconds:.4g} s of computing at {compute}"
    )


def _own_paths(job: Job) -> dict[str, str]:
    """The models that roles start from in place of the teacher."""
    paths = {"student": job.student.path, "fake score": job.fake_score.path}
    return {role: path for role, path in paths.items() if path is not None}


def _shown(kind: bool | str) -> str:
    return kind if isinstance(kind, str) else "on" if kind else "off"


def _rows(values: dict[str, float]) -> list[str]:
    return [f"  {name:<36}{value:>10.2f}" for name, value in values.items()]
