from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infer import load_student
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.manifest import changed_files, read_manifest
from lightx2v_sgmd.models import original
from lightx2v_sgmd.models.wan import open_wan, pad_text, velocity
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import schedule_metadata
from tests.models.original import write_original
from tests.weights.conftest import student_tensors, write_checkpoint, write_manifest
from weights import DTYPES, ExportError, export, exporting, shared, stream
from weights.item import Item
from weights.load import open_source
from weights.verify import differences

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"


def do_export(source: Path, out: Path, **options: Any) -> Path:
    return export(source, "diffusers", out, **{"dtype": "fp32", "quiet": True, **options})


def test_engine_diffusers_and_the_trained_weights_agree(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    out = do_export(run, tmp_path / "student")
    prompts, seeds = ["a red circle", "a blue square moving left"], [3, 4]
    made = load_student(out).generate(prompts, seeds, decode=False)

    pipe = WanPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        prompts,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).frames
    torch.testing.assert_close(made.latents, stock, atol=1e-4, rtol=0)

    model = open_wan(teacher)
    network = model.load_transformer()
    network.load_state_dict(student_tensors(teacher, 1020))  # the newest one's moving average
    text = pad_text(model.load_text_encoder().encode(prompts))
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
    # Stock diffusers loads it in that precision and runs it as the engine does.
    pipe = WanPipeline.from_pretrained(out, torch_dtype=DTYPES[dtype])
    assert pipe.transformer.blocks[0].norm2.weight.dtype == torch.float32
    assert pipe.transformer.blocks[0].ffn.net[2].weight.dtype == DTYPES[dtype]


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
            "options": {"lambda": 0.1, "weighting": "normalized", "max_weight": 1.0},
        },
        "teacher": str(teacher),
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
    assert (out / "job.yaml").read_bytes() == (
        run / "checkpoints" / "step_000020" / "job.yaml"
    ).read_bytes()


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


def test_an_output_that_is_taken_is_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty; choose another folder, or add --overwrite"):
        do_export(run, out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    do_export(run, out, overwrite=True)
    assert not (out / "mine.txt").exists() and (out / WEIGHTS).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "student", "teacher"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        do_export(run, tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (do_export(run, empty) / WEIGHTS).exists()


@pytest.mark.parametrize("where", ["save", "copy", "rename"])
@pytest.mark.parametrize("taken", [False, True])
def test_nothing_half_written_on_a_full_disk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, taken: bool
) -> None:
    out = tmp_path / "student"
    if taken:
        out.mkdir()
        (out / "old.txt").write_text("old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = os.replace

    def not_the_last(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".new"):
            full()
        real(source, target)

    if where == "save":
        monkeypatch.setattr(stream.TensorFile, "write", full)
    elif where == "copy":
        monkeypatch.setattr(shared.shutil, "copytree", full)
    else:
        monkeypatch.setattr(os, "replace", not_the_last)
    with pytest.raises(UserError, match="student: cannot be written: .*No space left") as caught:
        do_export(run, out, overwrite=True)
    assert "\n" not in str(caught.value)
    left = ["run", "student", "teacher"] if taken else ["run", "teacher"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    if taken:
        assert (out / "old.txt").read_text() == "old"


def test_too_little_space_is_found_beforehand(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 0.00 GiB and the disk has 0.00 GiB left"):
        do_export(run, tmp_path / "new" / "student")
    assert not (tmp_path / "new").exists()


def flip_a_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_export_that_went_wrong_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting._sync

    def sync(folder: Path) -> None:
        flip_a_byte(folder / WEIGHTS)
        real(folder)

    monkeypatch.setattr(exporting, "_sync", sync)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old.txt").write_text("old")
    with pytest.raises(ExportError, match=r"has changed .* has other values.*student.failed$"):
        do_export(run, tmp_path / "student", overwrite=True)
    # What was written stays, to be looked at, under a name that nobody takes for an export.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run",
        "student",
        "student.failed",
        "teacher",
    ]
    assert (tmp_path / "student" / "old.txt").read_text() == "old"
    assert (tmp_path / "student.failed" / WEIGHTS).is_file()
    with pytest.raises(ExportError, match="student.failed2$"):
        do_export(run, tmp_path / "student", overwrite=True)


def test_every_kind_of_difference_is_found(run: Path, tmp_path: Path) -> None:
    item = Item(open_source(run, ema=True), "diffusers", "fp32", tmp_path / "student")

    def problems_after(name: str, change: Any) -> list[str]:
        out = do_export(run, tmp_path / "student", overwrite=True)
        assert differences(item, out, None) == []
        change(out / name)
        return differences(item, out, None)

    def edit(**changes: Any) -> Any:
        def change(path: Path) -> None:
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return change

    def retype(path: Path) -> None:
        tensors = load_file(path)
        tensors["proj_out.bias"] = tensors["proj_out.bias"].double()
        save_file(tensors, path, schedule_metadata(Schedule()))

    def drop(path: Path) -> None:
        tensors = load_file(path)
        del tensors["proj_out.bias"]
        save_file(tensors, path, schedule_metadata(Schedule()))

    def other_schedule(path: Path) -> None:
        save_file(load_file(path), path, schedule_metadata(Schedule(shift=5.0)))

    vae = "vae/diffusion_pytorch_model.safetensors"
    assert problems_after(vae, flip_a_byte) == [f"{vae} has changed since it was written (sha256)"]
    assert "is missing" in problems_after("tokenizer/tokenizer.json", Path.unlink)[0]
    assert problems_after("lightx2v_sgmd.json", Path.unlink) == ["lightx2v_sgmd.json is missing"]
    scheduler = "scheduler/scheduler_config.json"
    assert any("scheduler takes" in p for p in problems_after(scheduler, edit(shift=3.0)))
    weights = str(WEIGHTS)
    assert any("proj_out.bias is F64" in p for p in problems_after(weights, retype))
    assert "proj_out.bias is missing" in problems_after(weights, drop)
    assert "the weights carry another schedule than the source" in problems_after(
        weights, other_schedule
    )
    config = "transformer/config.json"
    assert any("a forward pass is off" in p for p in problems_after(config, edit(eps=0.5)))
    heads = edit(num_attention_heads=5)
    assert any("the network does not run" in p for p in problems_after(config, heads))


def change_student(run: Path, name: str, value: float) -> None:
    for folder in (run / "checkpoints").iterdir():
        path = folder / "student_ema.safetensors"
        tensors = load_file(path)
        tensors[name].flatten()[0] = value
        save_file(tensors, path, schedule_metadata(Schedule()))
        write_manifest(folder)


def test_a_diverged_run_is_refused(run: Path, tmp_path: Path) -> None:
    change_student(run, "proj_out.weight", float("nan"))
    with pytest.raises(UserError, match="proj_out.weight has values that are not finite"):
        do_export(run, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_values_beyond_fp16_are_refused(run: Path, tmp_path: Path) -> None:
    change_student(run, "proj_out.weight", 1e5)
    with pytest.raises(UserError, match="proj_out.weight has values beyond fp16's range"):
        do_export(run, tmp_path / "student", dtype="fp16")
    do_export(run, tmp_path / "student", dtype="bf16")


def test_pickles_and_code_of_the_teacher_stay_behind(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.save({}, teacher / "vae" / "old.bin")
    (teacher / "tokenizer" / "run_me.py").write_text("raise SystemExit")
    out = do_export(run, tmp_path / "student")
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.py"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "gguf"}, "format: 'gguf' is unknown; use diffusers, wan, comfyui, lora"),
        (
            {"dtype": "fp8"},
            "dtype: 'fp8' .* diffusers has bf16, .*--format wan or comfyui takes fp8",
        ),
        ({"dtype": "int4"}, "dtype: 'int4' will not do, .*; use one of these"),
        ({"source": "nowhere"}, "nowhere: is no folder"),
        ({"source": "teacher"}, "has no checkpoints"),
    ],
)
def test_wrong_options(run: Path, tmp_path: Path, options: dict[str, str], match: str) -> None:
    values = {"source": "run", "format": "diffusers", "dtype": "fp32", **options}
    with pytest.raises(UserError, match=match):
        export(
            tmp_path / values["source"],
            values["format"],
            tmp_path / "student",
            dtype=values["dtype"],
            quiet=True,
        )
    assert not (tmp_path / "student").exists()


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


def test_a_teacher_on_the_hub_is_fetched(
    run: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from lightx2v_sgmd.models import sources

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
    monkeypatch.setattr(original, "VAE_CONFIG", model.vae_config)
    monkeypatch.setattr(original, "TEXT_ENCODER_CONFIG", model.full_text_encoder_config())
    write_checkpoint(tmp_path / "again", released, 20)
    out = do_export(tmp_path / "again", tmp_path / "student")
    same = do_export(run, tmp_path / "same")
    assert (out / WEIGHTS).read_bytes() == (same / WEIGHTS).read_bytes()
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    made = []
    for folder in (out, same):
        pipe = WanPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        draw = torch.Generator().manual_seed(1)
        size = {"height": 32, "width": 32, "num_frames": 5}
        made.append(pipe("a red circle", generator=draw, **size, **options).frames)
        made.append(pipe.vae.decode(made[-1][:1]).sample)
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
    lora = export(tmp_path / "again", "lora", tmp_path / "lora", rank=4, quiet=True)
    theirs = export(run, "lora", tmp_path / "theirs", rank=4, quiet=True)
    name = "pytorch_lora_weights.safetensors"
    assert (lora / name).read_bytes() == (theirs / name).read_bytes()
