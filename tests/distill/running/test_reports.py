"""A rank's report is read as it was written, and a rank that gives up leaves its stacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from distill.running.reports import VARIABLE, RankError, read_report, write_report

GIVE_UP = """
import sys
from pathlib import Path
from distill.running.reports import give_up
give_up(Path(sys.argv[1]), 3, "it hangs", speak=True)
"""


def test_a_report_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report"
    assert read_report(file) is None
    monkeypatch.setenv(VARIABLE, str(file))
    write_report(RankError(("one", "two"), 2))
    assert read_report(file) == RankError(("one", "two"), 2)


def test_a_rank_that_gives_up_says_why_and_leaves_its_stacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GIVE_UP, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: it hangs\n")
    assert "give_up" in (tmp_path / "failed" / "stacks_rank_00003.txt").read_text()
