"""What an export holds: the trained weights, as the engine and diffusers run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan import sources
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import changed_files, read_manifest
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.families.original import write_original
from tests.stock import run_stock, stock_pipe
from tests.students import load_student
from tests.tiny import WEIGHTS
from tests.weights.conftest import (
    do_export,
    student_tensors,
    write_checkpoint,
    write_manifest,
)
from weights import DTYPES, export
from weights.opening import open_source


def test_engine_diffusers_and_the_trained_weights_agree(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    out = do_export(run, tmp_path / "student")
    prompts, seeds = ["a red circle", "a blue square moving left"], [3, 4]
    made = load_student(out).generate(prompts, seeds, decode=False)
    stock = run_stock(stock_pipe(out), prompts, seeds)
    torch.testing.assert_close(made.latents, stock, atol=1e-4, rtol=0)

    model = open_wan(teacher)
    network = model.load_transformer()
    network.load_state_dict(student_tensors(teacher, 1020))  # the newest one's moving average
    text = pad_text(model.load_text_encoder(torch.float32).rows(prompts))
    noise = torch.stack(
        [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    with torch.no_grad():
        trained = rollout(lambda x, s: velocity(network, x, s, text), noise, Schedule())
    torch.testing.assert_close(made.latents, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_values_types_and_metadata(run: Path, teacher: Path, tmp_path: Path, dtype: str) -> None:
    out = do_export(run, tmp_path / "student", dtype=dtype, ema=False)
    expected = student_tensors(teacher, 20)
    stored = load_file(out / WEIGHTS)
    assert stored.keys() == expected.keys()
    kept = {name for name in stored if "norm2" in name or "time_embedder" in name}
    kept |= {name for name in stored if "scale_shift_table" in name}
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.float32 if name in kept else DTYPES[dtype])
        assert torch.equal(tensor, expected[name].to(tensor.dtype))
    with safe_open(out / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    schedule = {
        "timesteps": [1000, 960, 888.889, 727.273],
        "shift": 8.0,
        "base": [1000, 750, 500, 250],
        "solver": "euler",
    }
    assert json.loads(metadata["lightx2v_sgmd"]) == {"schedule": schedule}
    assert not any(key.startswith("modelspec.") for key in metadata)  # configurations say more
    # Stock diffusers loads it in that precision and runs it as the engine does.
    pipe = WanPipeline.from_pretrained(out, torch_dtype=DTYPES[dtype])
    assert pipe.transformer.blocks[0].norm2.weight.dtype == torch.float32
    assert pipe.transformer.blocks[0].ffn.net[2].weight.dtype == DTYPES[dtype]


def test_card_and_job_have_no_path_of_this_machine(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    job = run / "checkpoints" / "step_000020" / "job.yaml"
    assert str(tmp_path) in job.read_text() and str(teacher) in job.read_text()
    out = do_export(run, tmp_path / "student")
    for name in ("README.md", "job.yaml"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text and teacher.name in text
    again = do_export(out, tmp_path / "again")
    assert load_job(again / "job.yaml").teacher.path == teacher.name


def test_the_manifest_tells_where_the_weights_come_from(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    out = do_export(run, tmp_path / "student", dtype="bf16")
    saved = json.loads((out / "lightx2v_sgmd.json").read_text())
    sha256 = saved.pop("sha256")
    assert saved == {
        "format_version": 1,
        "format": "diffusers",
        "method": {
            "name": "sgmd",
            "options": {
                "lambda": 0.1,
                "weighting": "normalized",
                "max_weight": 1.0,
                "fake_score_rollout": "shared",
            },
        },
        "teacher": str(teacher),
        "teacher_dtype": "float32",
        "negative_prompt": open_wan(teacher).negative_prompt,
        "schedule": {
            "timesteps": [1000, 960, 888.889, 727.273],
            "shift": 8.0,
            "base": [1000, 750, 500, 250],
            "solver": "euler",
        },
        "guidance_scale": 3.0,
        "video": {"height": 32, "width": 32, "num_frames": 9, "fps": 16.0},
        "step": 20,
        "ema": True,
        "dtype": "bf16",
    }
    assert WEIGHTS.as_posix() in sha256 and "tokenizer/tokenizer.json" in sha256
    assert changed_files(out, sha256) == []
    manifest = read_manifest(out)
    assert manifest is not None and manifest.schedule == Schedule()
    card = (out / "README.md").read_text()
    assert "1000, 960, 888.889, 727.273 (shift 8" in card and "guidance_scale=1.0" in card
    exported = load_job(out / "job.yaml")
    trained = load_job(run / "checkpoints" / "step_000020" / "job.yaml")
    for section in ("student", "fake_score", "method", "schedule", "video", "train", "parallel"):
        assert getattr(exported, section) == getattr(trained, section)


def test_large_weights_are_sharded(run: Path, tmp_path: Path) -> None:
    whole = do_export(run, tmp_path / "whole")
    out = do_export(run, tmp_path / "student", max_shard_size="100KB")
    shards = sorted(p.name for p in (out / "transformer").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].startswith("diffusion_pytorch_model-00001-of-")
    assert not (out / WEIGHTS).exists()
    together: dict[str, torch.Tensor] = {}
    for shard in shards:
        assert (out / "transformer" / shard).stat().st_size < 120_000
        together |= load_file(out / "transformer" / shard)
    expected = load_file(whole / WEIGHTS)
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], expected[name]) for name in expected)
    made = load_student(out).generate("a red circle", decode=False)
    expected_latents = load_student(whole).generate("a red circle", decode=False).latents
    torch.testing.assert_close(made.latents, expected_latents, atol=1e-5, rtol=0)
    (out / "transformer" / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]}: is missing"):
        load_student(out)


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_teacher_in_the_original_layout(
    run: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Its VAE and text encoder are written under diffusers' names; the rest is the same."""
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
