"""A method from another package: the one of docs/methods.md, built, installed and run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import job_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FILES = {"toml": "pyproject.toml", "python": "huber_fisher.py"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, and nothing else."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for language, name in FILES.items():
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)
        (source / name).write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=900)
    return target


def distil(job: Path, installed: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The command as a user of both packages gives it, outside the checkout."""
    command = [sys.executable, "-m", "lightx2v_sgmd", "distill", str(job), "--quiet"]
    for setting in ("method.name=huber_fisher", *settings):
        command += ["--set", setting]
    path = os.pathsep.join([str(installed), str(ROOT)])
    return subprocess.run(
        command,
        cwd=job.parent,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_it_trains(installed: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    job = job_file(tiny_teacher, tmp_path)
    settings = ["method.delta=0.25", "train.iterations=2", "train.micro_batch=1"]
    done = distil(job, installed, *settings)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["huber"] > 0 and math.isfinite(line["huber"]) and line["fake"] > 0
        # What it declares is what ran: two updates, and a path through the fake score.
        assert line["weight_backwards"] == {"student": 1, "fake_score": 2, "teacher": 0}
        assert line["backwards"] == {"student": 1, "fake_score": 3, "teacher": 0}
    saved = (run / "job.yaml").read_text(encoding="utf-8")
    assert "name: huber_fisher" in saved and "delta: 0.25" in saved
    (student,) = (run / "checkpoints").glob("step_000002/student.safetensors")
    assert student.stat().st_size > 0


def test_a_misspelt_option_is_named_with_the_nearest(
    installed: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    done = distil(job_file(tiny_teacher, tmp_path), installed, "method.dleta=0.25")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "method.dleta" in line and re.search(r"\bdelta\b", line)
    assert not (tmp_path / "run").exists()


def test_without_the_package_its_name_is_unknown(tiny_teacher: Path, tmp_path: Path) -> None:
    done = distil(job_file(tiny_teacher, tmp_path), tmp_path)
    assert done.returncode == 2
    assert "method.name: 'huber_fisher' is unknown; use one of adm, " in done.stderr
