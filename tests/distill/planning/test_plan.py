"""The plan against counted operations, counted passes and measured memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.counting import COUNTS, PassCounter
from distill.data import Batches
from distill.observed import StopOnRequest
from distill.planning.flops import (
    Operations,
    forward_operations,
    iteration_passes,
    iteration_traffic,
    stop_intervals,
)
from distill.planning.memory import Memory, least_bytes, rank_memory
from distill.planning.metering import MemoryMeter, Pass, meter_pass
from distill.planning.model_meter import ModelMeter
from distill.planning.nearest import check_plan
from distill.planning.plan import Machine, make_plan
from lightx2v_sgmd.cli.main import run as cli
from lightx2v_sgmd.cli.plan import as_text
from lightx2v_sgmd.families.wan import open_wan, velocity
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel.zero3 import nvme
from lightx2v_sgmd.system.errors import UserError
from tests.training import job_file, make_job, make_trainer
from tools.counting import scale_tables


def test_operations_are_those_that_torch_counts() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": 2})
    with torch.device("meta"):
        network = model.build_transformer()
        x_t, sigma = torch.empty(1, 16, 3, 12, 20), torch.empty(1)
        text = torch.empty(1, 512, model.text_dim)
    forward = forward_operations(model.transformer_config, 3 * 6 * 10, 512)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        velocity(network, x_t, sigma, text)
    assert counter.get_total_flops() == forward.linear + forward.attention
    with FlopCounterMode(display=False) as counter:
        output = velocity(network, x_t.requires_grad_(), sigma, text)
        output.backward(torch.empty_like(output))
    # All but the gradients at the text and the time, which nobody asks for.
    inputs = 2 * (512 * 4096 + 256) * 1536
    assert counter.get_total_flops() == 3 * (forward.linear + forward.attention) - inputs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=sgmd",),
        ("method.name=dmd2", "method.fake_score_updates=2"),
        ("method.name=sid",),
        ("method.name=tsg_sim", "teacher.guidance_scale=1"),
        ("method.name=sgmd", "fake_score={train: lora, lora: {rank: 4}}"),
    ],
)
def test_passes_are_those_that_a_run_counts(
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    checkpointing: bool,
) -> None:
    monkeypatch.setattr(
        Batches, "exit_step", lambda self, batch_index: batch_index % 4
    )  # each as often
    again = f"parallel.gradient_checkpointing={str(checkpointing).lower()}"
    job = make_job(tiny_teacher, tmp_path, *settings, again)
    trainer = make_trainer(job)
    counter = PassCounter(trainer.strategy.networks, job.train.micro_batch)
    for iteration in range(4):
        trainer.iterate(iteration)
    shares = ModelMeter(open_wan(job.teacher.path)).shares(job)
    counted, planned = counter.take(), iteration_passes(job, shares)
    for role, passes in planned.items():
        for count in COUNTS:
            expected = pytest.approx(counted[count][role] / 4, rel=1e-12)
            assert getattr(passes, count) == expected, (role, count)


@pytest.mark.parametrize(
    "settings",
    [
        ("method.name=sgmd", "parallel.gradient_checkpointing=true"),
        ("method.name=dmd2", "method.fake_score_updates=2"),
        ("method.name=sid", "parallel.strategy=zero3"),
    ],
)
def test_a_stop_is_looked_for_between_all_stretches(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """All together they are the iteration, and a run does one of them between two looks."""
    monkeypatch.setattr(Batches, "exit_step", lambda self, batch_index: batch_index % 4)
    job = make_job(tiny_teacher, tmp_path, *settings, "train.micro_batch=1")
    planned = stop_intervals(job)
    work = Operations(3, 5)
    expected = sum(times * passes.operations(work) for times, passes in planned.values())
    found = sum(passes.operations(work) for passes in iteration_passes(job).values())
    assert found == pytest.approx(expected)
    if job.parallel.strategy != "local":
        return  # more ranks look at the same places
    trainer = make_trainer(job)
    counter, seen = PassCounter(trainer.strategy.networks, 1), []

    def asked() -> bool:
        seen.append(counter.take()["forward_equivalents"])
        return False

    trainer.listen(StopOnRequest(trainer.strategy.ranks, asked))
    iterations = 4
    for iteration in range(iterations):
        trainer.iterate(iteration)
    seen.append(counter.take()["forward_equivalents"])  # the last one's
    sizes = {sum(getattr(p, count) for count in COUNTS) for _, p in planned.values()}
    assert {round(size, 9) for size in seen if size} == {round(size, 9) for size in sizes}
    total = iterations * sum(
        times * sum(getattr(p, count) for count in COUNTS) for times, p in planned.values()
    )
    assert sum(seen) == pytest.approx(total)


def test_meter_counts_what_lives() -> None:
    meter = MemoryMeter()
    with meter, torch.device("meta"):
        x = torch.empty(1000)
        y = (x + 1) * 2
        x.view(10, 100).mul_(3)  # neither a view nor work in place takes memory
        assert (meter.live, meter.peak) == (8000, 12000)
        del x, y
        assert meter.live == 0


@pytest.mark.slow
def test_all_layers_follow_from_four() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    model = replace(model, transformer_config=model.transformer_config | {"num_layers": 7})
    what = Pass((16, 3, 12, 20), 1, torch.bfloat16, text_rows=8, checkpointing=True)
    predicted = meter_pass(model, what)
    metered = meter_pass(model, replace(what, keeping=True))  # runs all seven
    for name in ("forward", "kept", "backward"):
        assert getattr(predicted, name) == getattr(metered, name), name
    halves = meter_pass(model, replace(what, degree=2))
    assert halves.kept == pytest.approx(predicted.kept / 2, rel=0.1)


def test_the_peak_may_be_the_text_encoder_s() -> None:
    phases = {"teacher": {"activations": 3}, "samples": {"activations": 2}}
    memory = Memory({"weights": 4}, phases, {}, start=6)
    assert (memory.peak_phase, memory.peak) == ("teacher", 7)
    assert memory.components == {"weights": 4, "activations": 3}
    memory = replace(memory, start=8)
    assert (memory.peak_phase, memory.peak) == ("text encoder", 8)
    assert memory.components == {"text encoder": 8}


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
    traffic = iteration_traffic(
        shared,
        plan.passes,
        model.transformer_config,
        parameters=meter.weights.count,
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
def test_command(tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = str(job_file(tiny_teacher, tmp_path))
    assert cli(["plan", job, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["machine"]["gpus"] == 1 and found["tokens"] == 2 * 4 * 4
    assert 4 < found["memory_gib"]["total"] < 5
    assert cli(["plan", job, "--gpu-memory-gib", "4"]) == 2
    captured = capsys.readouterr()
    assert "GPU-hours" in captured.out and "memory of a GPU in GiB" in captured.out
    assert "a prediction" in captured.out and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_the_page_is_what_the_plan_says() -> None:
    page = Path(__file__).resolve().parents[3] / scale_tables.PAGE
    written = scale_tables.tables_of(page.read_text(encoding="utf-8"))
    assert written == scale_tables.make_tables()
    rows = written["gpus"].splitlines()[2:]
    assert {int(row.split("|")[1]) for row in rows} == {8, 16, 32, 64}
