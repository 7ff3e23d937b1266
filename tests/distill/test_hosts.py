"""Two hosts under torchrun: the cable between them is cut, and they go on when it is back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd import checkpoint as store
from tests.distill.test_launch import ROOT
from tests.distill.two_hosts import NO_PRIVILEGES
from tests.training import job_file, needs_deepspeed, read_trace

TIMEOUT_S = 15.0


@pytest.mark.slow
@needs_deepspeed
def test_a_host_that_is_cut_off(tiny_teacher: Path, tmp_path: Path) -> None:
    job, run = job_file(tiny_teacher, tmp_path), tmp_path / "run"
    text = job.read_text().replace("iterations: 5, micro_batch: 2", "iterations: 99999")
    text = text.replace("checkpoint_every: 100", "checkpoint_every: 2")
    job.write_text(text + "parallel: {strategy: zero3}\n")
    driver = [sys.executable, "-m", "tests.distill.two_hosts", str(job), str(run), str(TIMEOUT_S)]
    done = subprocess.run(
        ["unshare", "-rnm", *driver],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode == NO_PRIVILEGES or done.stderr.startswith("unshare: "):
        pytest.skip(f"no network namespaces without privileges here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)

    for host, outcome in told["cut"].items():
        assert outcome["code"] == 1, (host, outcome)
        assert TIMEOUT_S * 0.9 < outcome["seconds"] < 5 * TIMEOUT_S, (host, outcome)
    first, second = (said(told["cut"][host]["err"]) for host in ("node-a", "node-b"))
    assert re.match(r"error: no sign of rank 1 on node-b for 15 s: .*its machine is gone;", first)
    assert second.startswith("error: no answer from 10.77.0.1:29500, where the ranks meet: the net")

    # torchrun passed SIGUSR1 on: every iteration of the resumed run is in its last checkpoint.
    assert all("closing signal SIGUSR1" in o["err"] for o in told["resumed"].values())
    assert all("error:" not in o["err"] for o in told["resumed"].values())
    steps = [row["step"] for row in read_trace(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= told["done"] + 2
    assert store.step_of(store.find_checkpoint(run)) == len(steps)


def said(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line
