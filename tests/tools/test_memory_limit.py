"""A limited command cannot take more memory than its limit."""

from __future__ import annotations

import subprocess
import sys

from tools.checks.memory_limit import memory_limit

LIMIT = 256 * 2**20


def _takes(megabytes: int) -> int:
    """The exit code of a process that fills so much memory."""
    with memory_limit(LIMIT) as limit:
        assert limit.kind in ("memory", "address space")
        command = [sys.executable, "-c", f"bytearray(b'x') * ({megabytes} << 20)"]
        return subprocess.run(command, preexec_fn=limit.enter, capture_output=True).returncode


def test_what_fits_runs_and_what_does_not_ends() -> None:
    assert _takes(64) == 0
    assert _takes(512) != 0


def test_the_limit_ends_with_the_command() -> None:
    with memory_limit(LIMIT):
        pass
    command = [sys.executable, "-c", "bytearray(b'x') * (512 << 20)"]
    assert subprocess.run(command, capture_output=True).returncode == 0
