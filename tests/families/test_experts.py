"""Models with two experts: opening them, which expert serves which time, and stock diffusers."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.families.inspection.inspecting import inspect_weights
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.sampling.sampler import VideoSampler, noise_for
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.families.original import write_original
from tests.stock import stock_pipe
from tests.tiny import WEIGHTS, Kind, make_tiny_experts

PROMPT = "a red circle moving left"
SIZE = (32, 32, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_experts(tmp_path_factory.mktemp("experts") / "model")


def stock_latents(pipe: Any, schedule: Schedule, **settings: Any) -> torch.Tensor:
    """The stock pipeline's latents, guided 5 by the first expert and 3 by the second."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**schedule.diffusers_config())
    latents: torch.Tensor = pipe(
        PROMPT,
        negative_prompt="a blue square",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=len(schedule),
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **settings,
    ).frames
    return latents


@pytest.mark.parametrize(("timestep", "expert"), [(1000, 0), (900, 0), (899, 1), (0, 1)])
def test_the_boundary_belongs_to_the_first_expert(timestep: int, expert: int) -> None:
    """0.9 is not a float32, but its timestep is: stock pipelines compare that one."""
    assert expert_at(0.9, torch.tensor([timestep / 1000])) == expert
    assert expert_at(None, torch.tensor([timestep / 1000])) == 0


def test_a_batch_of_both_experts_is_refused() -> None:
    with pytest.raises(AssertionError, match="two experts"):
        expert_at(0.9, torch.tensor([0.95, 0.5]))


def test_published_sizes_of_a14b() -> None:
    """The index of each expert of the published folder: 1095 names and 57,153,966,336 bytes."""
    for name in ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B"):
        model = open_model(name)
        assert [(e.name, e.low, e.high) for e in model.experts] == [
            ("high-noise", 0.875, 1.0),
            ("low-noise", 0.0, 0.875),
        ]
        for expert in model.experts:
            shapes = expert.model.transformer_shapes()
            assert len(shapes) == 1095 and 4 * sum(map(prod, shapes.values())) == 57_153_966_336
            assert shapes["blocks.39.ffn.net.0.proj.weight"] == (13824, 5120)
            assert boundary_of(expert.model.experts) is None
        assert model.authors_sampler == ("unipc", 12.0)
    assert boundary_of(open_model("Wan-AI/Wan2.1-T2V-14B-Diffusers").experts) is None


@pytest.mark.parametrize("boundary", [0.875, float(Schedule().times[2])])
def test_the_guided_teacher_equals_stock_diffusers(
    folder: Path, tmp_path: Path, boundary: float
) -> None:
    """Also where a step is at the boundary."""
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": boundary}))
    schedule = Schedule()
    model = open_model(copy)
    sampler = VideoSampler(model, schedule, SIZE, 5.0, "a blue square", guidance_scale_2=3.0)
    ours = sampler.latents([PROMPT], noise_for(model, 3, model.latent_shape(*SIZE)))
    pipe = stock_pipe(copy)
    stock = stock_latents(pipe, schedule, guidance_scale=5.0, guidance_scale_2=3.0)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    same = stock_latents(pipe, schedule, guidance_scale=5.0, guidance_scale_2=5.0)
    assert (same - stock).abs().max() > 1e-3  # the second expert's own guidance counts


@pytest.mark.parametrize(("kind", "boundary"), [("text", 0.875), ("image latents", 0.9)])
def test_the_original_layout_gives_the_same_weights(
    tmp_path: Path, kind: Kind, boundary: float
) -> None:
    ours = open_wan(make_tiny_experts(tmp_path / "model", boundary, kind))
    released = tmp_path / "released"
    for number, name in enumerate(("high_noise_model", "low_noise_model")):
        expert = ours.experts[number].model
        assert isinstance(expert, WanModel)
        write_original(expert, released / name, ".safetensors")
    for part in (released / "high_noise_model").iterdir():
        if part.name.startswith(("Wan2.1_VAE", "models_t5", "google")):
            part.rename(released / part.name)
    model = open_wan(released)
    assert [expert.name for expert in model.experts] == ["high-noise", "low-noise"]
    assert boundary_of(model.experts) == boundary
    assert model.takes_image == ("never" if kind == "text" else "always")
    for theirs, mine in zip(model.experts, ours.experts, strict=True):
        read, expected = theirs.model.transformer_weights(), mine.model.transformer_weights()
        name = "blocks.0.attn1.to_q.weight"
        assert torch.equal(read.tensor(name), expected.tensor(name))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("transformer", "has no transformer/config.json, and needs both experts"),
        ("transformer_2", "has no transformer_2/config.json, and needs both experts"),
        ("boundary_ratio", "boundary_ratio in model_index.json is None"),
    ],
)
def test_a_model_without_one_of_its_experts_is_refused(
    folder: Path, tmp_path: Path, missing: str, message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    if missing == "boundary_ratio":
        index = json.loads((copy / "model_index.json").read_text())
        del index[missing]
        (copy / "model_index.json").write_text(json.dumps(index))
    else:
        shutil.rmtree(copy / missing)
    with pytest.raises(UserError, match=message) as caught:
        open_model(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["transformer", "transformer_2"])
def test_the_weights_of_one_expert_alone_are_refused(
    folder: Path, tmp_path: Path, missing: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / missing / WEIGHTS.name).unlink()
    with pytest.raises(UserError, match=f"^teacher.path: .*: has no weights in {missing}, and"):
        open_model(copy)
    pair = tmp_path / "pair"  # it has both, so the model gives its other parts alone
    for part, name in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        shutil.copytree(folder / part, pair / name)
    assert len(open_model(pair, copy).experts) == 2
    for other in ("transformer", "transformer_2"):
        (copy / other / WEIGHTS.name).unlink(missing_ok=True)
    assert len(open_model(copy).experts) == 2  # to be planned


def test_an_index_without_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    index |= {"transformer_2": 5, "boundary_ratio": None}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="boundary_ratio in model_index.json is None"):
        open_model(copy)


@pytest.mark.parametrize("linked", ["high_noise_model", "low_noise_model"])
def test_an_expert_in_another_folder_is_refused(folder: Path, tmp_path: Path, linked: str) -> None:
    pair, outside = tmp_path / "pair", tmp_path / "outside"
    for ours, theirs in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        shutil.copytree(folder / ours, pair / theirs)
    assert len(open_model(pair, folder).experts) == 2
    (pair / linked).rename(outside)
    (pair / linked).symlink_to(outside)
    with pytest.raises(UserError, match="is a link out of"):
        open_model(pair, folder)
    with pytest.raises(UserError, match="is a link out of"):
        inspect_weights(pair)


def test_experts_of_two_shapes_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "transformer_2" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ffn_dim": 32}))
    with pytest.raises(UserError, match="two experts differ in ffn_dim"):
        open_model(copy)


def test_one_file_is_not_both_experts(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    shutil.copyfile(folder / "transformer" / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(UserError, match="needs two experts"):
        open_model(file, folder)
