"""Checkpoints of students so large that ranks write them together."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from distill import distill
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files import student_weights
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from tests.parallel.ranks import run_ranks
from tests.training import assert_same_run, make_job, needs_deepspeed, train, weights_of
from weights import export

pytestmark = [needs_deepspeed, pytest.mark.slow]


def runs_of_large(*jobs: Job) -> None:
    student_weights.MOST = 10_000  # type: ignore[misc]
    for job in jobs:
        distill(job, quiet=True)


def run_without_room(job: Job) -> str:
    """The message if the disk has no room for the second rank's file."""
    student_weights.MOST = 10_000  # type: ignore[misc]
    write = store.PendingCheckpoint.write_tensors

    def full(self: store.PendingCheckpoint, name: str, *args: Any) -> Any:
        if name == "student-00002-of-00002.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, name, *args)

    store.PendingCheckpoint.write_tensors = full  # type: ignore[assignment, method-assign]
    with pytest.raises((UserError, SystemExit)) as caught:  # the first rank speaks for all
        distill(job, quiet=True)
    return str(caught.value)


def test_files_that_ranks_write_together(tiny_teacher: Path, tmp_path: Path) -> None:
    """They hold what one file holds; a run goes on from them, and they are exported."""

    def job_of(name: str, iterations: int) -> Job:
        settings = ("parallel.strategy=zero3", "train.keep_checkpoints=1")
        return make_job(tiny_teacher, tmp_path / name, *settings, f"train.iterations={iterations}")

    one = train(job_of("one", 3), ranks=2)
    several = job_of("several", 3)
    run_ranks(2, runs_of_large, job_of("several", 2), several)
    assert_same_run(several.output.dir, one)
    checkpoint = store.find_checkpoint(several.output.dir)
    for averaged in (False, True):
        first, second = student_files(checkpoint, averaged)
        assert 0.5 < first.stat().st_size / second.stat().st_size < 2
    for name, folder in {"one": one, "several": checkpoint}.items():
        export(folder, "diffusers", tmp_path / "out" / name, quiet=True)
    ours, theirs = (
        load_file(tmp_path / "out" / name / "transformer/diffusion_pytorch_model.safetensors")
        for name in ("one", "several")
    )
    assert all(ours[name].equal(value) for name, value in theirs.items()) and len(ours) > 20

    before = weights_of(checkpoint)
    said = run_ranks(2, run_without_room, job_of("several", 4))
    assert "the disk is full; free some space" in said
    assert [folder.name for folder in store.checkpoints(several.output.dir)] == [checkpoint.name]
    store.verify(checkpoint)
    assert before.keys() == weights_of(checkpoint).keys()
