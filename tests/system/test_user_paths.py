"""``~`` and variables are replaced in every path of a job and of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.user_paths import expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_home_and_variables_are_replaced_and_the_rest_stays(home: Path) -> None:
    outputs = home.parent / "outputs"
    assert expanded("~/x") == f"{home}/x" and expanded("$OUTPUTS/x") == f"{outputs}/x"
    assert expanded("${OUTPUTS}/x") == f"{outputs}/x"
    for same in ("a/~/b", "$NO_SUCH_NAME/x", "Wan-AI/Wan2.1", "x.mp4"):
        assert expanded(same) == same


def test_paths_of_a_job(home: Path) -> None:
    job = home.parent / "job.yaml"
    (home / "p.txt").write_text("a\n")
    job.write_text(
        "teacher: {path: $OUTPUTS/teacher, base: ~/base, guidance_scale: 3.0}\n"
        "data: {prompts: ~/p.txt, embeddings: $OUTPUTS/e}\n"
        "video: {height: 32, width: 32, num_frames: 5}\n"
        "train: {iterations: 1}\n"
        "output: {dir: ~/run}\n"
    )
    loaded, outputs = load_job(job), home.parent / "outputs"
    assert loaded.output.dir == home / "run" and loaded.data.embeddings == outputs / "e"
    assert loaded.teacher.path == f"{outputs}/teacher" and loaded.teacher.base == f"{home}/base"
    assert loaded.data.prompts == f"{home}/p.txt"
    over = load_job(job, ["output.dir=$OUTPUTS/run"])
    assert over.output.dir == outputs / "run"


def test_a_job_sends_no_variable_to_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hf_123")
    (home.parent / "models").mkdir()
    job = home.parent / "job.yaml"
    job.write_text(
        "teacher: {path: some/x$SECRET, base: $SECRET, guidance_scale: 3.0}\n"
        "student: {path: models/$SECRET}\n"
        "data: {prompts: p.txt}\n"
        "video: {height: 32, width: 32, num_frames: 5}\n"
        "train: {iterations: 1}\n"
        "output: {dir: run}\n"
    )
    loaded = load_job(job)
    assert (loaded.teacher.path, loaded.teacher.base) == ("some/x$SECRET", "$SECRET")
    assert loaded.student.path == "models/$SECRET"
    (home.parent / "models/hf_123").mkdir()
    assert load_job(job).student.path == "models/hf_123"


def test_paths_of_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "inspect", "~/none.safetensors"]) == 2
    assert f"{home}/none.safetensors: does not exist" in capsys.readouterr().err
    command = ["generate", "--weights", "$OUTPUTS/none", "--prompt", "$OUTPUTS ~", "--out", "~/x"]
    assert run(command) == 2
    assert f"{home.parent}/outputs/none: does not exist" in capsys.readouterr().err
    assert os.listdir(home.parent) == ["home"]
