"""The page on distilling a LoRA: its jobs are read, and its program's file is one to train with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.resources import config_path

ROOT = Path(__file__).resolve().parent.parent
FEWER = {"range(64)": "range(2)", "draw.integers(0, 64, 8)": "draw.integers(0, 2, 8)"}
FEWER["range(80)"] = "range(1)"
"""The program's two loops, which take 40 seconds, and their shortest form."""


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "distil-a-lora.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.M | re.S)


def written(folder: Path, text: str) -> Path:
    """A job of the page as a file."""
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_job_is_read(tmp_path: Path) -> None:
    first, _ = blocks("yaml")
    job = load_job(written(tmp_path, first))
    (lora,) = job.teacher.lora_files
    assert lora.path == tmp_path / "my_style.safetensors"
    assert job.student.train == job.fake_score.train == "lora"


@pytest.mark.slow
def test_the_programs_lora_is_a_teachers(tmp_path: Path) -> None:
    (program,) = blocks("python")
    for long, short in FEWER.items():
        assert long in program
        program = program.replace(long, short)
    (tmp_path / "make_lora.py").write_text(program, encoding="utf-8")
    subprocess.run(
        [sys.executable, "make_lora.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    job = load_job(written(tmp_path, blocks("yaml")[1]))
    assert Path(job.data.prompts).read_text(encoding="utf-8").count("\n") == 2
    merged = open_teacher(job.teacher).load_transformer().state_dict()
    plain = open_teacher(load_job(config_path("sprites_sgmd.yaml")).teacher).load_transformer()
    changed = {n for n, p in plain.state_dict().items() if not p.equal(merged[n])}
    assert changed and all(name.endswith(".weight") for name in changed)
