"""Runs whose processes are stopped or killed from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lightx2v_sgmd.files import checkpoint as store
from tests.distill.running.test_launch import start, wait_for_step
from tests.training import job_file, needs_deepspeed

pytestmark = [needs_deepspeed, pytest.mark.slow]

TWO_RANKS = [
    *("--nproc", "2", "--quiet", "--set", "parallel.strategy=zero3"),
    *("--set", "train.micro_batch=1", "--set", "train.iterations=100000"),
]


def children(process: subprocess.Popen[str]) -> dict[int, int]:
    """The ranks of a run, as ``{rank: process id}``."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(e[5:]): int(child) for e in environment if e.startswith(b"RANK=")})
    return found


def test_a_stopped_rank_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    timeout_s = 12.0
    patience = ["--set", f"parallel.timeout_minutes={timeout_s / 60}"]
    process = start(job_file(tiny_teacher, tmp_path), *TWO_RANKS, *patience)
    wait_for_step(tmp_path / "run", 2, process)
    stopped = children(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert re.match(r"error: no sign of rank 1 on \S+ for 12 s: the process is stopped or", line)
    assert re.search(r"rank 1 on \S+ was last at step \d+, ", line)
    assert not Path(f"/proc/{stopped}").exists()
    assert (tmp_path / "run" / "failed" / "stacks_rank_00000.txt").read_text().count("Thread") > 1


def test_a_killed_rank_is_named_at_once(tiny_teacher: Path, tmp_path: Path) -> None:
    """Long before ``parallel.timeout_minutes``, whose line is another one."""
    process = start(job_file(tiny_teacher, tmp_path), *TWO_RANKS)
    wait_for_step(tmp_path / "run", 2, process)
    os.kill(children(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert "error: rank 1 of 2 was ended by SIGKILL, as happens when memory is full" in err
    assert "Traceback" not in err
    assert store.checkpoints(tmp_path / "run") == []
