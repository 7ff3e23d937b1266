from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v_sgmd.job.loading import job_keys, load_job
from lightx2v_sgmd.job.schema import AdapterSettings, Optimizer, Teacher
from lightx2v_sgmd.methods.sgmd import SGMD
from lightx2v_sgmd.system.resources import config_path, shipped_jobs
from tests.job.minimal import MINIMAL, mistake, mistakes


def test_a_minimal_job_gets_the_papers_defaults(file: Path) -> None:
    job = load_job(file)
    assert job.teacher == Teacher(path="sprites", guidance_scale=3.0)
    assert job.student.optimizer == job.fake_score.optimizer == Optimizer(1e-6, (0.0, 0.999))
    assert isinstance(job.method, SGMD) and job.method.lambda_ == 0.1
    assert (job.train.sigma_min, job.train.sigma_max, job.train.score_shift) == (0.02, 0.98, 5.0)
    assert job.schedule.timesteps.tolist() == pytest.approx([1000, 960, 888.889, 727.273], abs=1e-3)
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


def test_prompts_are_relative_to_the_job_or_for_set_to_the_current_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load_job(file).data.prompts == str(tmp_path / "captions.txt")
    assert load_job(file, ["data.prompts=b.txt"]).data.prompts == str(here / "b.txt")
    assert load_job(file, ["data.prompts=sprites"]).data.prompts == "sprites"
    assert load_job(file, ["data.embeddings=cache"]).data.embeddings == here / "cache"
    assert load_job(Path("../job.yaml")).output.dir == Path("runs/x")


def test_an_override_of_a_similar_key_moves_no_other_path(file: Path, tmp_path: Path) -> None:
    job = load_job(file, ["data.embeddings=null"])
    assert job.data.prompts == str(tmp_path / "captions.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": is empty;"),
        (b"# only a comment\n", ": is empty;"),
        (b"- a\n- b\n", ": holds a list;"),
        (b"just words\n", ": holds a single value;"),
        (b"teacher:\n  path: [1\n", ": not valid YAML in line 3, column 1"),
        (b"teacher:\n\tpath: x\n", ": not valid YAML in line 2, column 1"),
        (b"a: \xff\n", ":1: byte 0xff is not UTF-8"),
        (b"train:\n  seed: 1\n  seed: 2\n", ":3: train.seed: given twice, first in line 2"),
        (b"train: !!python/object:os.system {}\n", ": not valid YAML in line 1, column 8"),
        (b"a: &a [*a]\n", ": not valid YAML in line 1, column 8: an alias"),
        (b"a: &a {b: *a}\n", ": an alias stands within what it names"),
        (b"a: \x00\n", ": not valid YAML: special characters are not allowed"),
    ],
)
def test_a_file_that_is_no_job(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert mistakes(file)[0].startswith(f"{file}")
    assert message in mistakes(file)[0]


def test_a_missing_file_names_the_shipped_jobs(tmp_path: Path) -> None:
    nowhere, near = tmp_path / "nowhere.yaml", tmp_path / "sprite_sgmd.yaml"
    shipped = config_path("sprites_sgmd.yaml")
    assert mistake(nowhere) == f"{nowhere}: no such file; the shipped jobs are in {shipped.parent}"
    assert mistake(near) == f"{near}: no such file; did you mean {shipped}?"


def test_a_folder_is_no_job(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"{tmp_path}: is a folder, not a file"


def test_the_contracts_keys_exist() -> None:
    keys = """teacher.path teacher.guidance_scale method.name method.lambda method.weighting
    schedule.shift train.iterations train.micro_batch train.accumulation train.seed
    train.checkpoint_every train.sample_every parallel.strategy parallel.sequence output.dir"""
    assert set(keys.split()) <= set(job_keys())
