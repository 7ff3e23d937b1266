"""The death of one process of a worker is the death of the worker; with stand-ins for both."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infer.options import Options
from infer.serve.jobs import JobStore
from infer.serve.options import ServeOptions
from infer.serve.supervisor import Supervisor
from tests.infer.serve.standin import WANTED

PATIENCE_S = 300.0


STAND_INS = """
from infer.serve.work.messages import Opened, Ready

def lead(order, pipe, followers):
    pipe.send(Opened(()))
    pipe.send(Ready())
    assert len(followers) == order.nproc - 1
    pipe.recv()  # the server says stop

def follow(order, leader, rank):
    try:
        leader.recv()
    except EOFError:
        pass
"""
"""A module of its own: importing this one in each process would import PyTorch."""


def wait_until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if true():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


def test_a_rank_that_dies_takes_the_worker_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stand_in_ranks.py").write_text(STAND_INS)
    monkeypatch.syspath_prepend(tmp_path)
    ranks: Any = importlib.import_module("stand_in_ranks")
    options = ServeOptions(data=tmp_path, nproc=3)
    with closing(JobStore(tmp_path / "queue.sqlite")) as store:
        name = store.add(WANTED, 10).id
        weights = {"tiny": Path("nowhere")}
        supervisor = Supervisor(
            weights, Options(), options, store, lambda: None, ranks.lead, ranks.follow
        )
        try:
            assert supervisor.open() == ()
            wait_until(lambda: supervisor.state == "ready")
            before = supervisor._running
            assert len(before.processes) == 3
            assert store.claim(before.name, lambda job: 1)[0].id == name
            assert before.processes[2].pid is not None
            os.kill(before.processes[2].pid, signal.SIGKILL)
            wait_until(lambda: supervisor.restarts == 1 and supervisor.state == "ready")
            assert not any(process.is_alive() for process in before.processes)
            job = store.get(name)
            assert job is not None and (job.status, job.deaths) == ("queued", 1)
            after = supervisor._running
        finally:
            supervisor.stop()
        assert [process.exitcode for process in after.processes] == [0, 0, 0]
