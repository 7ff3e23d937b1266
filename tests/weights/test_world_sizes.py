"""Checkpoints of any number of processes give the same export, byte for byte."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.running.saving import Saver
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks.adapters import trained_shapes
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.parallel import StrategySettings, connect
from tests.parallel.ranks import run_ranks
from tests.tiny import WAN_LAYERS, WEIGHTS
from tests.training import make_job, needs_deepspeed, train
from tests.weights.conftest import write_lora_checkpoint
from weights import export

ROLES = ("student", "fake_score")

pytestmark = [needs_deepspeed, pytest.mark.slow]

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


LORA = AdapterSettings(rank=4, alpha=8.0, targets=WAN_LAYERS)


def test_adapters_pass_through_any_number_of_processes(tiny_teacher: Path, tmp_path: Path) -> None:
    """Taken up and saved again by 1, 2 and 4 processes, a checkpoint exports to the same bytes."""
    first = write_lora_checkpoint(tmp_path / "first", tiny_teacher, 20, LORA)
    write_state(first, tiny_teacher)
    exported = {}
    for ranks in (1, 2, 4):
        run = run_ranks(ranks, save_again, first, tiny_teacher, tmp_path / f"of_{ranks}")
        assert len(list((run / "checkpoints").glob("*/state/*"))) == 2 * ranks
        for format, ema in (("lora", True), ("diffusers", False)):
            out = export(run, format, tmp_path / f"{format}_{ranks}", ema=ema, quiet=True)
            (file,) = out.glob("*pytorch_lora_weights.safetensors") if ema else [out / WEIGHTS]
            exported[format, ranks] = sha256_file(file)
    for format in ("lora", "diffusers"):
        assert len({exported[format, ranks] for ranks in (1, 2, 4)}) == 1
    direct = export(first, "lora", tmp_path / "direct", quiet=True)
    (file,) = direct.glob("*pytorch_lora_weights.safetensors")
    assert sha256_file(file) == exported["lora", 4]


def write_state(checkpoint: Path, teacher: Path) -> None:
    """Random moments of both roles and the fake score's adapters, as one process saves them."""
    shapes = trained_shapes(open_wan(teacher), LORA)
    generator = torch.Generator().manual_seed(0)
    (checkpoint / "state").mkdir()
    for role, kinds in (("student", ()), ("fake_score", ("master",))):
        tensors = {
            f"{name}/{kind}": torch.rand(shape.numel(), generator=generator)
            for name, shape in shapes.items()
            for kind in ("exp_avg", "exp_avg_sq", *kinds)
        }
        save_file(tensors, checkpoint / "state" / f"{role}.00000-of-00001.safetensors")


def save_again(checkpoint: Path, teacher: Path, folder: Path) -> Path:
    roles = [f"{role}={{train: lora, lora: {{rank: 4, alpha: 8}}}}" for role in ROLES]
    from lightx2v_sgmd.parallel.zero3.strategy import Zero3

    folder = folder / os.environ["RANK"]
    job = make_job(teacher, folder, *roles, "parallel.strategy=zero3")
    job = replace(job, output=replace(job.output, dir=folder.parent / "run"))
    ranks = connect("zero3", torch.device("cpu"))
    strategy = Zero3(open_wan(teacher), StrategySettings.of(job), ranks, fold_text=False)
    strategy.load(checkpoint, dict.fromkeys(ROLES, 20))
    ranks.once(lambda: (job.output.dir / "checkpoints").mkdir(parents=True))
    Saver(job, strategy, {}).save(20)
    strategy.close()
    return job.output.dir
