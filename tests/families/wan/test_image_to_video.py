"""Videos that start from an image, end to end: training, cache, engine, export, stock pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from PIL import Image
from torch import Tensor

from distill import distill
from distill.building import check_images
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.checkpoint import find_checkpoint
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.families.wan.test_images import KINDS, picture
from tests.students import generate_files, load_student
from tests.tiny import Kind, make_tiny_wan
from tests.training import (
    assert_same_run,
    needs_deepspeed,
    train,
    trained_latents,
    weights_of,
)
from tests.training import make_job as training_job
from weights import export, verify

PROMPTS = ["a red circle moving left", "a blue square"]
JOB = """
teacher: {{path: {teacher}, guidance_scale: 3.0, negative_prompt: ""}}
data: {{prompts: prompts.jsonl, embeddings: cache}}
video: {{height: 32, width: 48, num_frames: 5}}
train: {{iterations: 2, micro_batch: 2, ema: 0.5, checkpoint_every: 1, sample_every: 1}}
output: {{dir: {run}}}
"""


def write_prompts(folder: Path, *images: str | None) -> Path:
    lines = [
        {"prompt": prompt} | ({} if image is None else {"image": image})
        for prompt, image in zip(PROMPTS, images, strict=True)
    ]
    folder.mkdir(exist_ok=True)
    picture().save(folder / "a.png")
    picture(60, 60).rotate(90).save(folder / "b.jpg")
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def make_job(teacher: Path, folder: Path, *images: str | None, run: str = "run") -> Job:
    write_prompts(folder, *images)
    (folder / "job.yaml").write_text(JOB.format(teacher=teacher, run=folder / run))
    return load_job(folder / "job.yaml")


@pytest.fixture(scope="module", params=KINDS)
def student(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path]:
    """A folder with a teacher, a run of two iterations and its export."""
    folder = tmp_path_factory.mktemp("i2v")
    teacher = make_tiny_wan(folder / "teacher", kind=request.param)
    images = ("a.png", "b.jpg") if request.param == "image" else ("a.png", None)
    distill(make_job(teacher, folder, *images), quiet=True)
    export(folder / "run", format="diffusers", out=folder / "student", dtype="fp32")
    return request.param, folder


@pytest.mark.slow
def test_engine_stock_pipeline_and_training_agree(student: tuple[Kind, Path]) -> None:
    """The stock pipeline runs the exported folder in its four steps, without code of ours."""
    _, folder = student
    pipe = WanImageToVideoPipeline.from_pretrained(folder / "student")
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        image=picture(),
        prompt=PROMPTS[0],
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames
    engine = load_student(folder / "student")
    rows = engine.encode(PROMPTS[:1])
    size = (32, 48, 5)
    told = engine.with_images(rows, [(folder / "a.png", size)])
    ours = engine.denoise(told, [3], size)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    noise = engine.noise(3, engine.latent_shape(*size))[None]
    trained = trained_latents(load_job(folder / "job.yaml"), 2, noise)
    torch.testing.assert_close(trained, stock, atol=1e-4, rtol=0)
    assert (folder / "run/samples/step_000002/00.mp4").is_file()


def test_stock_wan_pipeline_makes_videos_from_text_alone(student: tuple[Kind, Path]) -> None:
    """Wan2.2-TI2V needs no image: its student, and its guided teacher, in the pipeline for text."""
    kind, folder = student
    if kind != "text and image":
        pytest.skip("Wan2.1-I2V starts from an image")
    size, options = (32, 48, 5), {"negative_prompt": PROMPTS[1]}
    engine = load_student(folder / "student")
    ours = engine.denoise(engine.encode(PROMPTS[:1]), [3], size)
    stock = stock_from_text(folder / "student", size, engine.schedule, guidance_scale=1.0)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    noise = engine.noise(3, engine.latent_shape(*size))[None]
    sampler = VideoSampler(open_wan(folder / "teacher"), engine.schedule, size, 4.0, PROMPTS[1])
    guided = stock_from_text(
        folder / "teacher", size, engine.schedule, guidance_scale=4.0, **options
    )
    torch.testing.assert_close(sampler.latents(PROMPTS[:1], noise), guided, atol=1e-4, rtol=0)
    assert (guided - stock).abs().max() > 0.01


def stock_from_text(
    path: Path, size: tuple[int, int, int], steps: Schedule, **options: Any
) -> Tensor:
    """The latents of stock ``WanPipeline`` in these steps; an export has them of its own."""
    pipe = WanPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    if path.name == "teacher":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(**steps.diffusers_config())
    latents: Tensor = pipe(
        prompt=PROMPTS[0],
        height=size[0],
        width=size[1],
        num_frames=size[2],
        num_inference_steps=len(steps),
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **options,
    ).frames
    return latents


def test_samples_show_the_input_frame(student: tuple[Kind, Path]) -> None:
    kind, folder = student
    samples = folder / "run" / "samples" / "step_000002"
    shown = sorted(file.name for file in samples.glob("*.png"))
    assert shown == (["00_input.png", "01_input.png"][: 2 if kind == "image" else 1])
    assert Image.open(samples / "00_input.png").size == (48, 32)


@pytest.mark.slow
def test_images_are_encoded_once(
    student: tuple[Kind, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with the same images encodes none, and resumes to the same bits."""
    kind, folder = student
    images = ("a.png", "b.jpg") if kind == "image" else ("a.png", None)
    shutil.copytree(folder / "cache", tmp_path / "cache")
    assert len(list((folder / "cache").glob("images_*/*.safetensors"))) == len(
        [image for image in images if image]
    )
    monkeypatch.setattr("lightx2v_sgmd.text.images.read_image", None)
    again = make_job(folder / "teacher", tmp_path, *images)
    distill(load_job(tmp_path / "job.yaml", ["train.iterations=1"]), quiet=True)
    distill(again, quiet=True)
    assert_same_run(folder / "run", tmp_path / "run")


def test_generate_from_an_image_and_from_lines(student: tuple[Kind, Path], tmp_path: Path) -> None:
    kind, folder = student
    out = tmp_path / "videos"
    lines = write_prompts(tmp_path / "in", "a.png", "b.jpg")
    made = generate_files(folder / "student", lines, out, quiet=True)
    assert len(made.files) == 2 and not made.failed
    sidecars = [json.loads(file.with_suffix(".json").read_text()) for file in made.files]
    assert len({each["image_sha256"] for each in sidecars}) == 2
    assert generate_files(folder / "student", lines, out, quiet=True).skipped == 2
    # Another image under the same name is another video.
    picture().transpose(Image.Transpose.ROTATE_180).save(tmp_path / "in" / "a.png")
    assert generate_files(folder / "student", lines, out, quiet=True).skipped == 1
    prompt: Any = PROMPTS[0]
    if kind == "image":
        with pytest.raises(UserError, match="image: is missing, and this model starts from one"):
            generate_files(folder / "student", prompt, tmp_path / "a.mp4", quiet=True)
    else:
        generate_files(folder / "student", prompt, tmp_path / "a.mp4", quiet=True)
    given = generate_files(
        folder / "student", prompt, tmp_path / "b.mp4", quiet=True, image=tmp_path / "in" / "a.png"
    )
    assert given.files == [tmp_path / "b.mp4"]


LAYOUTS = {  # processes, strategy, micro batch, ranks on one video: the same global batch
    "local": (1, "local", 2, 1),
    "two ranks": (2, "zero3", 1, 1),
    "two ranks on one video": (2, "zero3", 2, 2),
}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_train_what_one_process_trains(kind: Kind, tmp_path: Path) -> None:
    teacher = make_tiny_wan(tmp_path / "teacher", kind=kind)
    prompts = write_prompts(tmp_path / "in", "a.png", "b.jpg" if kind == "image" else None)
    weights = {}
    for layout, (nproc, strategy, micro_batch, sequence) in LAYOUTS.items():
        job = training_job(
            teacher,
            tmp_path / layout.replace(" ", "_"),
            f"data.prompts={prompts}",
            "video.width=48",
            "train.iterations=2",
            f"train.micro_batch={micro_batch}",
            f"parallel.strategy={strategy}",
            f"parallel.sequence={sequence}",
        )
        weights[layout] = weights_of(find_checkpoint(train(job, nproc)))
    start = open_wan(teacher).load_transformer().state_dict()
    for name, value in start.items():
        moved = (weights["local"][f"student/{name}"] - value.flatten()).abs().max()
        assert moved > 1e-5, f"{name} moved less far than the tolerance"
    for layout in LAYOUTS.keys() - {"local"}:
        assert weights[layout].keys() == weights["local"].keys()
        for name, value in weights[layout].items():
            difference = float((value - weights["local"][name]).abs().max())
            assert difference <= 1e-5, (layout, name)


@pytest.mark.parametrize("format", ["wan", "comfyui"])
def test_students_are_written_for_other_programs(
    student: tuple[Kind, Path], tmp_path: Path, format: str
) -> None:
    kind, folder = student
    if kind == "text and image":
        with pytest.raises(UserError, match="Wan2.2-TI2V cannot be written as .*; use diffusers"):
            export(folder / "run", format, tmp_path / "out", quiet=True)
        return
    out = export(folder / "run", format, tmp_path / "out", dtype="fp32", quiet=True)
    assert verify(out) == []
    size = (32, 48, 5)
    videos = []
    for weights in (folder / "student", out):
        engine = load_student(weights)
        told = engine.with_images(engine.encode(PROMPTS[:1]), [(folder / "a.png", size)])
        videos.append(engine.denoise(told, [3], size))
    assert torch.equal(*videos)
    if format == "wan":
        job = json.loads((out / "lightx2v.json").read_text())
        assert "use_image_encoder" not in job  # it has CLIP, which LightX2V looks for
        assert json.loads((out / "config.json").read_text())["model_type"] == "i2v"
    else:
        nodes = json.loads((out / "workflow_api.json").read_text())
        (start,) = (n["inputs"] for n in nodes.values() if n["class_type"] == "WanImageToVideo")
        seen = nodes[start["clip_vision_output"][0]]
        assert (seen["class_type"], seen["inputs"]["crop"]) == ("CLIPVisionEncode", "center")
        assert seen["inputs"]["image"] == start["start_image"]


def test_what_is_refused_before_anything_loads(
    tiny_teacher: Path, tmp_path: Path, shared_student: Path
) -> None:
    teacher = make_tiny_wan(tmp_path / "teacher", kind="image")
    for path, images, says in (
        (teacher, ("a.png", None), r"has 1 prompts without an image"),
        (teacher, (None, None), "has prompts without an image"),
        (teacher, ("a.png", "../b.jpg"), r"prompts.jsonl:2: image: ../b.jpg leads out"),
        (teacher, ("a.png", "/b.jpg"), r"prompts.jsonl:2: image: /b.jpg leads out"),
        (teacher, ("a.png", "none.png"), "none.png: no such file"),
        (teacher, ("a.png", "prompts.jsonl"), "is not a PNG, JPEG or WebP"),
        (tiny_teacher, ("a.png", None), "names images, and .* from text alone"),
    ):
        job = make_job(path, tmp_path / "job", *images)
        with pytest.raises(UserError, match=says):
            check_images(job, open_wan(path))
            distill(job, quiet=True)
        assert not (tmp_path / "job" / "run").exists()
    (tmp_path / "job" / "c.png").symlink_to("/etc/hostname")
    job = make_job(teacher, tmp_path / "job", "a.png", "c.png")
    with pytest.raises(UserError, match="is a link out of the folder"):
        check_images(job, open_wan(teacher))
    with pytest.raises(UserError, match="image: is given, and this model makes videos from text"):
        generate_files(
            shared_student, "a", tmp_path / "a.mp4", quiet=True, image=tmp_path / "job" / "a.png"
        )
    pairs = ["method={name: adp, pixel_weight: 0}", "data={prompts: latents, latents: none}"]
    (tmp_path / "job" / "none").mkdir()
    adp = load_job(tmp_path / "job" / "job.yaml", pairs)
    with pytest.raises(UserError, match="adp learns from latents, .* use sgmd"):
        check_images(adp, open_wan(teacher))


def test_a_first_frame_is_the_image(student: tuple[Kind, Path]) -> None:
    """Where the first latent frame is held, the first frame is the image as the VAE has it."""
    kind, folder = student
    if kind != "text and image":
        pytest.skip("only this kind holds the frame")
    engine = load_student(folder / "student")
    size = (32, 48, 5)
    told = engine.with_images(engine.encode(PROMPTS[:1]), [(folder / "a.png", size)])
    latents = engine.denoise(told, [3], size)
    first = told[0]["first_frame"]
    torch.testing.assert_close(latents[0, :, :1], first, atol=1e-5, rtol=0)
    frame = next(iter(engine.decode(latents[0])))[0]
    alone = next(iter(engine.decode(first)))[0]
    assert np.abs(frame.astype(int) - alone.astype(int)).max() <= 1
