"""The published networks are built from their jobs on the meta device: no weights, no network."""

from __future__ import annotations

from math import prod

import pytest
import torch

from distill.model_checks import check_against_model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids, known_transformer_config
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.methods import ADM, DMDX
from lightx2v_sgmd.networks.discriminator_heads import head_blocks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path

JOBS = {
    "1.3b": ("wan2.1_t2v_1.3b_sgmd.yaml", 1_418_996_800, 30, 12, 8960),
    "14b": ("wan2.1_t2v_14b_sgmd.yaml", 14_288_491_584, 40, 40, 13824),
}


@pytest.mark.parametrize("size", JOBS)
def test_a_job_builds_the_published_network(size: str) -> None:
    name, parameters, layers, heads, ffn = JOBS[size]
    job = load_job(config_path(name))
    model = open_wan(job.teacher.path)
    check_against_model(job, model)
    assert model.num_heads == heads
    # 480x832x81 under the VAE's 4x time and 8x space, and the count of tokens that gives.
    assert model.latent_shape(480, 832, 81) == (16, 21, 60, 104)
    with torch.device("meta"):
        transformer = model.build_transformer()
    state = transformer.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert sum(p.numel() for p in transformer.parameters()) == parameters
    dim = heads * 128
    shapes = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "condition_embedder.text_embedder.linear_1.weight": (dim, 4096),
        "condition_embedder.time_embedder.linear_1.weight": (dim, 256),
        "condition_embedder.time_proj.weight": (6 * dim, dim),
        "blocks.0.attn1.to_q.weight": (dim, dim),
        "blocks.0.attn1.norm_q.weight": (dim,),
        "blocks.0.attn2.to_k.weight": (dim, dim),
        "blocks.0.norm2.weight": (dim,),
        "blocks.0.scale_shift_table": (1, 6, dim),
        f"blocks.{layers - 1}.ffn.net.0.proj.weight": (ffn, dim),
        f"blocks.{layers - 1}.ffn.net.2.weight": (dim, ffn),
        "proj_out.weight": (64, dim),
        "scale_shift_table": (1, 2, dim),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert f"blocks.{layers}.norm2.weight" not in state


def test_a_size_that_the_published_vae_cannot_make_is_refused() -> None:
    model = open_wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    with pytest.raises(UserError):
        model.latent_shape(480, 832, 80)


def test_known_configurations() -> None:
    assert known_hub_ids("WanTransformer3DModel") == [
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    ]
    assert known_transformer_config("Wan-AI/Wan9") is None
    assert known_transformer_config("../configs/Wan-AI--Wan2.1-T2V-14B-Diffusers") is None


def test_image_to_video_jobs_build_the_published_networks() -> None:
    """Totals that others counted in weights of these networks.

    Wan2.1-I2V-14B: SkyReels-V2-I2V-14B, which is the same network. Wan2.2-TI2V-5B: its published
    folder, 825 tensors, as its own code loads them. Wan2.2-I2V-A14B: the shards of an expert, 1095.
    """
    job = load_job(config_path("wan2.1_i2v_14b_480p_sgmd.yaml"))
    model = open_wan(job.teacher.path)
    check_against_model(job, model)
    shapes = model.transformer_shapes()
    assert model.takes_image == "always" and model.fps == 16
    assert model.latent_shape(480, 832, 81) == (16, 21, 60, 104)
    assert shapes["patch_embedding.weight"] == (5120, 36, 1, 2, 2)
    assert shapes["condition_embedder.image_embedder.ff.net.2.weight"] == (5120, 1280)
    assert shapes["blocks.39.attn2.add_k_proj.weight"] == (5120, 5120)
    assert shapes["proj_out.weight"] == (64, 5120)
    assert len(shapes) == 1095 + 8 + 40 * 5
    assert sum(map(prod, shapes.values())) == 16_394_878_784
    assert load_job(config_path("wan2.1_i2v_14b_480p_dmd2.yaml")).method.name == "dmd2"

    job = load_job(config_path("wan2.2_ti2v_5b_sgmd.yaml"))
    model = open_wan(job.teacher.path)
    check_against_model(job, model)
    shapes = model.transformer_shapes()
    assert model.takes_image == "optionally" and model.fps == 24
    assert model.authors_sampler.shift == 5
    assert model.latent_shape(704, 1280, 121) == (48, 31, 44, 80)
    assert shapes["patch_embedding.weight"] == (3072, 48, 1, 2, 2)
    assert shapes["blocks.29.ffn.net.0.proj.weight"] == (14336, 3072)
    assert shapes["proj_out.weight"] == (192, 3072) and len(shapes) == 825
    assert sum(map(prod, shapes.values())) == 4_999_787_712
    with torch.device("meta"):
        vae = model.build_vae().state_dict()
    assert vae["decoder.conv_in.weight"].shape[:2] == (1024, 48)
    assert vae["encoder.conv_in.weight"].shape[:2] == (160, 12)
    for expert in open_wan("Wan-AI/Wan2.2-I2V-A14B-Diffusers").experts:
        shapes = expert.model.transformer_shapes()
        assert (len(shapes), sum(map(prod, shapes.values()))) == (1095, 14_288_901_184)
    with pytest.raises(UserError, match="original layout.*use Wan-AI/Wan2.2-TI2V-5B-Diffusers"):
        open_wan("Wan-AI/Wan2.2-TI2V-5B")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("cogvideox_2b_adm", 10),
        ("cogvideox_5b_adm", 14),
        ("sd3_medium_adm", 24),
        ("sd3.5_large_adm", 38),
        ("sdxl_dmdx", 7),
    ],
)
def test_the_adm_papers_jobs_have_its_numbers_of_heads(name: str, heads: int) -> None:
    """arXiv 2507.18569, App. B.1 for images and App. B.2 for videos."""
    job = load_job(config_path(f"{name}.yaml"))
    model, method = open_model(job.teacher.path), job.method
    assert isinstance(method, (ADM, DMDX))
    layers = len(model.head_widths)
    assert len(head_blocks(layers, method.discriminator.head_every)) == heads
