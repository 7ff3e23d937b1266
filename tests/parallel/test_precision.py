"""In bfloat16, what diffusers keeps in float32 is float32 in every network, and learns as such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightx2v_sgmd.families.text_rows import fold_text_padding
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT, TEACHER, connect, disconnect
from tests.parallel.ranks import run_ranks
from tests.training import make_job, make_trainer, needs_deepspeed, read_trace, train, weights_of

KEPT = ("time_embedder", "scale_shift_table", "norm2")
BFLOAT16 = "teacher.dtype=bfloat16"


def is_kept(name: str) -> bool:
    return bool({*KEPT} & {*name.split(".")})


@pytest.fixture(autouse=True)
def leave_the_process_group() -> Iterator[None]:
    yield
    disconnect("zero3")


def test_the_weights_that_are_kept(tiny_teacher: Path) -> None:
    network = open_wan(tiny_teacher).load_transformer(torch.bfloat16)
    for name, p in network.named_parameters():
        assert p.dtype == (torch.float32 if is_kept(name) else torch.bfloat16), name


@torch.no_grad()
def differences(job: Job) -> list[str]:
    """Where the networks of a job are not what diffusers loads, bit for bit."""
    ranks = connect(job.parallel.strategy, torch.device("cpu"))
    trainer = make_trainer(job, ranks, job.parallel.strategy)
    stock = open_wan(job.teacher.path).load_transformer(torch.bfloat16)
    fold_text_padding(stock)
    batch = trainer.batches.micro_batch(0, 0)
    inputs = batch.noise, batch.time, batch.conditioning
    text = batch.conditioning["text"]
    expected = velocity(stock, batch.noise, batch.time, text)
    found = [
        f"{role} is not what diffusers loads"
        for role in (STUDENT, FAKE_SCORE, TEACHER)
        if not torch.equal(trainer.strategy.predict(role, *inputs), expected)
    ]
    for iteration in range(2):
        with torch.enable_grad():
            trainer.iterate(iteration)
    ours = trainer.strategy.predict(STUDENT, *inputs)
    if torch.equal(ours, expected):
        found.append("nothing was learned")
    if job.student.train == "full":
        # The masters, each rounded to what a weight of that name has.
        for name, master in trainer.strategy.whole_tensors(STUDENT):
            stock.get_parameter(name).copy_(master)
        if not torch.equal(ours, velocity(stock, batch.noise, batch.time, text)):
            found.append("the student is not its masters")
        for name, p in trainer.strategy.networks[STUDENT].named_parameters():
            sharded = hasattr(p, "ds_tensor")
            dtype = p.ds_tensor.dtype if sharded else p.dtype  # type: ignore[attr-defined]
            if dtype != (torch.bfloat16 if sharded and not is_kept(name) else torch.float32):
                found.append(f"{name} is {dtype}")
    trainer.strategy.close()
    return found


@pytest.mark.parametrize("train", ["full", "lora"])
def test_one_process_computes_what_diffusers_does(
    tiny_teacher: Path, tmp_path: Path, train: str
) -> None:
    """Trained networks are float32 under autocast, or adapters are: not a bit may show."""
    roles = (f"{role}.train={train}" for role in (STUDENT, FAKE_SCORE))
    assert differences(make_job(tiny_teacher, tmp_path, BFLOAT16, *roles)) == []


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "offload", "train"),
    [(1, "none", "full"), (2, "optimizer", "full"), (2, "all", "full"), (2, "none", "lora")],
)
def test_sharded_networks_are_those_that_diffusers_loads(
    tiny_teacher: Path, tmp_path: Path, ranks: int, offload: str, train: str
) -> None:
    roles = (f"{role}.train={train}" for role in (STUDENT, FAKE_SCORE))
    layout = ("parallel.strategy=zero3", f"parallel.offload={offload}")
    job = make_job(tiny_teacher, tmp_path, BFLOAT16, *layout, *roles)
    assert run_ranks(ranks, differences, job) == []


@needs_deepspeed
@pytest.mark.slow
def test_a_checkpoint_is_taken_up_bit_for_bit(tiny_teacher: Path, tmp_path: Path) -> None:
    """Masters of both precisions, with their average and Adam's state."""
    runs = {}
    for name, parts in {"whole": [4], "halves": [2, 4]}.items():
        for iterations in parts:
            settings = (BFLOAT16, "parallel.strategy=zero3", f"train.iterations={iterations}")
            runs[name] = train(make_job(tiny_teacher, tmp_path / name, *settings), 2)
    assert read_trace(runs["halves"]) == read_trace(runs["whole"])
    ours, theirs = (weights_of(find_checkpoint(runs[name])) for name in ("halves", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@needs_deepspeed
@pytest.mark.slow
def test_micro_batches_are_added_up_in_float32(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = (BFLOAT16, "parallel.strategy=zero3", "train.accumulation=3")
    job = make_job(tiny_teacher, tmp_path, *settings)
    trainer = make_trainer(job, connect("zero3", torch.device("cpu")), "zero3")
    strategy: Any = trainer.strategy
    held = strategy._engines[STUDENT].optimizer.grad_partitions_flat_buffer
    sums = []
    for micro in range(3):
        trainer.add_gradients(micro, batch_index=0, iteration=0)
        sums.append(held.clone())
    strategy.close()
    assert torch.equal(sums[0], sums[0].bfloat16())
    assert not torch.equal(sums[2], sums[2].bfloat16())
