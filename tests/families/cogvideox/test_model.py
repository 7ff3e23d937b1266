"""CogVideoX: its published sizes, its noise schedule, and what it refuses."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import pytest
import torch

from distill.model_checks import check_against_model
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.interpolants import VariancePreserving
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs
from tests.tiny import make_tiny_cogvideox

EIGHT = Schedule(even_timesteps(8), 1.0, "ddim")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cogvideox(tmp_path_factory.mktemp("cogvideox") / "tiny")


@pytest.mark.parametrize(
    ("name", "tensors", "weights", "blocks", "heads"),
    [("2b", 736, 1_693_783_872, 30, 30), ("5b", 1024, 5_570_283_072, 42, 48)],
)
def test_the_published_models_open_without_a_download(
    name: str, tensors: int, weights: int, blocks: int, heads: int
) -> None:
    """The totals are those that others counted in the published weights.

    5b: the trainable parameters of a full fine-tune that finetrainers' page on CogVideoX prints.
    2b: a public table of the elements of zai-org/CogVideoX-2b's parts, which has its T5, too.
    """
    model = open_model(f"zai-org/CogVideoX-{name}")
    shapes = model.transformer_shapes()
    assert (len(shapes), sum(map(prod, shapes.values()))) == (tensors, weights)
    assert (model.num_blocks, model.num_heads, model.head_dim) == (blocks, heads, 64)
    assert shapes["transformer_blocks.0.attn1.to_q.weight"] == (64 * heads, 64 * heads)
    assert "patch_embed.pos_embedding" not in shapes
    assert model.latent_shape(480, 720, 49) == (16, 13, 60, 90)
    assert model.token_count(480, 720, 49) == 13 * 30 * 45
    assert (model.text_length, model.text_dim, model.fps) == (226, 4096, 8.0)
    with torch.device("meta"):
        encoder = model.build_text_encoder()
    assert sum(p.numel() for p in encoder.parameters()) == 4_762_310_656


@pytest.mark.parametrize(("name", "snr_shift"), [("2b", 3.0), ("5b", 1.0)])
def test_the_noise_schedule_is_the_stock_schedulers(name: str, snr_shift: float) -> None:
    from diffusers import CogVideoXDDIMScheduler

    model = open_model(f"zai-org/CogVideoX-{name}")
    config = model.scheduler_config(EIGHT)
    assert config["snr_shift_scale"] == snr_shift and config["rescale_betas_zero_snr"]
    stock = CogVideoXDDIMScheduler.from_config(config)
    stock.set_timesteps(8)
    path = model.interpolant
    assert isinstance(path, VariancePreserving) and path.prediction == "v"
    assert stock.timesteps.tolist() == path.timestep(EIGHT.times[:-1]).tolist()
    assert stock.timesteps.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]
    grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(path.alpha(grid), stock.alphas_cumprod.sqrt(), atol=1e-12, rtol=0)
    assert path.alpha(torch.ones(1)).item() == 0


def test_shipped_jobs_fit_their_models() -> None:
    names = [name for name in shipped_jobs() if name.startswith("cogvideox")]
    assert len(names) == 6
    for name in names:
        job = load_job(config_path(name))
        check_against_model(job, open_model(job.teacher.path))
    adm = load_job(config_path("cogvideox_5b_adm.yaml"))
    assert adm.method.guidance_range == (5.0, 7.0) and len(adm.schedule.base) == 8
    assert (adm.student.optimizer.lr, adm.fake_score.optimizer.lr) == (1e-7, 1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.solver=euler", "schedule.solver: euler is not for this teacher"),
        ("schedule.shift=8", "schedule.shift: 8 is not that of a student of CogVideoX.*use 1"),
        ("parallel.sequence=4", "parallel.sequence: 4 does not divide the 30 attention heads"),
        (
            "parallel={compile: always, strategy: zero3}",
            "parallel.compile: always compiles whole blocks of CogVideoX, which needs",
        ),
        ("video.num_frames=45", "video.num_frames: 45 is not 8k \\+ 1.*use 49"),
    ],
)
def test_what_it_cannot_do_is_refused_in_a_line(setting: str, message: str) -> None:
    job = load_job(config_path("cogvideox_2b_sgmd.yaml"), [setting])
    with pytest.raises(UserError, match=message) as caught:
        check_against_model(job, open_model(job.teacher.path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(even_timesteps(3), 1.0, "ddim"), "takes 3 steps unevenly"),
        (Schedule(even_timesteps(4), 1.0, "renoise"), "takes the steps of renoise; use ddim"),
        (Schedule((1000.0, 400.0), 1.0, "ddim"), "use shift 1.0 and"),
    ],
)
def test_steps_that_no_stock_scheduler_takes_are_refused(schedule: Schedule, message: str) -> None:
    model: Model = open_model("zai-org/CogVideoX-2b")
    with pytest.raises(UserError, match=message):
        model.scheduler_config(schedule)


LARGE_TABLE = {"sample_width": 2048, "sample_height": 2048, "sample_frames": 4096}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"patch_size_t": 2}, "CogVideoX1.5"),
        ("transformer", {"in_channels": 8}, "image-to-video"),
        ("transformer", {"num_layers": 10**6}, "num_layers is 1000000"),
        ("transformer", LARGE_TABLE, "a table of positions of more than"),
        ("vae", {"invert_scale_latents": True}, "CogVideoX1.5"),
        ("vae", {"_class_name": "AutoencoderKLWan"}, "not AutoencoderKLCogVideoX"),
        ("vae", {"latent_channels": 8}, "the transformer takes 4 channels and the VAE gives 8"),
        ("scheduler", {"prediction_type": "epsilon"}, "prediction_type"),
        ("scheduler", {"beta_schedule": "linear"}, "beta_schedule"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    folder: Path, tmp_path: Path, part: str, change: dict[str, object], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = tmp_path / "m" / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        open_model(tmp_path / "m")
    assert str(caught.value).startswith("teacher.path: ")


def test_a_folder_named_as_a_published_model_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "zai-org" / "CogVideoX-2b")
    monkeypatch.chdir(tmp_path)
    assert open_model("zai-org/CogVideoX-2b").latent_shape(32, 32, 9) == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("transformer/config.json", "{", "is not readable JSON"),
        ("scheduler/scheduler_config.json", None, "is missing; copy the model again"),
    ],
)
def test_a_damaged_folder_is_refused_in_a_line(
    folder: Path, tmp_path: Path, file: str, text: str | None, message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / file).unlink() if text is None else (copy / file).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_model(copy)
    assert str(caught.value).startswith("teacher.path: ") and "\n" not in str(caught.value)


def test_the_encoder_gives_what_the_stock_pipeline_attends_to(folder: Path) -> None:
    from diffusers import CogVideoXPipeline

    prompts = ["A  Red circle", ""]
    rows = open_model(folder).load_text_encoder(torch.float32).encode(prompts)
    pipe = CogVideoXPipeline.from_pretrained(folder, transformer=None, vae=None)
    stock, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    text = torch.stack([row.text for row in rows])
    torch.testing.assert_close(text, stock, atol=1e-5, rtol=0)
    assert text.shape == (2, 226, 16)


def test_frames_are_decoded_with_gradient(folder: Path) -> None:
    model = open_model(folder)
    vae, shape = model.load_vae(), model.latent_shape(32, 32, 9)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    frames = model.decode_frames(vae, latents, [0, 8])
    whole = model.decode_latents(vae, latents)[:, [0, 8]].permute(0, 1, 4, 2, 3)
    assert (255 * (frames.detach() + 1) / 2 - whole).abs().max() <= 0.5
    (gradient,) = torch.autograd.grad(frames.sum(), latents)
    assert gradient.abs().sum() > 0
