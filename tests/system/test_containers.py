"""Containers: no home, no entry in the password file, -OO, the plainest locale, no cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOMELESS = """
import os, pwd, sys
for name in ("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME", "HF_HOME"):
    os.environ.pop(name, None)
def unknown(who):
    raise KeyError(who)
pwd.getpwuid = pwd.getpwnam = unknown
os.getuid = lambda: 54321
from lightx2v_sgmd.cli.main import run
job, out = sys.argv[1:]
generate = ["generate", "--weights", "sprites", "--assume-schedule", "sgmd", "--device", "cpu"]
small = ["--height", "16", "--width", "16", "--num-frames", "1", "--prompt", "a red circle"]
for arguments in (
    ["doctor"],
    ["plan", job],
    [*generate, *small, "--out", f"{out}/x.mp4", "--quiet"],
    ["plan", job, "--set", "data.prompts=~/prompts.txt"],
    ["distill", job, "--set", "train.iterations=1", "--quiet"],
    ["export", f"{out}/run", "--out", f"{out}/student", "--dtype", "fp32", "--quiet"],
):
    print(arguments[0], run(arguments), file=sys.stderr)
"""


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"teacher: {{path: {tiny_teacher}, guidance_scale: 3.0}}\n"
        "data: {prompts: prompts.txt}\n"
        "video: {height: 32, width: 32, num_frames: 5}\n"
        "train: {iterations: 1}\n"
        f"output: {{dir: {tmp_path / 'run'}}}\n"
    )
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    return path


@pytest.mark.slow
def test_without_a_home(job: Path, tmp_path: Path) -> None:
    done = python("-c", HOMELESS, str(job), str(tmp_path), cwd=tmp_path)
    codes = [
        line.split() for line in done.stderr.splitlines() if line.split()[1:] in (["0"], ["2"])
    ]
    assert codes == [
        ["doctor", "0"],
        ["plan", "0"],
        ["generate", "0"],
        ["plan", "2"],
        ["distill", "0"],
        ["export", "0"],
    ], done.stderr
    assert "HOME" in done.stderr and "internal error" not in done.stderr
    assert not list(tmp_path.glob("*~*"))


@pytest.mark.slow
def test_with_oo_in_the_plainest_locale_and_no_cache(tmp_path: Path) -> None:
    arguments = ["--weights", "sprites", "--assume-schedule", "sgmd", "--device", "cpu"]
    small = ["--height", "16", "--width", "16", "--num-frames", "1", "--prompt", "a réd circle"]
    done = python(
        *("-OO", "-m", "lightx2v_sgmd", "generate", *arguments, *small),
        *("--out", str(tmp_path / "é.mp4"), "--quiet"),
        cwd=Path("/proc"),  # nothing can be written there
        LC_ALL="POSIX",
        HOME="/proc",
        XDG_CACHE_HOME="/proc",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "é.mp4").stat().st_size > 0
    assert "internal error" not in done.stderr


def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path: Path) -> None:
    done = python(
        *("-m", "lightx2v_sgmd", "export", "x", "--out", "é"),
        cwd=tmp_path,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
