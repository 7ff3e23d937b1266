"""Students and fake scores that start from a model of another size than the teacher's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from distill.planning.model_meter import ModelMeter
from distill.planning.plan import Machine, make_plan
from distill.planning.rank_memory import rank_memory
from distill.running.saving import checkpoint_parts
from lightx2v_sgmd.cli.main import run as cli
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources.parts import Source
from lightx2v_sgmd.families.teacher import check_same_encoders
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.methods import SGMD
from lightx2v_sgmd.parallel import Ranks
from tests.distill.planning.test_rank_memory import SMALL_WAN, measured_peak, small_job
from tests.distill.test_methods import assert_plain_gradients, trainer_for
from tests.students import load_student
from tests.tiny import make_tiny_cogvideox, make_tiny_wan
from tests.training import (
    assert_same_run,
    job_file,
    make_job,
    needs_deepspeed,
    read_trace,
    train,
    weights_of,
)
from weights import export

ADAPTERS = ("student={train: lora, lora: {rank: 4}}", "fake_score={train: lora, lora: {rank: 2}}")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half the tiny teacher's width and blocks; the same seed gives it the same VAE and encoder."""
    return make_tiny_wan(tmp_path_factory.mktemp("smaller") / "half", heads=2, layers=1)


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, smaller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = (*own(smaller), "train.iterations=3", "student.optimizer.lr=0.01")
    return train(make_job(tiny_teacher, tmp_path_factory.mktemp("finished"), *settings))


def own(smaller: Path) -> tuple[str, str]:
    return f"student.path={smaller}", f"fake_score.path={smaller}"


@pytest.mark.parametrize("roles", [("student",), ("fake_score",), ("student", "fake_score")])
@pytest.mark.parametrize("adapters", [(), ADAPTERS], ids=["full", "lora"])
def test_gradients_are_those_of_one_plain_graph(
    roles: tuple[str, ...],
    adapters: tuple[str, ...],
    tiny_teacher: Path,
    smaller: Path,
    tmp_path: Path,
) -> None:
    settings = (*adapters, *(f"{role}.path={smaller}" for role in roles))
    method = SGMD()
    trainer = trainer_for(method, tiny_teacher, tmp_path, *settings)
    networks = trainer.strategy.networks
    for role in ("student", "fake_score", "teacher"):
        blocks: torch.nn.ModuleList = networks[role].get_submodule("blocks")  # type: ignore[assignment]
        assert len(blocks) == (1 if role in roles else 2)
    if not adapters:
        assert_plain_gradients(trainer, method)
        return
    assert all(norm > 0 for norm in trainer.iterate(0).grad_norm.values())
    if len(roles) == 2:  # one frozen copy serves both
        names = ("blocks.0.ffn.net.2.base_layer.weight", "proj_out.weight")
        for name in names:
            ours, theirs = (networks[role].get_parameter(name) for role in roles)
            assert ours is theirs and not ours.requires_grad


@pytest.mark.slow
def test_the_student_is_exported_and_runs_in_its_stock_pipeline(
    finished: Path, smaller: Path, tmp_path: Path
) -> None:
    folder = export(finished, "diffusers", tmp_path / "student", dtype="fp32", quiet=True)
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.student_base == str(smaller) == manifest.base
    assert "| student started from | `half` |" in (folder / "README.md").read_text()
    assert str(smaller) not in (folder / "job.yaml").read_text()
    student = load_student(folder)
    latents = student.generate(["a red circle"], [3], decode=False).latents
    pipe = WanPipeline.from_pretrained(folder)
    assert len(pipe.transformer.blocks) == 1
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a red circle",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    )
    torch.testing.assert_close(latents, stock.frames, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_exports_of_the_network_alone_are_opened_with_the_students_base(
    finished: Path, tmp_path: Path
) -> None:
    whole = export(finished, "diffusers", tmp_path / "whole", dtype="fp32", quiet=True)
    alone = export(finished, "comfyui", tmp_path / "alone", dtype="fp32", quiet=True)
    latents = [
        load_student(folder).generate(["a blue square"], [1], decode=False).latents
        for folder in (whole, alone)
    ]
    torch.testing.assert_close(latents[0], latents[1], atol=1e-5, rtol=0)
    lora = export(finished, "lora", tmp_path / "lora", dtype="fp32", quiet=True, rank=1024)
    again = export(lora, "diffusers", tmp_path / "again", dtype="fp32", quiet=True)
    expected = open_model(whole).load_transformer().state_dict()
    for name, tensor in open_model(again).load_transformer().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
def test_resuming_is_exact_and_needs_the_same_weights(
    finished: Path,
    tiny_teacher: Path,
    smaller: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*own(smaller), "student.optimizer.lr=0.01", "train.checkpoint_every=1")
    train(make_job(tiny_teacher, tmp_path, *settings, "train.iterations=1"))
    other = make_tiny_wan(tmp_path / "other", heads=2, layers=1)
    network = WanTransformer3DModel.from_pretrained(other / "transformer")
    network.proj_out.bias.data += 1
    network.save_pretrained(other / "transformer")
    path = job_file(tiny_teacher, tmp_path)
    asked = [*settings, "train.iterations=3", f"student.path={other}"]
    words = ["distill", str(path), *(word for text in asked for word in ("--set", text))]
    assert cli(words) == 2
    assert "student.path: the job says" in capsys.readouterr().err
    again = train(make_job(tiny_teacher, tmp_path, *settings, "train.iterations=3"))
    assert_same_run(again, finished)


def test_the_space_of_a_checkpoint_is_that_of_the_smaller_networks(
    finished: Path, tiny_teacher: Path, smaller: Path, tmp_path: Path
) -> None:
    job = make_job(tiny_teacher, tmp_path, *own(smaller))
    written = sum(p.stat().st_size for p in find_checkpoint(finished).rglob("*.safetensors"))
    assert sum(checkpoint_parts(job, open_model(tiny_teacher))) == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "student.path: "),
        ("family", r"is CogVideoX.*and the teacher is Wan2\.1"),
        ("image", "from an image, and the teacher is Wan2"),
        ("text", "reads 512 text rows of width 24, and the teacher's text encoder makes 512"),
        ("encoder", "the VAE of .* has other weights than the teacher's"),
    ],
)
def test_a_model_that_does_not_go_with_the_teacher_is_refused(
    kind: str,
    said: str,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    if kind == "family":
        make_tiny_cogvideox(other)
    elif kind == "image":
        make_tiny_wan(other, kind="image")
    elif kind == "encoder":
        make_tiny_wan(other, seed=5)
    elif kind == "text":
        make_tiny_wan(other)
        network = WanTransformer3DModel(**{**SMALL_WAN, "text_dim": 24, "num_layers": 1})
        network.save_pretrained(other / "transformer")
    words = ["distill", str(job_file(tiny_teacher, tmp_path)), "--set", f"student.path={other}"]
    capsys.readouterr()
    assert cli(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_text_encoder_on_the_hub_is_not_downloaded_to_be_compared(
    tiny_teacher: Path, smaller: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(
        root: str, allow_patterns: Sequence[str] = (), local_files_only: bool = False
    ) -> str:
        if local_files_only:
            raise FileNotFoundError(root)
        asked.append(allow_patterns[0])
        return str(smaller)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model: Any = open_model(smaller)
    model = replace(model, source=Source("somebody/half", "diffusers"))
    check_same_encoders("student", model, open_model(tiny_teacher))
    assert {pattern.partition("/")[0] for pattern in asked} == {"vae"}


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), ADAPTERS], ids=["full", "lora"])
def test_planned_memory_is_measured_memory(adapters: tuple[str, ...], tmp_path: Path) -> None:
    teacher = make_tiny_wan(tmp_path / "large")
    WanTransformer3DModel(**SMALL_WAN).save_pretrained(teacher / "transformer")
    smaller = make_tiny_wan(tmp_path / "small")
    less = {**SMALL_WAN, "num_layers": 2, "num_attention_heads": 4}
    WanTransformer3DModel(**less).save_pretrained(smaller / "transformer")
    job = small_job(teacher, tmp_path, *adapters, *own(smaller))
    meter = ModelMeter(open_model(teacher), text_rows=8, on_gpu=False)
    memory = rank_memory(job, meter, 1)
    phases = {name: sum(parts.values()) for name, parts in memory.phases.items()}
    del phases["samples"]
    planned = sum(memory.always.values()) + max(phases.values())
    assert planned == pytest.approx(measured_peak(job, Ranks(), "local"), rel=0.1)
    plan = make_plan(job, meter.model, Machine(gpus=1), meter)
    assert plan.forwards["student"].linear < 0.5 * plan.forwards["teacher"].linear
    assert plan.to_dict()["student_model"] == str(smaller)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), ADAPTERS], ids=["full", "lora"])
def test_two_zero3_ranks_train_as_one_process(
    adapters: tuple[str, ...], tiny_teacher: Path, smaller: Path, tmp_path: Path
) -> None:
    settings = (*adapters, *own(smaller), "train.iterations=2")
    local = train(make_job(tiny_teacher, tmp_path / "local", *settings))
    sharded = train(
        make_job(
            tiny_teacher,
            tmp_path / "zero3",
            *settings,
            "train.micro_batch=1",
            "parallel.strategy=zero3",
        ),
        ranks=2,
    )
    for ours, theirs in zip(read_trace(sharded), read_trace(local), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    found, expected = (weights_of(find_checkpoint(run)) for run in (sharded, local))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)
