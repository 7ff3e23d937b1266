"""The training data of the teacher of motions, its export, and the bars of its model card."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.apps.sprites import motions
from lightx2v_sgmd.apps.sprites.motion_verdicts import ATTRIBUTES
from lightx2v_sgmd.families.wan.opening import bundled_teacher, open_wan
from tools.models import measure_motions_teacher, motions_pool, train_motions_teacher


def pool() -> motions_pool.Pool:
    """Latents that say which manner they are of."""
    drawn = motions_pool.draw_sprites(1000, seed=0)
    latents = {
        manner: torch.full((len(sprites), 1, 1, 1, 1), float(motions.MANNERS.index(manner)))
        for manner, sprites in drawn.items()
    }
    return motions_pool.Pool(
        {manner: each.bfloat16() for manner, each in latents.items()},
        {manner: [s.caption() for s in sprites] for manner, sprites in drawn.items()},
    )


def test_named_captions_are_even_and_others_have_the_mixture() -> None:
    videos, rng = pool(), np.random.default_rng(0)
    shown: dict[str, Counter[str]] = {"named": Counter(), "open": Counter(), "empty": Counter()}
    for _ in range(100):
        latents, captions = motions_pool.draw_batch(videos, rng, 64)
        for latent, text in zip(latents, captions, strict=True):
            manner = motions.MANNERS[int(latent.item())]
            caption = motions.parse_motion_caption(text) if text else None
            motion = None if caption is None else caption.motion
            kind = "empty" if caption is None else "open" if motion is None else "named"
            assert motion is None or motion.manner == manner
            shown[kind][manner] += 1
    totals = {kind: sum(counts.values()) for kind, counts in shown.items()}
    assert totals == {"named": 3500, "open": 2300, "empty": 600}
    for manner, share in motions.MIXTURE.items():
        assert shown["named"][manner] / totals["named"] == pytest.approx(1 / 6, abs=0.03)
        assert shown["open"][manner] / totals["open"] == pytest.approx(share, abs=0.04)
        assert shown["empty"][manner] / totals["empty"] == pytest.approx(share, abs=0.07)


def random_pool() -> motions_pool.Pool:
    """A pool of 1,000 videos with latents of their own, ``[1, 1, 2, 2]`` each."""
    generator = torch.Generator().manual_seed(0)
    videos = pool()
    latents = {
        manner: torch.randn(len(each), 1, 1, 2, 2, generator=generator).bfloat16()
        for manner, each in videos.latents.items()
    }
    return motions_pool.Pool(latents, videos.sprites)


@pytest.mark.parametrize(
    "text", ["", "a red thing", "a still circle", "a thing moving left and right"]
)
def test_the_mean_given_a_noisy_video_is_that_of_bayes_rule(text: str) -> None:
    videos = random_pool()
    wanted = motions.parse_motion_caption(text) if text else motions.MotionCaption()
    sigma, x_t = 0.7, torch.randn(1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    weights, total = 0.0, torch.zeros(1, 1, 2, 2)
    for manner, sprites in videos.sprites.items():
        kept = list(zip(videos.latents[manner], sprites, strict=True))[motions_pool.HELD_OUT :]
        for latent, shown in kept:
            pairs = (
                (wanted.colour, shown.colour),
                (wanted.shape, shown.shape),
                (wanted.motion, shown.motion),
            )
            if any(word not in (None, has) for word, has in pairs):
                continue
            away = (x_t[0] - (1 - sigma) * latent.float()).square().sum() / (2 * sigma**2)
            weight = motions.MIXTURE[manner] / len(kept) * float(torch.exp(-away))
            weights, total = weights + weight, total + weight * latent.float()
    found = motions_pool.PosteriorMeans(videos)(x_t, torch.tensor([sigma]), [text])
    assert torch.allclose(found[0], total / weights, atol=1e-5)


def test_the_mean_given_a_nearly_clean_video_is_that_video() -> None:
    videos = random_pool()
    x0, captions = motions_pool.draw_batch(videos, np.random.default_rng(3), 16)
    sigma = torch.full((16,), 0.01)
    x_t = (1 - 0.01) * x0 + 0.01 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    means = motions_pool.PosteriorMeans(videos)(x_t, sigma, captions)
    assert torch.allclose(means, x0, atol=1e-3)


def test_most_training_times_are_where_a_motion_is_decided() -> None:
    torch.manual_seed(0)
    sigmas = torch.cat([train_motions_teacher.draw_sigmas(64) for _ in range(50)])
    low, high = train_motions_teacher.DECIDING
    assert 0 < sigmas.min() < 0.1 and 0.99 < sigmas.max() <= 1
    assert ((sigmas >= low) & (sigmas <= high)).float().mean() > 0.7
    assert torch.corrcoef(torch.stack([sigmas[:-1], sigmas[1:]]))[0, 1].abs() < 0.1


def test_every_caption_that_training_draws_is_embedded() -> None:
    captions = set(motions_pool.all_captions())
    _, drawn = motions_pool.draw_batch(pool(), np.random.default_rng(1), 64)
    assert len(captions) == 561 and captions >= set(drawn)


def test_words_of_every_caption_can_be_told_apart() -> None:
    """The frozen text encoder gives each caption a row that no other caption of its object has."""
    encoder = open_wan("sprites").load_text_encoder(torch.float32)
    texts = [motions.MotionCaption("red", "circle", m).text() for m in (None, *motions.MOTIONS)]
    rows = encoder.rows(texts)
    for index, ours in enumerate(rows):
        for theirs in rows[:index]:
            away = torch.cdist(ours, theirs)
            assert max(away.min(0).values.max(), away.min(1).values.max()) > 1


def test_an_export_is_the_bundled_teacher_with_another_transformer(tmp_path: Path) -> None:
    network = open_wan("sprites").load_transformer(torch.float32)
    with torch.no_grad():
        network.proj_out.bias += 1
    train_motions_teacher.write_folder(tmp_path / "motions", network.state_dict())
    files = {p.relative_to(tmp_path / "motions").as_posix() for p in tmp_path.rglob("*.*")}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert files == {
        "model_index.json",
        "video.json",
        "prompts.txt",
        "transformer/config.json",
        weights,
    }
    size = (tmp_path / "motions" / weights).stat().st_size
    assert size == pytest.approx((bundled_teacher() / weights).stat().st_size, rel=0.01)
    prompts = (tmp_path / "motions" / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 2048 and all(map(motions.is_motion_caption, prompts))


ROOT = Path(__file__).resolve().parents[2]
FIGURES: dict[str, Any] = {
    "solver": "50 steps of Euler",
    "guidance": 3.0,
    "teacher": {
        "nfe": 100,
        "named": dict.fromkeys(ATTRIBUTES, 0.96),
        "open_manners": {**motions.MIXTURE, "other": 0.0},
        "open_videos": 640,
        "all_attributes": 0.9,
        "clean": 0.9,
        "videos": 880,
    },
    "vae": {"named": dict.fromkeys(ATTRIBUTES, 1.0), "videos": 300},
}
FIGURES["undistilled"] = {**FIGURES["teacher"], "nfe": 4}


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("teacher", {"named": {**dict.fromkeys(ATTRIBUTES, 1.0), "manner": 0.94}}),
        (
            "teacher",
            {"open_manners": {**motions.MIXTURE, "still": 0.41, "slow": 0.29, "other": 0.0}},
        ),
        ("teacher", {"open_videos": 599}),
        ("vae", {"named": {**dict.fromkeys(ATTRIBUTES, 1.0), "direction": 0.98}}),
    ],
)
def test_a_bar_that_is_missed_is_named_in_the_card(part: str, change: dict[str, Any]) -> None:
    assert all(ok for _, ok in measure_motions_teacher.bars(FIGURES).values())
    assert "All bars are met" in measure_motions_teacher.card(FIGURES, "notes")
    worse = {**FIGURES, part: {**FIGURES[part], **change}}
    assert not all(ok for _, ok in measure_motions_teacher.bars(worse).values())
    assert "Bars that are missed" in measure_motions_teacher.card(worse, "notes")


def test_a_part_is_called_as_the_shards_of_evaluate_are() -> None:
    assert measure_motions_teacher.read_part("2/3") == (2, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="4/3 is not K/N with K from 1 to N"):
        measure_motions_teacher.read_part("4/3")


def test_half_of_what_is_measured_can_be_asked_for() -> None:
    captions = measure_motions_teacher.captions_to_measure(24, 60, seed=3)
    assert [c.motion is None for c in captions] == [False] * 24 + [True] * 60
    assert len({c.text() for c in captions[:24]}) > 12


SHIPPED = json.loads((ROOT / "lightx2v_sgmd/assets/motions/measured.json").read_text())
MISSED: dict[str, float] = {
    "open still within 0.05 of 0.35": 0.464,
    "open fast within 0.05 of 0.12": 0.056,
}
"""The bars that the shipped weights miss, and what was measured; training can go on from them."""
BARS = measure_motions_teacher.bars(SHIPPED)


@pytest.mark.parametrize(
    "bar",
    [
        pytest.param(bar, marks=pytest.mark.xfail(reason=f"it is {MISSED[bar]}", strict=True))
        if bar in MISSED
        else bar
        for bar in BARS
    ],
)
def test_the_shipped_teacher_meets_its_bar(bar: str) -> None:
    share, is_met = BARS[bar]
    assert is_met, share


def test_the_shipped_card_says_which_bars_are_missed() -> None:
    card = (ROOT / "lightx2v_sgmd/assets/motions/README.md").read_text()
    assert MISSED == {bar: round(share, 3) for bar, (share, is_met) in BARS.items() if not is_met}
    assert all(f"{bar} (it is {share:.3f})" in card for bar, share in MISSED.items())


def test_training_goes_on_from_the_shipped_weights_or_an_earlier_run(tmp_path: Path) -> None:
    weights = {"w": torch.randn(2, 3)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({"ema": weights, "step": 3}, tmp_path / "train.pt")
    for name in ("a.safetensors", "train.pt"):
        assert torch.equal(
            train_motions_teacher.earlier_weights(tmp_path / name)["w"], weights["w"]
        )


def test_a_pool_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--pool: 100 is too small"):
        motions_pool.encode_pool(open_wan("sprites"), tmp_path / "latents.pt", 100, seed=0)
    assert not list(tmp_path.iterdir())
