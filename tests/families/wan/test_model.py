"""The Wan family: sizes, text, folding, and stock diffusers as the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from lightx2v_sgmd.families.text_rows import TEXT_LENGTH, fold_text_padding, pad_text
from lightx2v_sgmd.families.wan.forward import decode_latents, normalized_latents, velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.stock import run_stock, stock_pipe
from tests.tiny import make_tiny_wan

PROMPTS = ["a red circle moving left", "a blue square moving right slowly, zebra"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_wan(tmp_path_factory.mktemp("tiny"))


def test_latent_shape_and_its_refusals(folder: Path) -> None:
    model = open_wan(folder)
    assert model.latent_shape(32, 48, 9) == (4, 3, 8, 12)
    for size, says in (
        ((32, 32, 8), r"num_frames: 8 is not 4k \+ 1.*use 9"),
        ((40, 32, 9), "height: 40 is not divisible by 16"),
        ((32, 8, 9), "width: 8 is not divisible by 16.*use 16"),
    ):
        with pytest.raises(UserError, match=says):
            model.latent_shape(*size)


def test_folded_padding_changes_nothing_but_the_work(folder: Path) -> None:
    model = open_wan(folder)
    text = pad_text(model.load_text_encoder(torch.float32).rows(PROMPTS))
    assert text.shape[1] < 40
    network = model.load_transformer()
    x_t, sigma = torch.randn(2, 4, 3, 8, 8), torch.tensor([0.3, 0.9])

    def outputs() -> tuple[torch.Tensor, list[torch.Tensor]]:
        network.zero_grad()
        v = velocity(network, x_t, sigma, text)
        v.square().sum().backward()
        return v.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    stock_v, stock_grads = outputs()
    fold_text_padding(network)
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        v, grads = outputs()
        torch.testing.assert_close(v, stock_v, atol=2e-6, rtol=0)
        for a, b in zip(grads, stock_grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, b.abs().max().item()), rtol=0)


def test_a_prompt_of_full_length_has_no_padding_to_fold(folder: Path) -> None:
    model = open_wan(folder)
    rows = model.load_text_encoder(torch.float32).rows(["a red circle moving left and " * 100])
    text = pad_text(rows)
    assert rows[0].shape[0] == TEXT_LENGTH == text.shape[1]


def test_rollout_equals_stock_diffusers(folder: Path) -> None:
    model = open_wan(folder)
    pipe = stock_pipe(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**Schedule().diffusers_config())
    stock = run_stock(pipe, PROMPTS[:1], [3])
    noise = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    network = model.load_transformer()
    fold_text_padding(network)
    text = pad_text(model.load_text_encoder(torch.float32).rows(PROMPTS[:1]))
    with torch.no_grad():
        ours = rollout(lambda x, s: velocity(network, x, s, text), noise, Schedule())
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)


def test_decoding_equals_stock_diffusers(folder: Path) -> None:
    model = open_wan(folder)
    latents = torch.randn(1, 4, 3, 8, 8)
    pipe = WanPipeline.from_pretrained(folder)
    ours = decode_latents(model.load_vae(), latents)
    vae = pipe.vae
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        video = vae.decode(latents * std + mean, return_dict=False)[0]
    stock = pipe.video_processor.postprocess_video(video, output_type="np")
    assert ours.shape == (1, 9, 32, 32, 3)
    assert abs(ours.numpy() / 255 - stock).max() < 0.5 / 255 + 1e-6
    normalized = normalized_latents(vae, latents * std + mean)
    torch.testing.assert_close(normalized, latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spoiled", ["missing", "not json", "other class"])
def test_folders_that_are_no_wan(tmp_path: Path, spoiled: str) -> None:
    folder = make_tiny_wan(tmp_path / "model")
    config = folder / "transformer" / "config.json"
    if spoiled == "missing":
        config.unlink()
    elif spoiled == "not json":
        config.write_text("{")
    else:
        config.write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UserError, match="teacher.path"):
        open_wan(folder)


def test_a_path_that_is_nothing() -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_wan("./no/such/model")
