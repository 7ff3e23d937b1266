"""Sources of an export, and runs and checkpoints that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan import sources
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.families.original import write_original
from tests.stock import run_stock, stock_pipe
from tests.tiny import WEIGHTS
from tests.weights.conftest import do_export, student_tensors, write_checkpoint, write_manifest
from weights import export


def test_no_moving_average_is_said(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "run", teacher, 5, ema=False)
    out = do_export(tmp_path / "run", tmp_path / "student", quiet=False)
    assert "kept no moving average" in capsys.readouterr().err
    manifest = read_manifest(out)
    assert manifest is not None and not manifest.ema
    assert torch.equal(
        load_file(out / WEIGHTS)["proj_out.bias"], student_tensors(teacher, 5)["proj_out.bias"]
    )


def test_pickles_and_code_of_the_teacher_stay_behind(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.save({}, teacher / "vae" / "old.bin")
    (teacher / "tokenizer" / "run_me.py").write_text("raise SystemExit")
    out = do_export(run, tmp_path / "student")
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.py"))


def test_a_teacher_on_the_hub_is_fetched(
    run: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    config = open_wan(teacher).transformer_config
    monkeypatch.setattr(sources, "known_transformer_config", lambda hub_id: config)
    path = run / "checkpoints" / "step_000020" / "job.yaml"
    hub_id = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    path.write_text(path.read_text().replace(str(teacher), hub_id))
    write_manifest(path.parent)
    asked: list[str] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        return str(teacher)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    out = do_export(run, tmp_path / "student")
    manifest = read_manifest(out)
    assert set(asked) == {hub_id} and manifest is not None and manifest.teacher == hub_id

    def offline(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=f"of {hub_id} cannot be fetched .*; check the network"):
        do_export(run, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_teacher_in_the_original_layout(
    run: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The VAE and text encoder are written under diffusers' names; the rest is the same."""
    model = open_wan(teacher)
    released = write_original(model, tmp_path / "released", suffix)
    # The release has one VAE and one text encoder, which are not this small.
    monkeypatch.setattr(wan_original, "VAE_CONFIG", model.vae_config)
    monkeypatch.setattr(wan_original, "TEXT_ENCODER_CONFIG", model.full_text_encoder_config())
    write_checkpoint(tmp_path / "again", released, 20)
    out = do_export(tmp_path / "again", tmp_path / "student")
    same = do_export(run, tmp_path / "same")
    assert (out / WEIGHTS).read_bytes() == (same / WEIGHTS).read_bytes()
    made = []
    for folder in (out, same):
        pipe = stock_pipe(folder)
        made.append(run_stock(pipe, ["a red circle"], [1], num_frames=5))
        made.append(pipe.vae.decode(made[-1][:1]).sample)
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
    lora = export(tmp_path / "again", "lora", tmp_path / "lora", rank=4, quiet=True)
    theirs = export(run, "lora", tmp_path / "theirs", rank=4, quiet=True)
    # The files are called after the teachers' folders, and say so in their metadata.
    files = [next(folder.glob("*pytorch_lora_weights.safetensors")) for folder in (lora, theirs)]
    ours, its = (load_file(file) for file in files)
    assert ours.keys() == its.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in its.items())


def change_student(run: Path, name: str, value: float) -> None:
    for folder in (run / "checkpoints").iterdir():
        path = folder / "student_ema.safetensors"
        tensors = load_file(path)
        tensors[name].flatten()[0] = value
        save_file(tensors, path, schedule_metadata(Schedule()))
        write_manifest(folder)


@pytest.mark.parametrize("format", ["diffusers", "lora"])
def test_a_diverged_run_is_refused(run: Path, tmp_path: Path, format: str) -> None:
    change_student(run, "proj_out.weight", float("nan"))
    with pytest.raises(UserError, match="proj_out.weight has values that are not finite"):
        export(run, format, tmp_path / "student", quiet=True)
    assert not (tmp_path / "student").exists()


def test_values_beyond_fp16_are_refused(run: Path, tmp_path: Path) -> None:
    change_student(run, "proj_out.weight", 1e5)
    with pytest.raises(UserError, match="proj_out.weight has values beyond fp16's range"):
        do_export(run, tmp_path / "student", dtype="fp16")
    do_export(run, tmp_path / "student", dtype="bf16")


def test_a_checkpoint_that_does_not_fit_its_job_is_refused(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step_000020"
    path = folder / "student_ema.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, schedule_metadata(Schedule(shift=5.0)))
    write_manifest(folder)
    with pytest.raises(UserError, match="carries the schedule .* but its job says"):
        do_export(run, tmp_path / "student")
    del tensors["proj_out.bias"]
    save_file(tensors, path, schedule_metadata(Schedule()))
    write_manifest(folder)
    with pytest.raises(UserError, match="1 missing: proj_out.bias"):
        do_export(run, tmp_path / "student")
    (folder / "trainer.json").write_text("{}")
    save_file(tensors | {"proj_out.bias": torch.zeros(16)}, path, schedule_metadata(Schedule()))
    write_manifest(folder)
    with pytest.raises(UserError, match="does not say the step"):
        do_export(run, tmp_path / "student")
