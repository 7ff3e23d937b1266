"""Two processes make one video; each test run starts them once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infer.multi_gpu import check_ranks
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.students import generate_files, load_student

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
weights, out = Path(sys.argv[1]), Path(sys.argv[2])
options = GenerateOptions(seed=3, device="cpu")
made = generate_files(weights, json.loads(sys.argv[3]), out / "videos", options)
rank = os.environ["RANK"]
torch.save(torch.cat(kept), out / f"latents{rank}.pt")
(out / f"outcome{rank}.json").write_text(json.dumps([[str(f) for f in made.files], made.failed]))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, shared_student: Path) -> tuple[Path, str]:
    """A folder of what two processes made, and what they said."""
    out = tmp_path_factory.mktemp("two")
    (out / "run.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(out / "run.py"), str(shared_student), str(out)]
    done = subprocess.run(
        [*command, json.dumps(PROMPTS)],
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
        together = torch.load(two[0] / f"latents{rank}.pt", weights_only=True)
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
        here, there = read_video(file)[0], read_video(two[0] / "videos" / file.name)[0]
        assert here.shape == there.shape == (9, 32, 32, 3)
        assert abs(here.astype(int) - there.astype(int)).mean() < 0.5


@pytest.mark.slow
def test_only_the_first_rank_writes_and_speaks(two: tuple[Path, str]) -> None:
    out, said = two
    files, failed = json.loads((out / "outcome0.json").read_text())
    assert [Path(file).exists() for file in files] == [True, True] and failed == []
    assert json.loads((out / "outcome1.json").read_text()) == [[], []]
    assert said.count("generating 10/10") == 1 and "to fit into the memory" not in said


def test_heads_that_cannot_be_dealt_out_are_refused() -> None:
    check_ranks(Ranks(0, 4), 12)
    with pytest.raises(
        UserError,
        match="5 processes do not divide the 12 attention heads .* start 1, 2, 3, 4, 6 or 12",
    ):
        check_ranks(Ranks(0, 5), 12)
