"""The plan of a job: memory, time and traffic that add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.planning.flops import NetworkSize, iteration_traffic
from distill.planning.model_meter import ModelMeter
from distill.planning.nearest import check_plan
from distill.planning.plan import Machine, make_plan
from distill.planning.rank_memory import Memory, least_bytes, rank_memory
from lightx2v_sgmd.cli.plan import as_text
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel.zero3 import nvme
from lightx2v_sgmd.system.errors import UserError
from tools.counting import scale_tables


def test_the_peak_may_be_the_text_encoder_s() -> None:
    phases = {"teacher": {"activations": 3}, "samples": {"activations": 2}}
    memory = Memory({"weights": 4}, phases, {}, start=6)
    assert (memory.peak_phase, memory.peak) == ("teacher", 7)
    assert memory.components == {"weights": 4, "activations": 3}
    memory = replace(memory, start=8)
    assert (memory.peak_phase, memory.peak) == ("text encoder", 8)
    assert memory.components == {"text encoder": 8}


@pytest.mark.slow
def test_time_and_traffic_add_up(wan_1_3b: tuple[Job, Any, ModelMeter]) -> None:
    job, model, meter = wan_1_3b
    plan = make_plan(job, model, Machine(gpus=8, mfu=0.5, peak_flops=1e15), meter)
    assert plan.tokens == 21 * 30 * 52
    train = job.train
    assert plan.global_batch == train.micro_batch * train.accumulation * 8
    # SGMD's iteration under ZeRO-3 and checkpointing: 2.5 forwards of the student and 3 passes
    # more, two of the teacher, 2 and 5 of the fake score (one backward pass to its inputs alone).
    forward = plan.forward
    linear = (2.5 + 3) + 2 + (2 + 5)
    attention = (2.5 + 3) + 2 + (2 + 6)
    work = linear * forward.linear + attention * forward.attention
    assert sum(plan.flops.values()) == pytest.approx(plan.global_batch * work)
    assert plan.seconds == pytest.approx(sum(plan.flops.values()) / (8 * 0.5e15))
    assert plan.gpu_hours == pytest.approx(plan.seconds * train.iterations * 8 / 3600)
    # 2.5 + 1 calls forwards and one back, one, two and two: bfloat16 from seven others.
    gathers = (2.5 + 1) + 1 + (2 + 2)
    shards = 2 * meter.weights.count * 7 / 8 * train.accumulation
    assert plan.traffic.gather == pytest.approx(gathers * shards)
    assert plan.traffic.reduce == pytest.approx(2 * shards)
    assert plan.traffic.exchange == 0
    shared = replace(job, parallel=replace(job.parallel, sequence=4))
    size = NetworkSize(meter.weights.count, model.num_blocks, model.width)
    traffic = iteration_traffic(
        shared,
        plan.passes,
        dict.fromkeys(plan.passes, size),
        tokens=plan.tokens,
        gpus=8,
        size=2,
    )
    # The longest work between two looks: a fake score's forward, again, and backward with weights.
    stop = plan.preemption
    assert stop.longest == "an update of the fake score"
    longest = train.micro_batch * (4 * forward.linear + 4 * forward.attention)
    assert stop.seconds == pytest.approx(longest / 0.5e15)
    average = train.ema > 0
    count = 4 * meter.weights.count  # 5.7 GB: two files of each network, each by another rank
    assert stop.checkpoint_bytes == pytest.approx((1 + average + 2 + 3) * count, rel=0.001)
    assert stop.rank_bytes == pytest.approx((1 / 2 + 5 / 8) * count, rel=0.001)
    assert f"up to {stop.seconds:.3g} s for an update of the fake score" in as_text(plan)
    assert plan.to_dict()["preemption"]["seconds"] == stop.seconds
    passes = (2.5 + 2) + 2 + (2 + 4)
    own = 30 * 4 * (plan.tokens / 4) * 1536 * 2 * 3 / 4
    batch = train.accumulation * train.micro_batch
    assert traffic.exchange == pytest.approx(passes * own * batch)


@pytest.mark.slow
def test_weights_in_cpu_memory_are_fetched_for_every_pass(
    wan_1_3b: tuple[Job, Any, ModelMeter],
) -> None:
    """The time is that of the fetches where it is longer than that of the operations."""
    job, model, meter = wan_1_3b
    away = replace(job, parallel=replace(job.parallel, offload="all"))
    machine = Machine(gpus=1, peak_flops=1e18, mfu=1, host_bandwidth=1e10)
    plans = [make_plan(each, model, machine, meter) for each in (job, away)]
    assert plans[0].traffic.fetch == plans[0].fetch_seconds == 0
    calls = (2.5 + 1) + 1 + (2 + 2)  # as above: forwards and backward passes of three networks
    fetched = 2 * meter.weights.count * job.train.accumulation * calls
    assert plans[1].traffic.fetch == pytest.approx(fetched) and plans[1].traffic.gather == 0
    assert plans[1].seconds == pytest.approx(fetched / 1e10)
    assert plans[1].seconds > plans[1].compute_seconds
    assert plans[1].compute_seconds == pytest.approx(plans[0].seconds)
    assert plans[1].gpu_hours == pytest.approx(fetched / 1e10 * job.train.iterations / 3600)
    # The longest work between two looks has a forward and a backward pass, and so two fetches.
    assert plans[1].preemption.seconds == pytest.approx(4 * meter.weights.count / 1e10)
    shown = as_text(plans[1])
    assert f"weights from CPU memory (offload)   {fetched / 1e9:>10.2f}" in shown
    assert "at 10 GB/s from CPU memory, which takes longer than the" in shown
    assert "at 100% of 1e+06 TFLOP/s" in as_text(plans[0])
    shared = make_plan(away, model, replace(machine, gpus=8), meter)
    assert shared.traffic.fetch == pytest.approx(fetched / 8)
    # The copies are in the GPU's memory, and were in none where the weights stay there.
    copies = 2 * 2 * meter.weights.count
    for phase, parts in plans[1].memory.phases.items():
        if phase in ("teacher", "generator's gradient"):
            without = sum(plans[0].memory.phases[phase].values())
            assert sum(parts.values()) - without == min(copies, 2 * 2 * 1_050_000_000)


@pytest.mark.slow
def test_more_gpus_need_less_each(wan_1_3b: tuple[Job, Any, ModelMeter]) -> None:
    job, model, meter = wan_1_3b
    peaks = [make_plan(job, model, Machine(gpus=n), meter).memory.peak for n in (8, 16, 64)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[-1]
    shared = replace(job, parallel=replace(job.parallel, sequence=4))
    assert make_plan(shared, model, Machine(gpus=8), meter).memory.peak < peaks[0]
    moved = replace(job, parallel=replace(job.parallel, offload="all"))
    plan = make_plan(moved, model, Machine(gpus=8), meter)
    assert plan.memory.peak < peaks[0]
    state = sum(plan.memory.host.values())
    # Weights of three networks, gradients of two, and float32 masters, moments and average.
    count = meter.weights.count
    average = 4 if job.train.ema else 0
    assert job.train.accumulation > 1, "gradients are added up in float32"
    assert state == pytest.approx((3 * 2 + 2 * 4 + 2 * 12 + average) * count / 8, rel=1e-6)
    assert plan.memory.disk == {}


def test_what_is_in_files_is_in_no_memory(wan_1_3b: tuple[Job, Any, ModelMeter]) -> None:
    job, model, meter = wan_1_3b
    plans = {}
    layouts: list[tuple[Any, Path | None]] = [("all", None), ("nvme", Path("disk"))]
    for offload, folder in layouts:
        layout = replace(job.parallel, offload=offload, offload_dir=folder)
        plans[offload] = make_plan(replace(job, parallel=layout), model, Machine(gpus=8), meter)
    files, memory, count = plans["nvme"].memory, plans["all"].memory, meter.weights.count
    assert files.peak == memory.peak
    # Masters, two moments and the gradient, in float32; of each network a group in four buffers.
    assert sum(files.disk.values()) == pytest.approx(2 * 16 * count / 8, rel=1e-6)
    group = nvme.SUB_GROUP + meter.weights.largest / 8
    saved = 2 * 12 * count / 8 - 2 * 16 * group
    assert sum(memory.host.values()) - sum(files.host.values()) == pytest.approx(saved, rel=1e-6)
    found = plans["nvme"].to_dict()
    assert found["memory_gib"]["disk_per_node"]["optimizer"] == pytest.approx(16 * count / 2**30)
    assert "a node's disk, optimizer" in as_text(plans["nvme"])
    tight = replace(plans["nvme"], machine=Machine(gpus=8, memory_gib=5.0))
    with pytest.raises(UserError):
        check_plan(tight, model, meter)


def test_the_least_is_never_more_than_the_plan(
    wan_1_3b: tuple[Job, Any, ModelMeter],
) -> None:
    job, model, meter = wan_1_3b
    for count in (1, 4):
        some = replace(job, train=replace(job.train, micro_batch=count))
        assert least_bytes(some, meter, 8) < rank_memory(some, meter, 8).peak


@pytest.mark.parametrize(
    ("change", "machine", "message"),
    [
        ({"sequence": 8}, Machine(gpus=8), "8 does not divide the 12 attention heads"),
        ({"sequence": 3}, Machine(gpus=8), "3 does not divide the 8 ranks; use 1, 2 or 4"),
        ({}, Machine(gpus=12), "--gpus: 12 is not a whole number of nodes of 8 GPUs; use 8 or 16"),
        ({"strategy": "local"}, Machine(gpus=2), "local is one process; use --gpus 1 or"),
    ],
)
def test_layouts_that_cannot_be(
    wan_1_3b: tuple[Job, Any, ModelMeter], change: dict[str, Any], machine: Machine, message: str
) -> None:
    job, model, meter = wan_1_3b
    with pytest.raises(UserError, match=message):
        make_plan(replace(job, parallel=replace(job.parallel, **change)), model, machine, meter)


def test_sizes_that_the_model_cannot_make(wan_1_3b: tuple[Job, Any, ModelMeter]) -> None:
    job, model, meter = wan_1_3b
    with pytest.raises(UserError, match="num_frames: 80 is not 4k . 1"):
        make_plan(
            replace(job, video=replace(job.video, num_frames=80)), model, Machine(gpus=8), meter
        )


@pytest.mark.slow
def test_the_page_is_what_the_plan_says() -> None:
    page = Path(__file__).resolve().parents[3] / scale_tables.PAGE
    written = scale_tables.tables_of(page.read_text(encoding="utf-8"))
    assert written == scale_tables.make_tables()
    rows = written["gpus"].splitlines()[2:]
    assert {int(row.split("|")[1]) for row in rows} == {8, 16, 32, 64}
