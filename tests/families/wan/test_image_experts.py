"""Two experts that start from an image (Wan2.2-I2V-A14B): stock diffusers, training and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from torch import Tensor

from distill import distill
from distill.model_checks import check_against_model
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.families.wan.sampling import NEGATIVE_PROMPT
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.resources import config_path
from tests.families.wan.test_image_to_video import write_prompts
from tests.families.wan.test_images import PROMPTS, SIZE, conditioning_of, picture
from tests.students import load_student
from tests.tiny import make_tiny_experts
from tests.training import (
    assert_same_run,
    make_job,
    needs_deepspeed,
    read_trace,
    train,
    trained_latents,
    weights_of,
)
from weights import export, verify

VIDEO = (32, 48, 5)
SCALES = (4.0, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    make_tiny_experts(folder / "teacher", 0.9, "image latents")
    write_prompts(folder / "in", "a.png", "b.jpg")
    return folder


def job_of(folder: Path, at: Path, *settings: str) -> Job:
    prompts = f"data.prompts={folder / 'in' / 'prompts.jsonl'}"
    return make_job(folder / "teacher", at, prompts, "video.width=48", *settings)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run that has trained both experts."""
    job = job_of(folder, folder, "student.optimizer.lr=0.002", "train.ema=0.5")
    distill(job, quiet=True)
    assert {row["exit_step"] >= 2 for row in read_trace(folder / "run")} == {True, False}
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, folder: Path) -> Path:
    return export(run, "diffusers", folder / "student", dtype="fp32", quiet=True)


def stock(path: Path, size: tuple[int, int, int], **options: Any) -> Tensor:
    pipe = WanImageToVideoPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    if "guidance_scale_2" in options:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(**Schedule().diffusers_config())
    frames: Tensor = pipe(
        image=picture(),
        prompt=PROMPTS[0],
        height=size[0],
        width=size[1],
        num_frames=size[2],
        num_inference_steps=4,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **options,
    ).frames
    return frames


def test_the_published_pair() -> None:
    """14.3 billion parameters each; the image enters through 20 more channels and nothing else."""
    job = load_job(config_path("wan2.2_i2v_a14b_sgmd.yaml"))
    model = open_wan(job.teacher.path)
    check_against_model(job, model)
    assert [(e.name, e.low, e.high) for e in model.experts] == [
        ("high-noise", 0.9, 1.0),
        ("low-noise", 0.0, 0.9),
    ]
    assert model.takes_image == "always" and model.image_encoder_parts == ("vae",)
    assert model.authors_sampler == ("unipc", 5.0)
    assert model.negative_prompt == NEGATIVE_PROMPT
    assert model.empty_image((21, 60, 104)).keys() == {"image_latents"}
    for expert in model.experts:
        shapes = expert.model.transformer_shapes()
        assert shapes["patch_embedding.weight"] == (5120, 36, 1, 2, 2)
        assert len(shapes) == 1095
    dmd2 = load_job(config_path("wan2.2_i2v_a14b_dmd2.yaml"))
    assert (dmd2.method.name, dmd2.teacher.guidance_scale_2) == ("dmd2", 3.5)


def test_the_guided_teacher_equals_stock_diffusers(folder: Path) -> None:
    model = open_wan(folder / "teacher")
    networks = [expert.model.load_transformer() for expert in model.experts]
    both = conditioning_of(model, PROMPTS, picture())

    def predict(x_t: Tensor, time: Tensor) -> Tensor:
        number = expert_at(boundary_of(model.experts), time)
        twice = model.predict(networks[number], torch.cat([x_t, x_t]), time.repeat(2), both)
        cond, uncond = twice.chunk(2)
        return guide(cond, uncond, SCALES[number])

    noise = torch.randn(1, *model.latent_shape(*SIZE), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = rollout(predict, noise, Schedule())
    options = {"negative_prompt": PROMPTS[1], "guidance_scale": 4.0}
    expected = stock(folder / "teacher", SIZE, guidance_scale_2=2.0, **options)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    same = stock(folder / "teacher", SIZE, guidance_scale_2=4.0, **options)
    assert (same - expected).abs().max() > 1e-3  # the second expert runs, with its own guidance


def test_training_engine_and_stock_pipeline_agree(folder: Path, run: Path, exported: Path) -> None:
    assert verify(exported) == []
    expected = stock(exported, VIDEO, guidance_scale=1.0)
    engine = load_student(exported)
    told = engine.with_images(engine.encode(PROMPTS[:1]), [(folder / "in" / "a.png", VIDEO)])
    ours = engine.denoise(told, [3], VIDEO)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    teacher = stock(folder / "teacher", VIDEO, guidance_scale=1.0, guidance_scale_2=1.0)
    assert (teacher - expected).abs().max() > 1e-2

    noise = engine.noise(3, engine.latent_shape(*VIDEO))[None]
    trained = trained_latents(job_of(folder, folder), 5, noise)
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_resuming_is_exact(folder: Path, run: Path, tmp_path: Path) -> None:
    settings = ("student.optimizer.lr=0.002", "train.ema=0.5")
    distill(job_of(folder, tmp_path, *settings, "train.iterations=2"), quiet=True)
    distill(job_of(folder, tmp_path, *settings), quiet=True)
    assert_same_run(tmp_path / "run", run)


@pytest.fixture(scope="module")
def video(folder: Path, exported: Path) -> Tensor:
    return made_by(exported, folder)


def made_by(student: Path, folder: Path) -> Tensor:
    """The latents of a student's video of the first prompt and the first image."""
    engine = load_student(student)
    told = engine.with_images(engine.encode(PROMPTS[:1]), [(folder / "in" / "a.png", VIDEO)])
    return engine.denoise(told, [3], VIDEO)


@pytest.mark.parametrize("format", ["wan", "comfyui"])
def test_the_pair_is_written_for_other_programs(
    run: Path, exported: Path, folder: Path, video: Tensor, tmp_path: Path, format: str
) -> None:
    out = export(run, format, tmp_path / format, dtype="fp32", quiet=True)
    assert verify(out) == []
    assert torch.equal(made_by(out, folder), video)
    back = export(out, "diffusers", tmp_path / "back", dtype="fp32", quiet=True)
    for name in ("transformer", "transformer_2"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (back / file).read_bytes() == (exported / file).read_bytes()
    if format == "wan":
        job = json.loads((out / "lightx2v.json").read_text())
        assert job["use_image_encoder"] is False and job["boundary_step_index"] == 2
        for part in ("high_noise_model", "low_noise_model"):
            config = json.loads((out / part / "config.json").read_text())
            assert (config["model_type"], config["in_dim"], config["out_dim"]) == ("i2v", 12, 4)
    else:
        nodes = json.loads((out / "workflow_api.json").read_text())
        samplers = [n["inputs"] for n in nodes.values() if n["class_type"] == "KSamplerAdvanced"]
        for sampler in samplers:
            start = nodes[sampler["positive"][0]]
            assert start["class_type"] == "WanImageToVideo"
            assert [sampler[key][1] for key in ("positive", "negative")] == [0, 1]
            image = nodes[start["inputs"]["start_image"][0]]
            assert image["class_type"] == "LoadImage"
        assert samplers[0]["latent_image"] == [samplers[0]["positive"][0], 2]


def test_adapters_of_the_pair_say_what_they_are_for(
    run: Path, folder: Path, video: Tensor, tmp_path: Path
) -> None:
    out = export(run, "lora", tmp_path / "lora", dtype="fp32", quiet=True, rank=48)
    assert verify(out) == []
    card = (out / "README.md").read_text()
    for said in (
        "pipeline_tag: image-to-video",
        "from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline",
        'image=load_image("first_frame.png")',
        "--image first_frame.png",
    ):
        assert said in card
    assert "text-to-video" not in card and "t2v" not in card.lower()
    nodes = json.loads((out / "workflow_api.json").read_text()).values()
    assert "WanImageToVideo" in {node["class_type"] for node in nodes}
    merged = export(out, "diffusers", tmp_path / "merged", dtype="fp32", quiet=True)
    torch.testing.assert_close(made_by(merged, folder), video, atol=1e-3, rtol=0)


@needs_deepspeed
@pytest.mark.slow
def test_two_ranks_on_one_video_train_what_one_process_trains(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    settings = ("student.optimizer.lr=0.002", "train.ema=0.5")
    split = ("parallel.strategy=zero3", "parallel.sequence=2")
    ours = weights_of(find_checkpoint(train(job_of(folder, tmp_path, *settings, *split), 2)))
    expected = weights_of(find_checkpoint(run))
    assert ours.keys() == expected.keys()
    assert {"student", "student_2"} < {name.partition("/")[0] for name in ours}
    for name, value in expected.items():
        assert float((value - ours[name]).abs().max()) <= 1e-4, name
