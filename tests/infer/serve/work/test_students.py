"""LoRAs of the server's folder: their names, the check at the start, one loaded at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infer import Lora
from infer.memory_mode import MemoryMode, Workload, needed_gib, resting_gib
from infer.options import Options
from infer.serve.names import named_loras
from infer.serve.work.students import Students
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student, make_student

pytest.importorskip("peft")
LAYER = "diffusion_model.blocks.0.self_attn.v"
ENGINE = Options(device="cpu", dtype="fp32", text_cache=None)


def write_lora(path: Path, size: float, width: int = 48, schedule: Schedule | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.full((4, width), size),
        f"{LAYER}.lora_B.weight": torch.full((48, 4), size),
    }
    metadata = {"format": "pt"} if schedule is None else schedule_metadata(schedule)
    save_file(tensors, path, metadata=metadata)
    return path


def test_each_job_gets_the_student_with_its_lora(shared_student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    files = {name: write_lora(folder / f"{name}.safetensors", size) for name, size in SIZES.items()}
    students = Students({"tiny": shared_student}, ENGINE, named_loras(folder), 1)
    fit = students.check()["tiny"]
    assert len(fit.checked.schedule) == 4 and fit.loras == ("strong", "weak")
    assert students.batch_for("tiny", (32, 32, 9)) == 16 and students.batch_for("no", SIZE) == 1

    def made(lora: str | None) -> torch.Tensor:
        student = students.get("tiny", lora)
        assert students.get("tiny", lora) is student  # the next job of the same LoRA loads nothing
        return student.generate("a red circle", seed=3, decode=False).latents

    plain, strong, weak = made(None), made("strong"), made("weak")
    for latents, loras in ((plain, ()), (strong, ("strong",)), (weak, ("weak",))):
        applied = tuple(Lora(files[name]) for name in loras)
        alone = load_student(shared_student, loras=applied, dtype="fp32")
        expected = alone.generate("a red circle", seed=3, decode=False).latents
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert (strong - plain).abs().max() > 10 * (weak - plain).abs().max() > 0
    torch.testing.assert_close(made(None), plain, atol=0, rtol=0)
    with pytest.raises(UserError, match="'gone' is not in the server's folder"):
        students.get("tiny", "gone")


@pytest.mark.slow
def test_students_stay_loaded_until_the_memory_is_full(
    shared_student: Path, tmp_path: Path
) -> None:
    """Three students of one size: two rest beside the third one's work, or one does, or none."""
    weights = {"a": shared_student, "b": make_student(tmp_path / "b", seed=1), "c": shared_student}
    rest, peak = measured(shared_student, (32, 32, 9))
    larger = measured(shared_student, (64, 64, 33))[1]
    for room, loaded in ((0.0, "c"), (1.5, "bc"), (2.5, "abc")):
        engine = replace(ENGINE, max_memory_gib=peak + room * rest)
        students = Students(weights, engine, {}, 1)
        students.check()
        for name in weights:
            students.get(name, None, (32, 32, 9))
        assert [name for name, _ in students.loaded] == list(loaded)
    first = students.get("a", None)
    assert students.loaded[-1] == ("a", None)  # it was used last, so b goes first
    students.get("a", None, (64, 64, 33))
    assert larger > peak + 2.5 * rest  # a large video leaves no room for the others
    assert students.loaded == [("a", None)] and students.get("a", None) is first
    with pytest.raises(UserError, match="'d' is not served any more"):
        students.get("d", None)


def test_too_little_free_memory_is_not_a_limit_of_the_users(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.engine_plan.available_gib", lambda: 1e-5)
    monkeypatch.setattr("infer.engine_plan.swap_gib", lambda: 0.0)
    students = Students({"tiny": shared_student}, ENGINE, {}, 1)
    with pytest.raises(UserError, match=r"^out of memory: .* 1e-05 GiB are available on cpu"):
        students.check()


def measured(path: Path, size: tuple[int, int, int]) -> tuple[float, float]:
    """A student's memory by the engine's own formulas: at rest and at work, in GiB."""
    work = Workload(open_model(path), *size, 1, 4, cuda=False)
    return resting_gib(work, MemoryMode()), max(needed_gib(work, MemoryMode()).values())


def test_weights_of_one_server_differ_and_each_makes_its_own_videos(
    shared_student: Path, tmp_path: Path
) -> None:
    other = make_student(tmp_path / "other", seed=1)
    students = Students({"one": shared_student, "two": other}, ENGINE, {}, 1)
    students.check()
    made = {
        name: students.get(name, None).generate("a red circle", seed=3, decode=False).latents
        for name in ("one", "two")
    }
    alone = load_student(other, dtype="fp32").generate("a red circle", seed=3, decode=False)
    torch.testing.assert_close(made["two"], alone.latents, atol=1e-5, rtol=0)
    assert (made["one"] - made["two"]).abs().max() > 0.01


def test_a_lora_is_offered_with_the_weights_that_it_fits(
    shared_student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "loras"
    write_lora(folder / "sketch.safetensors", 0.1)
    wide = make_student(tmp_path / "wide", heads=8)
    weights = {"wide": wide, "tiny": shared_student}
    fits = Students(weights, ENGINE, named_loras(folder), 1).check()
    assert [fits[name].loras for name in weights] == [(), ("sketch",)]


SIZE = (32, 32, 9)
SIZES = {"strong": 0.5, "weak": 0.05}


@pytest.mark.parametrize(
    ("width", "schedule", "says"),
    [
        (64, None, "bad.safetensors"),
        (48, Schedule((1000.0, 500.0)), "export the weights again"),
    ],
)
def test_a_lora_that_does_not_fit_is_found_at_the_start(
    width: int, schedule: Schedule | None, says: str, shared_student: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "loras"
    write_lora(folder / "good.safetensors", 0.1)
    write_lora(folder / "bad.safetensors", 0.1, width, schedule)
    students = Students({"tiny": shared_student}, ENGINE, named_loras(folder), 1)
    with pytest.raises(UserError, match=says):
        students.check()


def test_a_lora_of_other_steps_than_the_base_is_served_with_is_refused(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "loras"
    write_lora(folder / "two_steps.safetensors", 0.1, schedule=Schedule((1000.0, 500.0)))
    engine = replace(ENGINE, assume_schedule="sgmd")
    students = Students({"tiny": tiny_teacher}, engine, named_loras(folder), 1)
    with pytest.raises(UserError, match="two_steps was distilled for other steps"):
        students.check()
