"""SDXL's family: what it builds, reads, computes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from distill.model_checks import check_against_model
from lightx2v_sgmd.families.conditioning import POOLED
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sdxl.model import SDXLModel
from lightx2v_sgmd.families.sdxl.opening import open_sdxl
from lightx2v_sgmd.interpolants import VariancePreserving
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.methods.dmdx import DMDX
from lightx2v_sgmd.networks.block_loading import blocks_of, repeated_blocks
from lightx2v_sgmd.networks.discriminator_heads import FrameHead
from lightx2v_sgmd.parallel.base import HeadSettings
from lightx2v_sgmd.parallel.discriminator import backbone_features, build_heads
from lightx2v_sgmd.schedule import Schedule, even_timesteps
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path

PUBLISHED = "stabilityai/stable-diffusion-xl-base-1.0"
JOBS = ("sdxl_dmdx.yaml", "sdxl_dmdx_lora.yaml")


@pytest.fixture
def folder(tiny_sdxl: Path) -> Path:
    return tiny_sdxl


def test_the_published_model_is_built_without_weights() -> None:
    """Others read 1680 keys and this total in the header of ``sd_xl_base_1.0.safetensors``."""
    model = open_sdxl(PUBLISHED)
    with torch.device("meta"):
        network = model.build_transformer()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(shapes) == 1680
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 2_567_463_684
    assert shapes["add_embedding.linear_1.weight"] == (1280, 2816)
    assert shapes["mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight"] == (1280, 2048)
    assert model.num_blocks == len(repeated_blocks(network)) == len(blocks_of(network)) == 70
    assert (model.num_heads, model.head_dim, model.width) == (20, 64, 1280)
    assert model.embedding_shapes == {"text": (77, 2048), POOLED: (1280,)}
    assert model.latent_shape(1024, 1024, 1) == (4, 1, 128, 128)
    assert model.token_count(1024, 1024, 1) == 32 * 32
    widths = [layer.conv2.out_channels for layer in model.head_layers(network)]  # type: ignore[union-attr]
    assert widths == [*model.head_widths] == [320, 640, 1280, 1280, 1280, 640, 320]


def test_the_noise_schedule_is_the_stock_schedulers() -> None:
    model, four = open_sdxl(PUBLISHED), Schedule(even_timesteps(4), 1.0, "ddim")
    stock = DDIMScheduler.from_config(model.scheduler_config(four))
    stock.set_timesteps(4)
    path = model.interpolant
    assert isinstance(path, VariancePreserving) and path.prediction == "epsilon"
    assert stock.timesteps.tolist() == path.timestep(four.times[:-1]).tolist()
    assert stock.timesteps.tolist() == [999, 749, 499, 249]
    grid = torch.arange(1, 1001, dtype=torch.float64) / 1000
    expected = stock.alphas_cumprod.double().sqrt()
    torch.testing.assert_close(path.alpha(grid), expected, atol=1e-6, rtol=1e-5)
    assert path.alpha(torch.ones(1)).item() == pytest.approx(0.0683, abs=1e-4)


@pytest.mark.parametrize("zeros", [True, False])
def test_embeddings_are_the_stock_pipelines(folder: Path, tmp_path: Path, zeros: bool) -> None:
    """An empty prompt is zeros, unless the model says otherwise."""
    shutil.copytree(folder, tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    told = json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeros}
    index.write_text(json.dumps(told))
    model = open_model(tmp_path / "m")
    prompt = "a red circle " * 20  # longer than what CLIP reads
    short, long, empty = model.load_text_encoder(torch.float32).encode(["red", prompt, ""])
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "m", unet=None, vae=None)
    for ours, text in ((short, "red"), (long, prompt)):
        rows, none, pooled, no_pooled = pipe.encode_prompt(text, negative_prompt=None)
        for name, theirs in (("text", rows), (POOLED, pooled)):
            torch.testing.assert_close(ours[name], theirs[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(empty["text"], none[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(empty[POOLED], no_pooled[0], atol=1e-6, rtol=0)
    assert bool((empty["text"] == 0).all()) == zeros
    assert (short["text"] - long["text"]).abs().max() > 0.1


def test_the_network_is_told_the_images_size(folder: Path) -> None:
    model = open_sdxl(folder)
    network, seen = model.load_transformer(), []
    network.add_time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    told = model.empty_conditioning(2, model.text_length).map(torch.zeros_like)
    with torch.no_grad():
        noise = model.predict(network, torch.randn(2, 4, 1, 8, 16), torch.ones(2), told)
    assert noise.shape == (2, 4, 1, 8, 16)
    assert seen[0].view(2, 6).tolist() == [[16, 32, 0, 0, 16, 32]] * 2


def test_heads_read_the_last_resnet_of_each_block(folder: Path) -> None:
    """Compared with what hooks on the layers by name see; arXiv 2507.18569, App. B.1."""
    model = open_sdxl(folder)
    network, expected = model.load_transformer(), {}
    names = [
        *(f"down_blocks.{i}.resnets.1" for i in range(3)),
        "mid_block.resnets.1",
        *(f"up_blocks.{i}.resnets.2" for i in range(3)),
    ]
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: expected.update({name: output})
        )
    x_t, told = torch.randn(1, 4, 1, 16, 16), model.empty_conditioning(1, model.text_length)
    told = told.map(torch.zeros_like)
    settings = HeadSettings(1, 32, 0, ())
    run = lambda: model.predict(network, x_t, torch.full((1,), 0.5), told)  # noqa: E731
    with torch.no_grad():
        features = backbone_features(model, network, run, x_t, settings)
    assert len(features) == 7
    assert all(torch.equal(a, expected[name]) for a, name in zip(features, names, strict=True))
    assert [tuple(x.shape[1:]) for x in features] == [
        (8, 16, 16), (16, 8, 8), (24, 4, 4), (24, 4, 4), (24, 4, 4), (16, 8, 8), (8, 16, 16),
    ]  # fmt: skip
    (heads,) = build_heads(model, settings).values()
    assert all(isinstance(head, FrameHead) for head in heads.heads)
    assert heads(features).shape == (1, 2 * 25 + 2 * 9 + 3 * 4)


def test_shipped_jobs_fit_their_model_and_are_the_papers() -> None:
    for name in JOBS:
        job = load_job(config_path(name))
        check_against_model(job, open_model(job.teacher.path))
        method = job.method
        assert isinstance(method, DMDX) and method.adm.guidance_range == (6.0, 8.0)
        adp, adm = method.stages
        rates = [job.student.optimizer.lr * stage.lr_factor for stage in (adp, adm)]
        assert rates == pytest.approx([1e-6, 1e-7]) and method.discriminator.lr == 5e-6
        assert job.fake_score.optimizer.lr == 1e-6 and job.steps.base == (1000.0,)
        assert job.student.optimizer.betas == job.fake_score.optimizer.betas == (0.0, 0.99)
        assert (method.pretraining, job.train.iterations) == (8000, 16000)
        assert job.teacher.guidance_scale == 7.0 and method.discriminator.head_every == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.solver=euler", "schedule.solver: euler is not for this teacher"),
        ("schedule.shift=3", "schedule.shift: 3 is not that of a student of SDXL.*use 1"),
        ("parallel.sequence=2", "parallel.sequence: 2 is not supported for SDXL; use 1"),
        (
            "parallel={compile: always, strategy: zero3}",
            "parallel.compile: always compiles whole blocks of SDXL, which needs",
        ),
        ("video.height=1040", "video.height: 1040 is not divisible by 32.*use 1024"),
        ("video.num_frames=5", "video.num_frames: is 5, but this model makes images"),
        ("student={train: lora, lora: {targets: [to_x]}}", "to_x is not a linear layer of .*attn1"),
    ],
)
def test_what_it_cannot_do_is_refused_in_a_line(setting: str, message: str) -> None:
    job = load_job(config_path("sdxl_dmdx.yaml"), [setting])
    with pytest.raises(UserError, match=message) as caught:
        check_against_model(job, open_model(job.teacher.path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(even_timesteps(3), 1.0, "ddim"), "SDXL's stock scheduler takes 3 steps unevenly"),
        (Schedule(even_timesteps(4), 1.0, "renoise"), "takes the steps of renoise; use ddim"),
    ],
)
def test_steps_that_no_stock_scheduler_takes_are_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_sdxl(PUBLISHED).scheduler_config(schedule)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "use SDXL"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels and gives 4; use a text-to"),
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block is 1000000"),
        (
            "unet/config.json",
            {"transformer_layers_per_block": [64, 64, 64]},
            "describes 960 transformer blocks",
        ),
        ("unet/config.json", {"block_out_channels": [8, 10**9]}, "block_out_channels is"),
        ("unet/config.json", {"attention_head_dim": [1, 2]}, "attention_head_dim is not a list of"),
        ("unet/config.json", {"addition_time_embed_dim": 10}, "leaves nothing to the pooled text"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256, not null"),
        ("unet/config.json", {"auto_map": {"a": "b"}}, "auto_map names code"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean is set"),
        ("vae/config.json", {"latent_channels": 8}, "U-Net takes 4 channels and the VAE gives 8"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "cannot start where"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule"),
        ("model_index.json", {"force_zeros_for_empty_prompt": 1}, "is not true or false"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    folder: Path, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        open_model(tmp_path / "m")
    assert str(caught.value).startswith("teacher.path: ") and "\n" not in str(caught.value)
    assert re.search("; (use|copy|give|remove) ", str(caught.value))


def test_parts_that_do_not_fit_together_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m" / "text_encoder_2" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projection_dim": 16}))
    model = open_model(tmp_path / "m")
    assert isinstance(model, SDXLModel)
    with pytest.raises(UserError, match="a vector of 16 numbers, and its U-Net takes 20 and 12"):
        model.full_text_encoder_config()
    (tmp_path / "m" / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"model_index\.json: is missing"):
        open_model(tmp_path / "m")
