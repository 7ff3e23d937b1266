"""A source is opened from a run, a checkpoint or an export, and says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.system.errors import UserError
from tests.weights.conftest import write_checkpoint, write_manifest
from weights import export
from weights.opening import open_source


def test_a_run_gives_its_newest_checkpoint_and_its_average(run: Path) -> None:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    source = open_source(run, ema=True)
    assert source.path == newest and source.about.ema
    assert source.about.step == json.loads((newest / "trainer.json").read_text())["step"]
    plain = open_source(newest, ema=False)
    assert plain.path == newest and not plain.about.ema
    name = next(iter(source.tensors.shapes))
    assert not (source.tensors.read(name) == plain.tensors.read(name)).all()


def test_a_student_of_the_bundled_teacher_started_from_its_teacher(tmp_path: Path) -> None:
    """The job says ``sprites``, and the opened model has a folder for its path."""
    write_checkpoint(tmp_path / "run", Path("sprites"), 20, ema=False)
    about = open_source(tmp_path / "run", ema=False).about
    assert about.teacher == "sprites" and about.student_base is None


def test_the_method_is_the_jobs(run: Path) -> None:
    source = open_source(run, ema=False)
    assert source.job_file is not None
    job = parse_value(source.job_file.read_text(), "the job")
    options = {"name": source.about.method["name"], **source.about.method["options"]}
    assert {key: options[key] for key in job["method"]} == job["method"]
    assert source.about.teacher == job["teacher"]["path"]


def test_both_guidance_scales_are_the_jobs(teacher: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "run", teacher, 20, ema=False)
    text = (folder / "job.yaml").read_text()
    assert open_source(folder, ema=False).about.guidance_scale_2 is None
    two = text.replace("guidance_scale: 3.0", "guidance_scale: 3.0, guidance_scale_2: 2.5")
    (folder / "job.yaml").write_text(two)
    write_manifest(folder)
    about = open_source(folder, ema=False).about
    assert (about.guidance_scale, about.guidance_scale_2) == (3, 2.5)


def test_an_export_is_a_source_and_keeps_what_it_says(run: Path, tmp_path: Path) -> None:
    out = export(run, "diffusers", tmp_path / "out", dtype="fp32", quiet=True)
    again, first = open_source(out, ema=True), open_source(run, ema=True)
    assert again.about.step == first.about.step and again.about.schedule == first.about.schedule
    assert not again.about.sha256 and again.path == out


def test_metrics_that_cannot_be_read_are_named(run: Path) -> None:
    assert open_source(run, ema=False).metrics is None
    (run / "metrics.json").write_text('{"frechet": 2.5}')
    assert open_source(run, ema=False).metrics == {"frechet": 2.5}
    (run / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="metrics.json: is not readable JSON; evaluate again"):
        open_source(run, ema=False)


def test_the_newest_whole_checkpoint_is_taken(run: Path, teacher: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step_000030.tmp").mkdir()
    broken = write_checkpoint(run, teacher, 30) / "student.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    damage: list[str] = []
    assert open_source(run, ema=True, on_damage=damage.append).step == 20
    assert len(damage) == 1 and "step_000030/student.safetensors: its sha256" in damage[0]
    assert open_source(run / "checkpoints" / "step_000010", ema=True).step == 10
    with pytest.raises(UserError, match="step_000030/student.safetensors: its sha256 is not"):
        open_source(broken.parent, ema=True)
    for step in (10, 20):
        (run / "checkpoints" / f"step_{step:06d}" / "student_ema.safetensors").unlink()
    with pytest.raises(UserError, match="whole"):
        open_source(run, ema=True)
