"""SIGKILL at a change of the disk loses no accepted job and leaves no half file.

``python -m tests.infer.serve.dying FOLDER`` tries every moment, this test every third one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_kill_at_any_change_of_the_disk_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.infer.serve.dying", str(tmp_path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *wrong, moments = done.stdout.splitlines()
    assert wrong == []
    assert int(moments) > 15
