from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v_sgmd.job.loading import job_keys, load_job
from lightx2v_sgmd.job.schema import AdapterSettings, Optimizer, Steps, Teacher
from lightx2v_sgmd.methods.sgmd import SGMD
from lightx2v_sgmd.system.resources import config_path, shipped_jobs
from tests.job.minimal import MINIMAL


def test_a_minimal_job_gets_the_papers_defaults(file: Path) -> None:
    job = load_job(file)
    assert job.teacher == Teacher(path="sprites", guidance_scale=3.0)
    assert job.student.optimizer == job.fake_score.optimizer == Optimizer(1e-6, (0.0, 0.999))
    assert isinstance(job.method, SGMD) and job.method.lambda_ == 0.1
    assert (job.train.sigma_min, job.train.sigma_max, job.train.score_shift) == (0.02, 0.98, 5.0)
    assert job.schedule == Steps((1000.0, 750.0, 500.0, 250.0), None, None)
    assert job.output.dir == Path("runs/x")


def test_a_job_is_frozen(file: Path) -> None:
    job = load_job(file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.train.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", shipped_jobs())
def test_shipped_jobs_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    job = load_job(config_path(name))
    saved = tmp_path / "elsewhere.yaml"
    saved.write_text(job.to_yaml())
    assert load_job(saved) == job


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_value_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str, lr: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(MINIMAL)
    job = load_job(path)
    job = dataclasses.replace(
        job,
        teacher=dataclasses.replace(job.teacher, negative_prompt=text),
        student=dataclasses.replace(job.student, optimizer=Optimizer(lr=lr)),
        train=dataclasses.replace(job.train, seed=seed),
    )
    path.write_text(job.to_yaml(), encoding="utf-8")
    assert load_job(path) == job


def test_adapters_are_resolved_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    job = load_job(file, ["student.train=lora", "fake_score={train: lora, lora: {alpha: 16}}"])
    assert job.student.lora == AdapterSettings() and AdapterSettings().scale == 1
    assert (
        job.fake_score.lora == AdapterSettings(rank=64, alpha=16.0)
        and job.fake_score.lora.scale == 0.25
    )
    saved = tmp_path / "saved.yaml"
    saved.write_text(job.to_yaml())
    assert load_job(saved) == job and "rank: 64" in job.to_yaml()
    assert load_job(saved, ["student={train: full, lora: null}"]).student.adapters is None
    assert "student.lora.rank" in job_keys()


def test_the_contracts_keys_exist() -> None:
    keys = """teacher.path teacher.guidance_scale method.name method.lambda method.weighting
    schedule.shift train.iterations train.micro_batch train.accumulation train.seed
    train.checkpoint_every train.sample_every parallel.strategy parallel.sequence output.dir"""
    assert set(keys.split()) <= set(job_keys())
