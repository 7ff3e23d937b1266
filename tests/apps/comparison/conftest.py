"""A job of the tiny teacher that a comparison starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import job_file


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Path:
    """``base_sgmd.yaml``, with another method's job beside it."""
    written = job_file(tiny_teacher, tmp_path / "jobs")
    text = written.read_text()
    base = written.rename(written.with_name("base_sgmd.yaml"))
    (base.with_name("base_dmd2.yaml")).write_text(
        text.replace("lr: 1.0e-4", "lr: 3.0e-4").replace("iterations: 5", "iterations: 99")
        + "method: {name: dmd2, fake_score_updates: 2}\n"
    )
    return base
