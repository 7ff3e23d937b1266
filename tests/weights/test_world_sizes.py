"""Checkpoints of any number of processes give the same export, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.manifest import sha256_file
from tests.training import make_job, needs_deepspeed, train
from weights import export

pytestmark = [needs_deepspeed, pytest.mark.slow]

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
# A rate so small that no weight moves: sums over other numbers of processes round in another way,
# and it is the saving that is compared here, not the arithmetic.
STILL = (
    "student.optimizer.lr=1e-37",
    "fake_score.optimizer.lr=1e-37",
    "train.iterations=1",
    "train.checkpoint_every=1",
)


def test_one_two_and_four_processes_export_the_same_bytes(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    exported = {}
    for ranks in (1, 2, 4):
        folder = tmp_path / f"of_{ranks}"
        batch = (f"train.micro_batch={4 // ranks}", "parallel.strategy=zero3")
        run = train(make_job(tiny_teacher, folder, *STILL, *batch), ranks)
        (state,) = (run / "checkpoints").glob(f"*/state/fake_score.00000-of-{ranks:05d}.*")
        assert state.is_file()
        exported[ranks] = export(run, "diffusers", folder / "student", quiet=True)
        export(run, "wan", folder / "wan", dtype="fp8", quiet=True)
    first = exported[1]
    for ranks, out in exported.items():
        assert sha256_file(out / WEIGHTS) == sha256_file(first / WEIGHTS), ranks
        fp8 = out.parent / "wan" / "diffusion_pytorch_model.safetensors"
        same = first.parent / "wan" / "diffusion_pytorch_model.safetensors"
        assert sha256_file(fp8) == sha256_file(same), ranks
