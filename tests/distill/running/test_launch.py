"""Runs as the user starts them: processes, signals, exit codes, what is printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill import distill
from lightx2v_sgmd.parallel.rendezvous import host_store
from lightx2v_sgmd.system.errors import UserError
from tests.training import job_file, make_job, needs_deepspeed, read_trace

ROOT = Path(__file__).resolve().parents[3]


def start(job: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """``lightx2v-sgmd distill`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lightx2v_sgmd", "distill", str(job), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    for _ in range(24000):
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no such step within twenty minutes")


def preempt(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Asks a run to stop, as a scheduler does, and gives what it says on stderr.

    It must leave by itself. Schedulers and launchers give at least 30 s, many times what it needs;
    the limit here only finds a run that does not leave, however busy the machine is.
    """
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        raise AssertionError(f"still there ten minutes after a signal; it said: {err}") from None
    assert process.returncode == 130, err
    return err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, ["--set", "parallel.strategy=local"]),
        pytest.param(
            signal.SIGUSR1,
            ["--set", "parallel.strategy=zero3", "--set", "train.micro_batch=1", "--nproc", "2"],
            marks=needs_deepspeed,
        ),
    ],
    ids=["local", "two ranks"],
)
def test_a_signal_then_the_same_command(
    tiny_teacher: Path, tmp_path: Path, number: int, options: list[str]
) -> None:
    settings = [*options, "--set", "train.iterations=8", "--set", "train.checkpoint_every=3"]
    straight = job_file(tiny_teacher, tmp_path / "straight")
    process = start(straight, *settings, "--quiet")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "straight" / "run")

    job, run = job_file(tiny_teacher, tmp_path / "broken"), tmp_path / "broken" / "run"
    process = start(job, *settings)
    wait_for_step(run, 2, process)
    err = preempt(process, number)
    assert "Traceback" not in err
    stopped = len(read_trace(run))
    assert 2 <= stopped < 8
    newest = sorted((run / "checkpoints").iterdir())[-1].name
    assert newest == f"step_{stopped:06d}"

    process = start(job, *settings)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert read_trace(run) == read_trace(tmp_path / "straight" / "run")


@pytest.mark.slow
@needs_deepspeed
def test_a_mistake_that_only_ranks_see_is_said_once(tiny_teacher: Path, tmp_path: Path) -> None:
    job = job_file(tiny_teacher, tmp_path)
    (tmp_path / "prompts.txt").write_text("", encoding="utf-8")
    zero3 = ["--set", "parallel.strategy=zero3", "--nproc", "2"]
    process = start(job, *zero3, "--quiet")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 2
    assert err.count("prompts.txt: holds no prompts") == 1
    assert "Traceback" not in err and out == ""


def test_local_is_not_started_twice(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="local is one process, not the 2 of --nproc"):
        distill(make_job(tiny_teacher, tmp_path), nproc=2, quiet=True)


def test_nproc_under_a_launcher(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="--nproc: 2 is not the 4 processes"):
        distill(make_job(tiny_teacher, tmp_path), nproc=2, quiet=True)


def test_only_one_rank_of_a_launcher_speaks(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_teacher, tmp_path)
    Path(job.data.prompts).write_text("", encoding="utf-8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as left:
        distill(job, quiet=True)
    assert left.value.code == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="holds no prompts"):
        distill(job, quiet=True)


@pytest.mark.slow
@needs_deepspeed
def test_a_signal_while_another_host_does_not_come(tiny_teacher: Path, tmp_path: Path) -> None:
    """The rank is in a call of the network library, which heeds no signal."""
    meeting = host_store()  # that another one holds the place changes nothing
    waiting = {
        **{"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port)},
    }
    job = job_file(tiny_teacher, tmp_path)
    process = start(job, "--set", "parallel.strategy=zero3", **waiting)
    meeting.wait(["lightx2v-sgmd/join/here/1"])
    preempt(process)
    assert not (tmp_path / "run").exists()
