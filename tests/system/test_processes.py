"""Started processes: their share of the cores, and that they end with the one that started them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lightx2v_sgmd.system.processes import handling, process_environment, release, start_module

CHILD = """
import sys, time
from lightx2v_sgmd.system.processes import follow_parent, leave
if __name__ == "__main__":
    follow_parent()
    print(sys.argv[1:], flush=True)
    if sys.argv[1] == "leave":
        leave(3)
    time.sleep(1200)
"""


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert process_environment(3)["OMP_NUM_THREADS"] == "2"
    assert process_environment(20)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert process_environment(3)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("argument", "code"), [("leave", 3), ("stay", -signal.SIGTERM)])
def test_a_process_leaves_or_follows_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, code: int
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (tmp_path / "log").open("wb") as log:
        process = start_module("child", [argument, "b"], process_environment(1), log)
    if argument == "stay":
        release(process)  # as when this process ends
    try:
        assert process.wait(timeout=600) == code, (tmp_path / "log").read_text()
    finally:
        process.kill()
    if argument == "leave":
        assert (tmp_path / "log").read_text().strip() == "['leave', 'b']"


def test_handlers_are_put_back() -> None:
    received: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with handling({signal.SIGUSR1: lambda number, frame: received.append(number)}) as able:
        assert able
        os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [signal.SIGUSR1] and signal.getsignal(signal.SIGUSR1) is before
