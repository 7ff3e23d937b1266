from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infer.checks import check_student
from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError, short_line
from tests.students import load_student, manifest_of, write_metadata
from tests.tiny import WEIGHTS

OTHER = Schedule(shift=4.0)


def refused(folder: Path, match: str, assume_schedule: str | None = None) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_student(folder, assume_schedule=assume_schedule)
    assert "\n" not in str(caught.value)


def test_a_whole_student_passes(student: Path) -> None:
    checked = check_student(student)
    assert checked.schedule == Schedule()
    assert checked.manifest is not None and checked.manifest.step == 7


@pytest.mark.parametrize("place", ["json", "metadata", "both"])
def test_another_schedule_is_refused(student: Path, place: str) -> None:
    if place != "json":
        write_metadata(student, schedule_metadata(OTHER))
    if place != "metadata":
        replace(manifest_of(OTHER)).write(student)
    says = r"distilled for timesteps 1000/923/800/571 \(shift 4, euler\); this engine runs shift 8 "
    refused(student, says + "or 5 of evenly spaced steps, as timesteps 1000/960/889/727")
    refused(student, says, assume_schedule="sgmd")  # the flag does not overrule the weights


def test_a_schedule_that_contradicts_itself_is_refused(student: Path) -> None:
    path = student / "lightx2v_sgmd.json"
    saved = json.loads(path.read_text())
    saved["schedule"]["timesteps"] = [1000, 937.5, 833.333, 625]
    path.write_text(json.dumps(saved))
    refused(student, "lightx2v_sgmd.json: schedule.timesteps: .* are not shift 8 of")


def test_no_schedule_needs_the_flag(student: Path) -> None:
    (student / "lightx2v_sgmd.json").unlink()
    write_metadata(student, {"format": "pt"})
    refused(student, "carry no schedule .* add --assume-schedule sgmd")
    loaded = load_student(student, assume_schedule="sgmd")
    assert loaded.schedule == Schedule()
    with pytest.raises(UserError, match="height: the weights do not say"):
        loaded.generate("a")
    made = loaded.generate("a", height=32, width=32, num_frames=5, decode=False)
    assert made.latents.shape == (4, 2, 8, 8)
    refused(student, "assume_schedule: 'dmd' is unknown", assume_schedule="dmd")


@pytest.mark.parametrize("place", ["json", "metadata"])
def test_one_place_for_the_schedule_is_enough(student: Path, place: str) -> None:
    if place == "json":
        write_metadata(student, {"format": "pt"})
    else:
        (student / "lightx2v_sgmd.json").unlink()
    assert load_student(student).schedule == Schedule()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.6, 0.9999])
def test_truncated_files_are_refused(student: Path, part: str, keep: float) -> None:
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    path = student / part / f"{name}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    refused(student, f"{path}: .*; the file is damaged")


def test_a_pickle_is_refused_under_any_name(student: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "student.pt")
    refused(tmp_path / "student.pt", "a transformer alone; set --base")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    shutil.copy(tmp_path / "student.pt", lonely / "distill_model.pt")
    refused(lonely, "is not a model; if distill_model.pt holds a transformer, give that file")
    shutil.copy(tmp_path / "student.pt", tmp_path / "x.ckpt")
    refused(tmp_path / "x.ckpt", "x.ckpt: is a pickle")
    shutil.copy(tmp_path / "student.pt", student / WEIGHTS)
    refused(student, "safetensors: is a pickle")
    torch.save({}, student / WEIGHTS, _use_new_zipfile_serialization=False)
    refused(student, "safetensors: is a pickle")
    (student / WEIGHTS).unlink()
    shutil.copy(tmp_path / "student.pt", (student / WEIGHTS).with_suffix(".bin"))
    refused(student, r"diffusion_pytorch_model\.bin: is a pickle")


def test_keys_must_fit(student: Path) -> None:
    tensors = load_file(student / WEIGHTS)
    tensors["extra.weight"] = tensors.pop("proj_out.bias")
    tensors["patch_embedding.bias"] = torch.zeros(7)
    save_file(tensors, student / WEIGHTS, metadata=schedule_metadata(Schedule()))
    refused(
        student,
        r"1 missing: proj_out.bias \[16\], 1 unexpected: extra.weight \[16\], "
        r"1 of the wrong shape: patch_embedding.bias \[7\] for \[48\]",
    )


def test_types_that_the_engine_cannot_run_are_refused(student: Path) -> None:
    tensors = load_file(student / WEIGHTS)
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.int8)
    save_file(tensors, student / WEIGHTS, metadata=schedule_metadata(Schedule()))
    refused(student, "proj_out.weight is stored as I8")


def test_wrong_paths_say_what_is_wanted(student: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "does not exist")
    refused(student / "model_index.json", "is not a file of weights; give a folder")
    refused(student / "vae", "^weights: .*describes a AutoencoderKLWan, not a Wan")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    refused(run, "is a training run, not a student; first `lightx2v-sgmd export")
    shutil.rmtree(student / "text_encoder")
    refused(student, r"text_encoder/model\.safetensors: is missing")


def test_the_original_layout_and_single_files_run(student: Path, tmp_path: Path) -> None:
    expected = load_student(student).generate("a red circle", 3, decode=False).latents
    size: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
    alone = load_student(student / WEIGHTS, base=student)
    got = alone.generate("a red circle", 3, decode=False, **size).latents
    assert torch.equal(got, expected)
    with pytest.raises(UserError, match="^weights: .* a transformer alone; set --base"):
        shutil.copy(student / WEIGHTS, tmp_path / "x.safetensors")
        load_student(tmp_path / "x.safetensors")


def test_the_bundled_teacher_by_its_name() -> None:
    """Undistilled, and only when that is asked for."""
    with pytest.raises(UserError, match="^sprites: .* carry no sch.* teacher undistil") as caught:
        load_student("sprites")
    assert short_line(str(caught.value)) == str(caught.value)  # nothing of the remedy is cut
    teacher = load_student("sprites", assume_schedule="sgmd")
    made = teacher.generate("a red circle", seed=3, decode=False)
    assert teacher.fps == world.FPS
    size = (world.SIZE, world.SIZE, world.NUM_FRAMES)
    sampler = VideoSampler(open_wan("sprites"), Schedule(), size, guidance_scale=1.0)
    expected = sampler.latents(["a red circle"], noise_for(sampler.model, 3, made.latents.shape))
    torch.testing.assert_close(made.latents, expected[0], atol=1e-4, rtol=0)


def test_every_step_count_of_the_family_runs(student: Path) -> None:
    """One step, two and eight, and four of the other shift, all evenly spaced before it."""
    for schedule, steps in (
        (Schedule((1000.0,)), [1000]),
        (Schedule((1000.0, 500.0)), [1000, 888.889]),
        (Schedule(tuple(125.0 * k for k in range(8, 0, -1))), [1000, 982.456]),
        (Schedule(shift=5.0), [1000, 937.5, 833.333, 625]),  # LightX2V's
    ):
        replace(manifest_of(schedule)).write(student)
        write_metadata(student, schedule_metadata(schedule))
        loaded = load_student(student)
        assert loaded.schedule.timesteps[: len(steps)].tolist() == pytest.approx(steps, abs=1e-3)
        assert loaded.generate("a", decode=False).latents.isfinite().all()
    uneven = Schedule((1000.0, 700.0))
    replace(manifest_of(uneven)).write(student)
    refused(student, r"distilled for timesteps 1000/949 \(shift 8, euler\); this engine")


def test_two_schedules_in_one_folder_are_refused(student: Path) -> None:
    write_metadata(student, schedule_metadata(Schedule((1000.0, 500.0))))
    refused(student, "safetensors: says timesteps 1000/889 .* but .*json says timesteps 1000/960")


def test_the_number_of_steps_may_be_assumed(student: Path) -> None:
    (student / "lightx2v_sgmd.json").unlink()
    write_metadata(student, {"format": "pt"})
    assert len(load_student(student, assume_schedule="sgmd:2").schedule) == 2
    for wrong in ("sgmd:0", "sgmd:two", "dmd:4"):
        refused(student, "assume_schedule: .* is unknown", assume_schedule=wrong)


def test_students_of_lightx2vs_trainer_run_in_its_steps(student: Path) -> None:
    """Shift 5 of 1000, 750, 500, 250: compared with Euler's steps written out."""
    (student / "lightx2v_sgmd.json").unlink()
    write_metadata(student, {"format": "pt"})
    loaded = load_student(student, assume_schedule="lightx2v")
    made = loaded.generate("a", 3, height=32, width=32, num_frames=5, decode=False).latents
    model = loaded.model
    network = model.load_transformer()
    text = pad_text([model.load_text_encoder(torch.float32).encode(["a"])[0].text])
    x_t = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = [1.0, 0.9375, 5 / 6, 0.625, 0.0]
    with torch.no_grad():
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            v = velocity(network, x_t, torch.tensor([sigma]), text)
            x_t = x_t + (following - sigma) * v
    torch.testing.assert_close(made[None], x_t, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "sigmas", "differs"),
    [
        ("self-forcing", [1.0, 0.9375, 5 / 6, 0.625], "blocks of 3 latent frames"),
        ("fastwan", [1.0, 0.757, 0.522], r"sparse attention \(VSA\)"),
        ("rcm", [80 / 81, 0.933783, 0.852894, 0.608977], "multiplies the first noise by 80/81"),
        ("rcm:2", [80 / 81, 0.933783], "multiplies the first noise"),
    ],
)
def test_students_of_other_trainers_run_in_their_steps(
    student: Path,
    name: str,
    sigmas: list[float],
    differs: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each data prediction with new noise, written out; and what is not as there is said."""
    (student / "lightx2v_sgmd.json").unlink()
    write_metadata(student, {"format": "pt"})
    loaded = load_student(student, assume_schedule=name, quiet=False)
    assert re.search(differs, capsys.readouterr().err)
    assert loaded.schedule.times[:-1].tolist() == pytest.approx(sigmas, abs=1e-5)
    made = loaded.generate("a", 3, height=32, width=32, num_frames=5, decode=False).latents
    network = loaded.model.load_transformer()
    text = pad_text([loaded.model.load_text_encoder(torch.float32).encode(["a"])[0].text])
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(1, 4, 2, 8, 8, generator=generator)
    with torch.no_grad():
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            x0 = x_t - sigma * velocity(network, x_t, torch.tensor([sigma]), text)
            noise = torch.randn(1, 4, 2, 8, 8, generator=generator) if following else 0.0
            x_t = (1 - following) * x0 + following * noise
    torch.testing.assert_close(made[None], x_t, atol=1e-3, rtol=0)


def test_steps_that_other_trainers_do_not_have_are_refused(student: Path) -> None:
    (student / "lightx2v_sgmd.json").unlink()
    write_metadata(student, {"format": "pt"})
    for wrong, says in (
        ("fastwan:2", "students of fastwan have 3 steps; use fastwan$"),
        ("rcm:5", "students of rcm have 4 steps; use rcm, or rcm:1 to rcm:4$"),
    ):
        refused(student, says, assume_schedule=wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 8}, "takes 8 channels and gives 4, as no model does that makes videos"),
        ({"image_dim": 24}, "has one of image_dim and added_kv_proj_dim without the other"),
        ({"image_dim": 24, "added_kv_proj_dim": 48}, "attends to an image but takes 4 channels"),
        (
            {"image_dim": 24, "added_kv_proj_dim": 40, "in_channels": 12},
            "added_kv_proj_dim is 40, not the network's width 48",
        ),
        (
            {"image_dim": 2, "added_kv_proj_dim": 48, "in_channels": 12, "pos_embed_seq_len": 514},
            "a first and a last frame, which is not supported",
        ),
    ],
)
def test_a_network_that_takes_images_otherwise_is_refused(
    student: Path, change: dict[str, int], says: str
) -> None:
    path = student / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **change}))
    refused(student, f"^weights: .*{says}")


def test_a_config_of_another_network_is_refused(student: Path) -> None:
    path = student / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_class_name": "FluxTransformer2DModel"}))
    refused(student, "^weights: .* describes a FluxTransformer2DModel")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 2}, "format_version: 2 is not the 1"),
        ({"video": {"height": 32}}, "is missing"),
        ({"video": {"height": 0, "width": 32, "num_frames": 9, "fps": 8}}, "height 0 is not"),
        ({"sha256": 3}, "cannot be read"),
    ],
)
def test_a_bad_manifest_is_refused(student: Path, change: dict[str, object], match: str) -> None:
    path = student / "lightx2v_sgmd.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(student, f"lightx2v_sgmd.json: .*{match}")
    path.write_text("{")
    refused(student, "not readable JSON")
