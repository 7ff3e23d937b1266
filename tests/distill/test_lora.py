"""Runs that train adapters: what they leave, resuming them, and on other numbers of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from distill import distill
from distill.running.saving import checkpoint_parts
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_of
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS
from tests.training import (
    assert_same_run,
    make_job,
    make_trainer,
    needs_deepspeed,
    read_trace,
    train,
    weights_of,
)

BOTH = ("student={train: lora, lora: {rank: 4, alpha: 8}}", "fake_score.train=lora")


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An uninterrupted run of four iterations."""
    settings = ["train.iterations=4", "train.checkpoint_every=2", "train.sample_every=4"]
    settings += ["student.optimizer.lr=0.03"]  # so that four steps change what it computes
    job = make_job(tiny_teacher, tmp_path_factory.mktemp("finished"), *BOTH, *settings)
    assert distill(job, quiet=True) == job.output.dir
    return job


def test_the_checkpoint_holds_adapters_and_nothing_frozen(finished: Job) -> None:
    folder = store.find_checkpoint(finished.output.dir)
    for name in ("student", "student_ema"):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            assert len(list(file.keys())) == 40
            assert all(
                key.startswith("transformer.blocks.")
                and key.endswith(("lora_A.weight", "lora_B.weight"))
                for key in file.keys()  # noqa: SIM118
            )
            assert schedule_of(file.metadata()) == finished.steps
            told = json.loads(file.metadata()["lora_adapter_metadata"])
            assert (told["transformer.r"], told["transformer.lora_alpha"]) == (4, 8)
            assert "to_out.0" in told["transformer.target_modules"]
    assert load_job(folder / "job.yaml") == finished
    tensors = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    model = open_wan(finished.teacher.path)
    assert sum(checkpoint_parts(finished, model)) == pytest.approx(tensors, rel=0.1)
    teacher = Path(finished.teacher.path) / WEIGHTS
    assert (folder / "student.safetensors").stat().st_size < teacher.stat().st_size


def test_stock_diffusers_loads_the_checkpoint_as_it_is(finished: Job) -> None:
    folder = store.find_checkpoint(finished.output.dir)
    pipe = WanPipeline.from_pretrained(finished.teacher.path)
    pipe.load_lora_weights(folder, weight_name="student.safetensors")
    strategy = make_trainer(finished).strategy
    x_t, sigma = torch.ones(1, 4, 2, 4, 4), torch.tensor([0.6])
    text = pad_text([torch.ones(3, 16)])
    with torch.no_grad():
        first = strategy.predict("student", x_t, sigma, Conditioning({"text": text}))
        strategy.load(folder, {"student": 4, "fake_score": 4})
        ours = strategy.predict("student", x_t, sigma, Conditioning({"text": text}))
        theirs = velocity(pipe.transformer, x_t, sigma, text)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert float((ours - first).abs().max()) > 1e-3


def test_resuming_gives_the_same_run(finished: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.output.dir, run)
    shutil.rmtree(run / "checkpoints" / "step_000004")
    distill(load_job(run / "job.yaml", [f"output.dir={run}"]), quiet=True)
    assert_same_run(run, finished.output.dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("student.lora.rank=2", r"student.lora.rank: the job says 2, but .* with 4"),
        (
            "student={train: full, lora: null}",
            r"student.train: the job says full, .* with lora",
        ),
    ],
)
def test_resuming_other_adapters_is_refused(
    finished: Job, tmp_path: Path, change: str, message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.output.dir, run)
    with pytest.raises(UserError, match=message):
        distill(load_job(run / "job.yaml", [f"output.dir={run}", change]), quiet=True)


def test_the_adapters_gradients_count_by_their_share(finished: Job) -> None:
    lines = (finished.output.dir / "metrics.jsonl").read_text().splitlines()
    counts = json.loads(lines[-1])["weight_backwards"]
    model = open_wan(finished.teacher.path)
    own = sum(p.numel() for p in model.load_transformer().parameters())
    folder = store.find_checkpoint(finished.output.dir)
    adapters = sum(t.numel() for t in load_file(folder / "student.safetensors").values())
    assert counts["student"] == pytest.approx(adapters / own)
    assert counts["teacher"] == 0


@needs_deepspeed
@pytest.mark.slow
def test_two_ranks_then_one_process_train_what_one_process_does(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """Under ZeRO-3 with sequence parallelism and checkpointing, then taken up by one process."""
    # With an eps above the gradients' rounding: a first factor's gradient may be no more than that
    # while the second one is near zero, and AdamW would make steps of its sign.
    optimizer = "optimizer={lr: 1.0e-3, eps: 1.0e-6}"
    shared = (*BOTH, f"student.{optimizer}", f"fake_score.{optimizer}")
    reference = make_job(tiny_teacher, tmp_path / "one", *shared, "train.iterations=4")
    distill(reference, quiet=True)
    folder, again = tmp_path / "two", "parallel.gradient_checkpointing=selective"
    first = (*shared, "train.iterations=2", "parallel.strategy=zero3", "parallel.sequence=2", again)
    train(make_job(tiny_teacher, folder, *first), 2)
    run = distill(make_job(tiny_teacher, folder, *shared, "train.iterations=4"), quiet=True)
    for ours, theirs in zip(read_trace(run), read_trace(reference.output.dir), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert ours["fisher"] == pytest.approx(theirs["fisher"], rel=1e-5)
        assert ours["rc"] == pytest.approx(theirs["rc"], rel=1e-5)
    expected = weights_of(store.find_checkpoint(reference.output.dir))
    found = weights_of(store.find_checkpoint(run))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert float((value - expected[name]).abs().max()) <= 1e-5, name
    moved = sorted(float(t.abs().max()) for n, t in expected.items() if "lora_B" in n)
    assert moved[0] > 0 and moved[len(moved) // 2] > 1e-4, "most moved further than the tolerance"
