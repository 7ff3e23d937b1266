"""Two processes make one video; each test run starts them once, for students of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer.multi_gpu import check_ranks
from lightx2v_sgmd.files.video import read_video, write_video
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.families.wan.test_images import picture
from tests.students import as_student, generate_files, load_student, make_student
from tests.tiny import make_tiny_cogvideox, make_tiny_experts

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a red circle moving left", "a blue square"]
SCRIPT = """
import json, os, sys, torch
from pathlib import Path
import infer.vae.decoding, infer.engine
from infer.vae.decoding import Tiling
infer.engine.Tiling = lambda: Tiling(16, 12)  # 9 tiles of a frame of 32 x 32
from infer import GenerateOptions, generate_files
from infer.engine import Student
real = Student.denoise
kept = []
def denoise(self, *args):
    kept.append(real(self, *args))
    return kept[-1]
Student.denoise = denoise
out, rank = Path(sys.argv[1]), os.environ["RANK"]
torch.distributed.init_process_group("gloo")  # once: all that follows shares it
for name, weights, prompts, image in json.loads(sys.argv[2]):
    image = image and Path(image)
    options = GenerateOptions(seed=3, device="cpu", image=image)
    made = generate_files(Path(weights), prompts, out / name, options)
    torch.save(torch.cat(kept), out / f"{name}{rank}.pt")
    kept.clear()
    outcome = [[str(f) for f in made.files], made.failed]
    (out / f"{name}{rank}.json").write_text(json.dumps(outcome))
"""
PAIR = Schedule(shift=5.0)
COGVIDEOX = Schedule((1000.0, 750.0, 500.0, 250.0), 1.0, "ddim")


@dataclass(frozen=True)
class OtherStudent:
    """A student of another model than Wan2.1 from text.

    Attributes:
        make: Writes it to a folder.
        image: True if its videos start from an image.
        alone: True if the first process decodes alone, so that no tiles blend.
    """

    make: Callable[[Path], Path]
    image: bool = False
    alone: bool = False


OTHERS = {
    "cogvideox": OtherStudent(
        lambda folder: as_student(make_tiny_cogvideox(folder), COGVIDEOX), alone=True
    ),
    "wan2.2-ti2v": OtherStudent(partial(make_student, kind="text and image"), image=True),
    "wan2.1-i2v": OtherStudent(partial(make_student, kind="image"), image=True),
    "wan2.2-a14b": OtherStudent(lambda folder: as_student(make_tiny_experts(folder), PAIR)),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, shared_student: Path) -> tuple[Path, str]:
    """A folder of what two processes made, one student after the other, and what they said."""
    out = tmp_path_factory.mktemp("two")
    (out / "run.py").write_text(SCRIPT)
    picture().save(out / "a.png")
    students: list[tuple[str, str, Any, str | None]]
    students = [("wan", str(shared_student), PROMPTS, None)]
    for name, other in OTHERS.items():
        folder = other.make(out / "students" / name)
        image = str(out / "a.png") if other.image else None
        students.append((name, str(folder), PROMPTS[:1], image))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(out / "run.py"), str(out)]
    done = subprocess.run(
        [*command, json.dumps(students)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stderr


@pytest.mark.slow
def test_two_ranks_give_the_latents_of_one(two: tuple[Path, str], shared_student: Path) -> None:
    alone = load_student(shared_student).generate(PROMPTS, 3, batch_size=2, decode=False).latents
    for rank in (0, 1):
        together = torch.load(two[0] / f"wan{rank}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_their_frames_are_those_of_one_rank_with_the_same_tiles(
    two: tuple[Path, str],
    shared_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from infer.vae.decoding import Tiling

    monkeypatch.setattr("infer.engine.Tiling", lambda: Tiling(16, 12))
    alone = generate_files(
        shared_student, PROMPTS, tmp_path, seed=3, tile_vae=True, device="cpu", quiet=True
    )
    for file in alone.files:
        here, there = read_video(file)[0], read_video(two[0] / "wan" / file.name)[0]
        assert here.shape == there.shape == (9, 32, 32, 3)
        assert abs(here.astype(int) - there.astype(int)).mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_two_ranks_make_the_videos_of_other_models(two: tuple[Path, str], name: str) -> None:
    other, size = OTHERS[name], (32, 32, 9)
    student = load_student(two[0] / "students" / name)
    image = two[0] / "a.png" if other.image else None
    rows = student.with_images(student.encode(PROMPTS[:1]), [(image, size)], cached=False)
    alone = student.denoise(rows, [3], size)
    for rank in (0, 1):
        together = torch.load(two[0] / f"{name}{rank}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    (file,) = json.loads((two[0] / f"{name}0.json").read_text())[0]
    frames = read_video(Path(file))[0]
    assert frames.shape == (9, 32, 32, 3)
    if other.alone:
        video = write_video(np.concatenate(list(student.decode(alone[0]))), two[0] / "x.mp4", 8)
        assert abs(frames.astype(int) - read_video(video)[0].astype(int)).mean() < 0.5


@pytest.mark.slow
def test_only_the_first_rank_writes_and_speaks(two: tuple[Path, str]) -> None:
    out, said = two
    files, failed = json.loads((out / "wan0.json").read_text())
    assert [Path(file).exists() for file in files] == [True, True] and failed == []
    assert json.loads((out / "wan1.json").read_text()) == [[], []]
    assert said.count("generating 10/10") == 1 and "to fit into the memory" not in said


def test_heads_that_cannot_be_dealt_out_are_refused() -> None:
    check_ranks(Ranks(0, 4), 12)
    with pytest.raises(
        UserError,
        match="5 processes do not divide the 12 attention heads .* start 1, 2, 3, 4, 6 or 12",
    ):
        check_ranks(Ranks(0, 5), 12)
