"""A video is there already only if everything that it is made from is what it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import infer.batch.provenance
from infer import Lora
from infer.batch.sidecars import is_there, problem, publish, sidecar
from lightx2v_sgmd.outputs import locked_file
from lightx2v_sgmd.system.errors import UserError
from tests.students import generate_files, make_student
from tests.tiny import WEIGHTS
from tests.weights.conftest import write_checkpoint
from weights import export


def flip(path: Path, position: int = -1) -> None:
    """Another file of the same size, and of the same times."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def again(student: Path, out: Path, **options: Any) -> tuple[int, int]:
    """How many videos were there, and how many were made."""
    made = generate_files(student, ["a red circle"], out, num_frames=5, quiet=True, **options)
    assert made.failed == []
    return made.skipped, len(made.files) - made.skipped


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "weights": lambda student, patch: flip(student / WEIGHTS) or {},
    "the VAE": lambda student, patch: (
        flip(student / "vae" / "diffusion_pytorch_model.safetensors") or {}
    ),
    "the text encoder": lambda student, patch: (
        flip(student / "text_encoder" / "model.safetensors") or {}
    ),
    "the VAE's precision": lambda student, patch: {"vae_dtype": torch.bfloat16},
    "the precision": lambda student, patch: {"dtype": torch.bfloat16},
    "tiles": lambda student, patch: {"tile_vae": True},
    "frames per second": lambda student, patch: {"fps": 4.0},
    "the seed": lambda student, patch: {"seed": 5},
    "the version": lambda student, patch: (
        patch.setattr(infer.batch.provenance, "__version__", "9") or {}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_makes_the_video_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_student: Path, what: str
) -> None:
    student, out = tmp_path / "student", tmp_path / "videos"
    shutil.copytree(shared_student, student)
    assert again(student, out) == (0, 1)
    before = json.loads((out / "0000_a_red_circle.json").read_text())
    assert again(student, out) == (1, 0)
    options = CHANGES[what](student, monkeypatch)
    assert again(student, out, **options) == (0, 1)
    after = json.loads((out / "0000_a_red_circle.json").read_text())
    assert after != before and problem(out / "0000_a_red_circle.mp4") is None
    assert again(student, out, **options) == (1, 0)


def test_weights_in_another_place_are_the_same_weights(
    shared_student: Path, tmp_path: Path
) -> None:
    assert again(shared_student, tmp_path / "videos") == (0, 1)
    shutil.copytree(shared_student, tmp_path / "copy")
    assert again(tmp_path / "copy", tmp_path / "videos") == (1, 0)


@pytest.mark.slow
def test_another_lora_of_the_same_size(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = make_student(tmp_path / "base")
    write_checkpoint(tmp_path / "run", base, 20)
    out = export(tmp_path / "run", "lora", tmp_path / "lora", dtype="fp32", rank=2, quiet=True)
    lora = Lora.parse(str(out))
    assert again(base, tmp_path / "videos", loras=(lora,)) == (0, 1)
    assert again(base, tmp_path / "videos", loras=(lora,)) == (1, 0)
    flip(lora.path, -2)
    assert again(base, tmp_path / "videos", loras=(lora,)) == (0, 1)
    assert again(base, tmp_path / "videos", loras=(Lora(lora.path, 0.5),)) == (0, 1)
    assert again(base, tmp_path / "videos") == (0, 1)


def test_weights_that_change_during_the_run(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say what the video was made from, so there is none."""
    from infer import Student

    student = tmp_path / "student"
    shutil.copytree(shared_student, student)
    real = Student.denoise

    def denoise(self: Student, *args: Any) -> Any:
        (student / WEIGHTS).write_bytes((student / WEIGHTS).read_bytes()[:-1] + b"x")
        return real(self, *args)

    monkeypatch.setattr(Student, "denoise", denoise)
    made = generate_files(student, ["a"], tmp_path / "videos", num_frames=5, quiet=True)
    assert "changed while it was in use" in made.failed[0][1]
    assert not (tmp_path / "videos").exists()


def test_a_single_video_is_ours_too(shared_student: Path, tmp_path: Path) -> None:
    def make(seed: int) -> int:
        options: dict[str, Any] = {"seed": seed, "num_frames": 5, "quiet": True}
        return generate_files(shared_student, "a", tmp_path / "fox.mp4", **options).skipped

    assert (make(0), make(0), make(1), make(1)) == (0, 1, 0, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fox.json", "fox.mp4"]


@pytest.mark.parametrize("moment", ["unlink", "write_text", "rename_new"])
def test_whatever_moment_a_process_dies_at_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the old video goes, before the new sidecar, before the new video."""
    video = tmp_path / "fox.mp4"
    (tmp_path / "first").write_bytes(b"first")
    publish(tmp_path / "first", video, {"seed": 1})
    (tmp_path / "second").write_bytes(b"second")

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "unlink":
            patch.setattr(Path, "unlink", die)
        else:
            patch.setattr(f"infer.batch.sidecars.{moment}", die)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "second", video, {"seed": 2})
    assert problem(video) is None and not is_there(video, {"seed": 2})
    publish(tmp_path / "second", video, {"seed": 2})
    assert is_there(video, {"seed": 2}) and video.read_bytes() == b"second"


def test_a_file_of_a_folder_that_another_command_makes_alone(
    shared_student: Path, tmp_path: Path
) -> None:
    """The folder's lock is free, the file's is not."""
    with locked_file(tmp_path / "0000_a.mp4", "generate", quiet=True):
        made = generate_files(shared_student, ["a", "b"], tmp_path, num_frames=5, quiet=True)
    ((name, reason),) = made.failed
    assert name == "0000_a" and "is in use by lightx2v-sgmd generate" in reason
    assert [p.name for p in made.files] == ["0001_b.mp4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0001_b.json", "0001_b.mp4"]


def test_a_video_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "fox.mp4"
    (tmp_path / "made").write_bytes(b"ours")
    import infer.batch.sidecars as module

    real = module.write_text  # type: ignore[attr-defined]

    def late(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        video.write_bytes(b"theirs")

    monkeypatch.setattr(module, "write_text", late)
    with pytest.raises(UserError, match=r"fox\.mp4: appeared while the video was made"):
        publish(tmp_path / "made", video, {})
    assert video.read_bytes() == b"theirs" and sidecar(video).exists()
