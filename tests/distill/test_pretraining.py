"""Adversarial pre-training on ODE pairs: ADP, DMDX, and what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, SamVisionConfig, SamVisionModel

from distill import distill
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.latents import LatentFolder, shard_path
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.flow import cubic_sigmas
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.networks.vision_encoder import VisionBackbone, captured_layers, vision_widths
from lightx2v_sgmd.sampling.sampler import VideoSampler
from lightx2v_sgmd.sampling.teacher_steps import teacher_schedule
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.system.errors import UserError
from tests.training import assert_same_run, job_file, needs_deepspeed, read_trace, train, weights_of

HEADS = "discriminator: {head_every: 1, head_channels: 64, lr: 1.0e-3}"

# A head's first steps are as large as its rate whatever the gradient: where that is nearly zero,
# rounding decides their sign. And ADM's usual small step leaves its heads a gradient that is the
# small difference of large ones: a larger delta compares better.
SLOW_HEADS = HEADS.replace("1.0e-3", "1.0e-6")
DMDX_JOB = (
    "dmdx, adm: {{delta: 0.5}}, pretraining: 2, adp: {{vision_encoder: {encoder}}}, "
    "discriminator: {{head_every: 1, head_channels: 64, lr: 1.0e-6}}"
)


@pytest.fixture(scope="module")
def pairs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    collect(tiny_teacher, folder, folder / "pairs")
    return folder / "pairs"


def collect(teacher: Path, folder: Path, out: Path, *options: str) -> None:
    job = job_file(teacher, folder)
    arguments = [str(job), "--out", str(out), "--count", "6", "--steps", "2", "--shard", "4"]
    assert run_cli(["collect-pairs", *arguments, *options]) == 0


@pytest.fixture(scope="module", params=["sam", "dinov2"])
def encoder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(request.param, tmp_path_factory.mktemp(request.param))


def make_encoder(kind: str, folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(0)
    network: Any
    if kind == "sam":
        network = SamVisionModel(
            SamVisionConfig(
                **sizes,
                image_size=64,
                patch_size=16,
                output_channels=16,
                mlp_dim=64,
                window_size=2,
                global_attn_indexes=[1, 3],
                initializer_range=0.02,
            )
        )
    else:
        network = Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14))
    network.save_pretrained(folder)
    return folder


def make(teacher: Path, folder: Path, pairs: Path, method: str, *settings: str) -> Any:
    latents = ["data.prompts=latents", f"data.latents={pairs}", f"method={{{method}}}"]
    return load_job(job_file(teacher, folder), [*latents, *settings])


def test_a_u_net_is_distilled_to_one_step(tiny_sdxl: Path, tmp_path: Path) -> None:
    """SDXL's pairs, then both stages of DMDX with seven heads and decoded images."""
    encoder = make_encoder("dinov2", tmp_path / "encoder")
    schedule = "schedule={base: [1000], shift: 1.0, solver: ddim}"
    settings = (schedule, "video={height: 32, width: 32}")
    job = job_file(tiny_sdxl, tmp_path)
    sets = [word for setting in settings for word in ("--set", setting)]
    arguments = [str(job), "--out", str(tmp_path / "pairs"), "--count", "4", "--steps", "2"]
    assert run_cli(["collect-pairs", *arguments, *sets]) == 0
    method = f"name: dmdx, pretraining: 2, adp: {{vision_encoder: {encoder}}}, {HEADS}"
    made = make(tiny_sdxl, tmp_path, tmp_path / "pairs", method, *settings, "train.iterations=3")
    first, _, last = read_trace(train(made))
    assert first["grad_norm"].keys() == {"student", "discriminator", "pixel_discriminator"}
    assert last["grad_norm"].keys() == {"student", "fake_score", "discriminator"}
    for row in (first, last):
        assert all(norm > 0 for norm in row["grad_norm"].values())


def test_pairs_are_the_teachers_samples(tiny_teacher: Path, pairs: Path) -> None:
    folder = LatentFolder(pairs)
    assert len(folder) == 6 and folder.has_noise and len(folder.prompts) == 6
    model = open_wan(str(tiny_teacher))
    sampler = VideoSampler(model, teacher_schedule(steps=2), (32, 32, 5), 8.0)
    made = sampler.latents(folder.prompts[4:], folder.read("noise", [4, 5]))
    torch.testing.assert_close(folder.read("x0", [4, 5]), made)
    assert not torch.equal(folder.read("noise", [0]), folder.read("noise", [4]))


def test_pairs_by_another_solver_are_its_samples_and_say_so(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(tiny_teacher, tmp_path, tmp_path / "pairs", "--solver", "unipc", "--shift", "5")
    said = capsys.readouterr().err
    assert "the teacher samples with UniPC, 2 steps, shift 5, guidance 8" in said
    folder = LatentFolder(tmp_path / "pairs")
    assert folder.origin["schedule"] == {"solver": "unipc", "shift": 5.0, "steps": 2}
    sampler = VideoSampler(open_wan(str(tiny_teacher)), UniPC(5.0, 2), (32, 32, 5), 8.0)
    made = sampler.latents(folder.prompts[4:], folder.read("noise", [4, 5]))
    torch.testing.assert_close(folder.read("x0", [4, 5]), made)


def test_collecting_goes_on_where_it_stopped(
    tiny_teacher: Path, tmp_path: Path, pairs: Path
) -> None:
    out = tmp_path / "pairs"
    collect(tiny_teacher, tmp_path, out, "--part", "2/2")
    assert not shard_path(out, 0).exists() and shard_path(out, 1).exists()
    before = shard_path(out, 1).stat().st_mtime_ns
    collect(tiny_teacher, tmp_path, out)
    assert shard_path(out, 1).stat().st_mtime_ns == before
    ours, theirs = LatentFolder(out), LatentFolder(pairs)
    assert torch.equal(ours.read("x0", range(6)), theirs.read("x0", range(6)))


@pytest.mark.parametrize("part", ["0/2", "3/2", "a/b", "1", "1/0"])
def test_a_part_that_is_none_is_refused(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    job = str(job_file(tiny_teacher, tmp_path))
    assert run_cli(["collect-pairs", job, "--out", str(tmp_path / "x"), "--part", part]) == 2
    err = capsys.readouterr().err
    assert f"--part: '{part}' is not K/N" in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_pairs_of_other_settings_are_not_mixed(tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    collect(tiny_teacher, tmp_path, out)
    job = str(job_file(tiny_teacher, tmp_path))
    again = ["--count", "6", "--steps", "3", "--shard", "4"]
    shard_path(out, 1).unlink()
    assert run_cli(["collect-pairs", job, "--out", str(out), *again]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["method={name: adp, pixel_weight: 0}"],
            "adp reads the teacher's ODE pairs",
        ),
        (["method={name: adp}"], "method: vision_encoder is missing"),
        (["method={name: dmd2, gan_weight: 0.1}"], "data.latents: dmd2 reads encoded videos"),
        (["data.prompts=latents"], "data.latents: is missing, but data.prompts says latents"),
    ],
)
def test_jobs_that_lack_latents(
    tiny_teacher: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_job(job_file(tiny_teacher, tmp_path), settings)


def test_the_cubic_schedule_stays_near_noise() -> None:
    u = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    sigma = cubic_sigmas(u, 0.0, 1.0)
    torch.testing.assert_close(sigma[5000].item(), 1 - 0.5**3)
    assert abs(float(sigma.mean()) - 0.75) < 1e-3  # 1 - E[u^3]
    assert float((sigma > 0.5).double().mean()) > 0.79  # 0.5^(1/3)


def test_one_and_four_step_students_learn_from_pairs(
    tiny_teacher: Path, tmp_path: Path, pairs: Path
) -> None:
    for index, base in enumerate(("[1000]", "[1000, 750, 500, 250]")):
        folder = tmp_path / str(index)
        settings = ["train.iterations=3", f"schedule.base={base}"]
        job = make(tiny_teacher, folder, pairs, f"name: adp, pixel_weight: 0, {HEADS}", *settings)
        run = distill(job, quiet=True)
        rows = read_trace(run)
        assert rows[0].keys() >= {"adversarial", "discriminator"}
        assert rows[0]["grad_norm"].keys() == {"student", "discriminator"}
        assert all(row["grad_norm"]["student"] > 0 for row in rows)
        assert (run / "samples" / "step_000003" / "00.mp4").stat().st_size > 0


@pytest.mark.slow
def test_the_pixel_discriminator(
    tiny_teacher: Path, tmp_path: Path, pairs: Path, encoder: Path
) -> None:
    method = f"name: adp, vision_encoder: {encoder}, pixel_frames: 2, {HEADS}"
    rows = read_trace(distill(make(tiny_teacher, tmp_path / "a", pairs, method), quiet=True))
    assert rows[0].keys() >= {"adversarial", "discriminator", "pixel", "pixel_discriminator"}
    assert rows[0]["grad_norm"].keys() == {"student", "discriminator", "pixel_discriminator"}
    without = f"name: adp, pixel_weight: 0, {HEADS}"
    plain = read_trace(distill(make(tiny_teacher, tmp_path / "b", pairs, without), quiet=True))
    assert plain[0]["grad_norm"]["student"] != rows[0]["grad_norm"]["student"]


def test_a_vision_encoders_features_carry_gradient_to_the_frames(encoder: Path) -> None:
    backbone = VisionBackbone(str(encoder), torch.device("cpu"))
    frames = torch.rand(2, 3, 32, 32, requires_grad=True)
    maps = backbone.features(frames)
    assert [m.shape[:2] for m in maps] == [(2, w) for w in vision_widths(str(encoder))]
    assert len({m.shape[2] for m in maps}) == 1 and len(maps) == 4
    (gradient,) = torch.autograd.grad(maps[-1].square().sum(), frames)
    assert gradient.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in backbone.network.parameters())


def test_sam_sees_the_picture_in_its_own_shape(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = VisionBackbone(str(encoder), torch.device("cpu"))
    seen: list[torch.Tensor] = []
    forward = backbone.network.forward

    def noted(pixels: torch.Tensor, **options: Any) -> Any:
        seen.append(pixels)
        return forward(pixels, **options)

    monkeypatch.setattr(backbone.network, "forward", noted)
    wide, square = (
        backbone.features(torch.ones(1, 3, 16, 32)),
        backbone.features(torch.ones(1, 3, 9, 9)),
    )
    (pixels, _), side = seen, backbone.size
    assert pixels.shape == (1, 3, side, side)
    filled = (pixels != 0).all(dim=1)[0]
    if side == 64:  # SAM: a picture twice as wide as high fills the upper half
        assert filled[:32].all() and not filled[32:].any()
        assert [m.shape[2:] for m in wide] == [(2, 4)] * len(wide)
    else:
        assert filled.all() and wide[0].shape == square[0].shape
    assert square[0].shape[2] == square[0].shape[3] == 4


def test_heads_are_on_the_papers_layers() -> None:
    assert captured_layers(12) == [3, 6, 9, 12]
    assert captured_layers(2) == [1, 2]


def test_a_folder_that_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method.vision_encoder: .* is not a folder with"):
        vision_widths(str(tmp_path))


def test_dmdx_turns_from_pretraining_to_matching(
    tiny_teacher: Path, tmp_path: Path, pairs: Path
) -> None:
    method = f"name: dmdx, pretraining: 2, finetune_lr: 0.5, adp: {{pixel_weight: 0}}, {HEADS}"
    settings = ["train.iterations=4", "train.warmup=0"]
    run = distill(make(tiny_teacher, tmp_path, pairs, method, *settings), quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [set(line["grad_norm"]) for line in lines] == [
        *[{"student", "discriminator"}] * 2,
        *[{"student", "discriminator", "fake_score"}] * 2,
    ]
    assert [line["lr"]["student"] for line in lines] == [1e-4, 1e-4, 5e-5, 5e-5]
    assert "fake" not in lines[1] and "fake" in lines[2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dmd2", f"adm, {HEADS}", "dmdx"])
def test_resuming_equals_going_on(
    method: str, tiny_teacher: Path, tmp_path: Path, pairs: Path
) -> None:
    """Exactly, the optimizers' counts of updates included."""
    if method == "dmdx":
        method = f"dmdx, pretraining: 1, adp: {{pixel_weight: 0}}, {HEADS}"
    whole = make(tiny_teacher, tmp_path / "whole", pairs, f"name: {method}", "train.iterations=4")
    distill(whole, quiet=True)
    for iterations in (2, 4):
        part = make(
            tiny_teacher,
            tmp_path / "part",
            pairs,
            f"name: {method}",
            f"train.iterations={iterations}",
        )
        distill(part, quiet=True)
    assert_same_run(part.output.dir, whole.output.dir)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["sam"], indirect=True)
@pytest.mark.parametrize(
    "method",
    [
        "dmd2, fake_score_updates: 2",
        "tsg_fisher, fake_score_updates: 2",
        "tsg_sim",
        "sid",
        f"adm, delta: 0.5, {SLOW_HEADS}",
        f"adp, pixel_weight: 0, {SLOW_HEADS}",
        "dmdx",
    ],
)
def test_zero3_on_two_ranks_equals_local(
    method: str, tiny_teacher: Path, tmp_path: Path, pairs: Path, encoder: Path
) -> None:
    """The two ranks compute activations again, the teacher's too; the one process does not."""
    if method == "dmdx":
        method = DMDX_JOB.format(encoder=encoder)
    layout = ["train.micro_batch=1", "parallel.gradient_checkpointing=true"]
    equals_local(method, tiny_teacher, tmp_path, pairs, *layout)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["sam"], indirect=True)
@pytest.mark.parametrize(
    "method",
    ["sid", f"adm, delta: 0.5, {SLOW_HEADS}", f"adp, pixel_weight: 0, {SLOW_HEADS}", "dmdx"],
)
def test_two_ranks_on_one_video_equal_local(
    method: str, tiny_teacher: Path, tmp_path: Path, pairs: Path, encoder: Path
) -> None:
    """All activations are computed again but the attention's; dmdx is ADP, then ADM.

    ``tests/parallel/test_sequence_zero3.py`` compares each gradient with all of them computed
    again.
    """
    if method == "dmdx":
        method = DMDX_JOB.format(encoder=encoder)
    layout = ["parallel.sequence=2", "parallel.gradient_checkpointing=selective"]
    equals_local(method, tiny_teacher, tmp_path, pairs, *layout)


def equals_local(method: str, teacher: Path, tmp_path: Path, pairs: Path, *layout: str) -> None:
    """Trains in one process and on two ranks of that layout."""
    settings = ["train.iterations=3", "train.clip=100.0"]
    one = make(teacher, tmp_path / "one", pairs, f"name: {method}", *settings)
    distill(one, quiet=True)
    two = make(
        teacher,
        tmp_path / "two",
        pairs,
        f"name: {method}",
        *settings,
        "parallel.strategy=zero3",
        *layout,
    )
    train(two, 2)
    compare_traces(read_trace(one.output.dir), read_trace(two.output.dir))
    ours = weights_of(one.output.dir / "checkpoints" / "step_000003")
    theirs = weights_of(two.output.dir / "checkpoints" / "step_000003")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


def compare_traces(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Losses to 1e-4, gradient norms to 1e-3.

    GroupNorm of a head's few places here enlarges rounding: one process with micro-batches of one
    sample instead of two differs by as much.
    """
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            rtol = 1e-3 if key == "grad_norm" else 1e-4
            torch.testing.assert_close(value, other[key], rtol=rtol, atol=1e-5)


def test_encoded_videos_for_the_gan_term(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        frames = torch.randint(0, 255, (5, 32, 32, 3), generator=generator, dtype=torch.uint8)
        write_video(frames.numpy(), videos / f"{index}.mp4", 8)
        (videos / f"{index}.txt").write_text("a red circle")
    job = str(job_file(tiny_teacher, tmp_path))
    out = tmp_path / "latents"
    command = ["encode-videos", str(videos), "--job", job, "--out", str(out), "--shard", "2"]
    assert run_cli([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"latents": str(out)}
    folder = LatentFolder(out)
    assert len(folder) == 3 and not folder.has_noise
    method = f"name: dmd2, fake_score_updates: 1, gan_weight: 0.1, {HEADS}"
    run = distill(make(tiny_teacher, tmp_path / "gan", out, method), quiet=True)
    assert read_trace(run)[0].keys() >= {"dmd", "gan", "fake", "discriminator"}
    with pytest.raises(UserError, match="holds encoded videos, adp needs ODE pairs"):
        distill(make(tiny_teacher, tmp_path / "adp", out, f"name: adp, pixel_weight: 0, {HEADS}"))
    (videos / "0.txt").unlink()
    refused(capsys, str(videos), job, str(tmp_path / "x"), "0.txt: is missing; put each video's")
    (videos / "0.txt").write_bytes(b"\xff")
    refused(capsys, str(videos), job, str(tmp_path / "x"), "0.txt:1: byte 0xff is not UTF-8")
    (videos / "0.txt").write_text("a blue square")
    (videos / "0.mp4").write_bytes(b"no video")
    refused(capsys, str(videos), job, str(tmp_path / "x"), "0.mp4: cannot be read as a video")
    refused(capsys, str(tmp_path), job, str(tmp_path / "x"), f"{tmp_path}: has no .mp4 files")


def refused(
    capsys: pytest.CaptureFixture[str], videos: str, job: str, out: str, message: str
) -> None:
    capsys.readouterr()
    assert run_cli(["encode-videos", videos, "--job", job, "--out", out]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
