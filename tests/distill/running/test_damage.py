"""Checkpoints on a disk that fills up, and checkpoints that something has changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill import distill
from distill.running.resuming import choose_checkpoint
from lightx2v_sgmd.files import checkpoint as store
from tests.distill.running.test_launch import ROOT
from tests.training import job_file, make_job, read_trace

SETTINGS = ("train.iterations=3", "train.checkpoint_every=1", "train.keep_checkpoints=2")


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 2 and 3."""
    return distill(make_job(tiny_teacher, tmp_path_factory.mktemp("whole"), *SETTINGS), quiet=True)


def alter(path: Path, rng: random.Random) -> str:
    """Truncates a file, or changes a byte, at a random place; says which."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        path.write_bytes(content[:place])
        return f"{path.name} cut to {place} bytes"
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    return f"{path.name} changed at {place}"


def means_the_same(path: Path, original: bytes) -> bool:
    """True if a changed manifest is another way to write the same."""
    try:
        return bool(
            path.name == store.MANIFEST and json.loads(path.read_bytes()) == json.loads(original)
        )
    except ValueError:
        return False


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_file_is_found_and_the_checkpoint_before_it_is_used(
    finished: Path, tmp_path: Path, seed: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest, older = store.checkpoints(run)
    rng = random.Random(seed)
    path = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
    original = path.read_bytes()
    what = alter(path, rng)
    if means_the_same(path, original):
        pytest.skip("JSON with other white space")
    assert store.find_checkpoint(run) == older, what
    notes: list[str] = []
    assert choose_checkpoint("auto", run, notes.append) == older, what
    (line,) = notes
    assert "\n" not in line and line.startswith(str(newest)), line
    assert line.endswith("; resuming from the checkpoint before it")
    assert store.checkpoints(run) == [older]
    assert (run / "checkpoints" / f"{newest.name}.damaged").is_dir()


def test_a_run_from_the_future_is_resumed(finished: Path, tmp_path: Path) -> None:
    """Checkpoints are told apart by their steps, not by times, which a wrong clock has given."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest, older = store.checkpoints(run)
    for path in run.rglob("*"):
        os.utime(path, (2**33, 2**33))
    os.utime(newest, (0, 0))
    assert store.find_checkpoint(run) == newest
    assert choose_checkpoint("auto", run, print) == newest
    assert store.checkpoints(run) == [newest, older]


SCRIPT = """
set -u
mount -t tmpfs -o size=$2 tmpfs "$1" || exit 77
export PYTHONPATH=$5
"$3" -m lightx2v_sgmd distill "$4" --quiet --set output.dir="$1/run"; echo "small: $?"
ls -A "$1/run/checkpoints"
mount -o remount,size=64m "$1"
"$3" -m lightx2v_sgmd distill "$4" --quiet --set output.dir="$1/run"; echo "large: $?"
cp -r "$1/run" "$1.copy"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tiny_teacher: Path, tmp_path: Path, finished: Path) -> None:
    """A file system of one checkpoint and a half, mounted where only this test sees it."""
    job = job_file(tiny_teacher, tmp_path)
    text = job.read_text().replace("iterations: 5", "iterations: 3, keep_checkpoints: 1")
    job.write_text(text.replace("checkpoint_every: 100", "checkpoint_every: 1"))
    one = sum(p.stat().st_size for p in store.find_checkpoint(finished).rglob("*") if p.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(disk), str(one * 3 // 2), sys.executable, str(job), str(ROOT)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mounts without privileges here: {done.stderr.strip()}")
    names = done.stdout.split()
    assert names[names.index("small:") + 1] == "2", done.stderr
    assert "step_000001" in names and not any("step_000002" in name for name in names)
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "step_000002: the disk is full; free some space, then run the same command" in line
    assert "Traceback" not in done.stderr
    assert names[-1] == "0", done.stderr
    assert read_trace(Path(f"{disk}.copy")) == (read_trace(finished))
