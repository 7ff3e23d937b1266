"""A job that the main memory does not hold is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.planning import host_memory
from distill.planning.host_memory import check_host_memory
from distill.planning.model_meter import ModelMeter
from distill.planning.rank_memory import rank_memory
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"teacher: {{path: {tiny_teacher}, guidance_scale: 3.0}}\n"
        "data: {prompts: sprites}\n"
        "video: {height: 32, width: 32, num_frames: 5}\n"
        "train: {iterations: 1}\n"
        f"output: {{dir: {tmp_path / 'run'}}}\n"
    )
    return load_job(path)


def free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(host_memory, "available_gib", lambda: gib)
    monkeypatch.setattr("lightx2v_sgmd.system.host_memory.available_gib", lambda: gib)


def test_what_a_rank_needs_is_what_is_compared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(job.teacher.path)
    memory = rank_memory(job, ModelMeter(model, on_gpu=False), 1)
    always = sum(memory.always.values())
    needed = (always + max(sum(p.values()) for p in memory.phases.values())) / 2**30
    free(monkeypatch, 1.01 * needed)
    check_host_memory(job, model, CPU, 1)
    free(monkeypatch, 0.99 * needed)
    with pytest.raises(UserError, match=r"^1 process of this job: needs about 0\.0\d+ GiB of main"):
        check_host_memory(job, model, CPU, 1)
    # The activations are metered only where the weights come near what there is.
    monkeypatch.setattr(host_memory, "rank_memory", lambda *arguments: pytest.fail("metered"))
    free(monkeypatch, 100 * needed)
    check_host_memory(job, model, CPU, 1)


def test_buckets_that_a_small_network_does_not_fill_take_no_memory(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(job.teacher.path)
    sharded = replace(job, parallel=replace(job.parallel, strategy="zero3"))
    memory = rank_memory(sharded, ModelMeter(model, on_gpu=False), 2)
    buckets = memory.always["gradient buckets"]
    assert buckets > 2**31
    rest = sum(memory.always.values()) - buckets
    rest += max(sum(parts.values()) for parts in memory.phases.values())
    free(monkeypatch, 2 * 1.5 * rest / 2**30)
    check_host_memory(sharded, model, CPU, 2)


def test_ranks_of_this_machine_add_up_and_a_gpu_counts_what_is_offloaded(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(job.teacher.path)
    sharded = replace(job, parallel=replace(job.parallel, strategy="zero3", offload="all"))
    host = sum(rank_memory(sharded, ModelMeter(model), 4).host.values()) / 2**30
    gpu = torch.device("cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    free(monkeypatch, 2.01 * host)
    check_host_memory(sharded, model, gpu, 4)
    free(monkeypatch, 1.99 * host)
    with pytest.raises(UserError, match="^2 processes of this job: needs about"):
        check_host_memory(sharded, model, gpu, 4)
    check_host_memory(job, model, gpu, 1)  # nothing is offloaded
