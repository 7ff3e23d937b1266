"""Two hosts, under torchrun and under the deepspeed launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.job.loading import load_job
from tests.distill.running.test_launch import ROOT
from tests.distill.running.two_hosts import NO_PRIVILEGES
from tests.training import assert_same_run, job_file, needs_deepspeed, read_trace, train

TIMEOUT_S = 15.0
KILLED = -9  # as processes that do not end by themselves are


def two_hosts(*arguments: str) -> dict[str, Any]:
    """The result of ``tests.distill.running.two_hosts``."""
    done = subprocess.run(
        ["unshare", "-rnm", sys.executable, "-m", "tests.distill.running.two_hosts", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=2400,
    )
    if done.returncode == NO_PRIVILEGES or done.stderr.startswith("unshare: "):
        pytest.skip(f"no network namespaces without privileges here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
@needs_deepspeed
def test_a_host_that_is_cut_off(tiny_teacher: Path, tmp_path: Path) -> None:
    job, run = job_file(tiny_teacher, tmp_path), tmp_path / "run"
    text = job.read_text().replace("iterations: 5, micro_batch: 2", "iterations: 99999")
    text = text.replace("checkpoint_every: 100", "checkpoint_every: 2")
    job.write_text(text + "parallel: {strategy: zero3}\n")
    told = two_hosts("torchrun", str(job), str(run), str(TIMEOUT_S))

    for host, outcome in told["cut"].items():
        assert outcome["code"] == 1, (host, outcome)
    first, second = (said(told["cut"][host]["err"]) for host in ("node-a", "node-b"))
    assert re.match(r"error: no sign of rank 1 on node-b for 15 s: .*its machine is gone;", first)
    assert second.startswith("error: no answer from 10.77.0.1:29500, where the ranks meet: the net")

    # torchrun passed SIGUSR1 on: every iteration of the resumed run is in its last checkpoint.
    assert all("closing signal SIGUSR1" in o["err"] for o in told["resumed"].values())
    assert all("error:" not in o["err"] for o in told["resumed"].values())
    assert all(o["code"] != KILLED for o in told["resumed"].values())
    steps = [row["step"] for row in read_trace(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= told["done"] + 2
    assert store.step_of(store.find_checkpoint(run)) == len(steps)


@pytest.mark.slow
@needs_deepspeed
def test_the_deepspeed_launcher_with_a_hostfile(tiny_teacher: Path, tmp_path: Path) -> None:
    """Gives what two ranks of one host give, to the last bit."""
    runs, files = {}, {}
    for name in ("hosts", "here"):
        files[name] = job_file(tiny_teacher, tmp_path / name)
        text = files[name].read_text().replace("iterations: 5, micro_batch: 2", "iterations: 2")
        files[name].write_text(text + "parallel: {strategy: zero3}\n")
        runs[name] = tmp_path / name / "run"
    told = two_hosts("deepspeed", str(files["hosts"]))
    assert [told[host]["code"] for host in ("node-a", "node-b")] == [0, 0], told
    assert told["node-a"]["out"].splitlines().count(str(runs["hosts"])) == 1
    assert str(runs["hosts"]) not in told["node-b"]["out"].splitlines()

    train(load_job(files["here"]), ranks=2)
    assert_same_run(runs["hosts"], runs["here"])


def said(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line
