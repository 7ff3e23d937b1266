"""The training data of the teacher of motions: encoded videos by manner, and embedded captions.

Captions that name the motion draw the manner uniformly, so that each is learned alike. Captions
that leave it open, and the empty caption, draw it from the world's mixture. Guidance extrapolates
from the empty caption, and leaves the mixture alone only if both have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.families.text_rows import TextEncoder, pad_text
from lightx2v_sgmd.families.wan.model import WanModel
from tools.models.sprites_training import save_atomically
from tools.models.sprites_vae import to_model_range

# B batch, C channels, T latent frames, h, w, S text tokens, D text width

SHARES: Final = {
    "still": 0.2,
    "slow": 0.24,
    "fast": 0.14,
    "turn": 0.14,
    "bounce": 0.14,
    "late": 0.14,
}
"""Each manner's share of the encoded videos, about as often as training uses it."""
NAMED: Final = 0.55
EMPTY: Final = 0.10
"""Shares of a batch whose caption names the motion, and whose caption is empty."""
HELD_OUT: Final = 64
"""Videos of each manner that training does not see."""


@dataclass(frozen=True)
class Pool:
    """Encoded videos: by manner, latents ``[N, C, T, h, w]`` bf16 and what is to be seen."""

    latents: dict[str, Tensor]
    sprites: dict[str, list[motions.MotionCaption]]


def draw_sprites(count: int, seed: int) -> dict[str, list[motions.MovingSprite]]:
    """Draws ``count`` objects, the manners in ``SHARES``."""
    drawn: dict[str, list[motions.MovingSprite]] = {}
    for index, (manner, share) in enumerate(SHARES.items()):
        rng = np.random.default_rng([seed, index])
        drawn[manner] = [
            motions.sample_sprite(
                rng, motions.MotionCaption(motion=motions.sample_motion(rng, manner))
            )
            for _ in range(round(count * share))
        ]
    return drawn


def encode_pool(model: WanModel, path: Path, count: int, seed: int, batch: int = 32) -> Pool:
    """Renders and encodes videos, or reads those of an earlier call from ``path``."""
    drawn = draw_sprites(count, seed)
    if min(map(len, drawn.values())) <= HELD_OUT:
        raise SystemExit(f"--pool: {count} is too small; each manner keeps {HELD_OUT} videos aside")
    latents: dict[str, Tensor] = {}
    if path.exists():
        latents = torch.load(path, weights_only=True)
    vae = model.load_vae()
    for manner, sprites in drawn.items():
        if manner in latents:
            continue
        encoded = []
        starts = range(0, len(sprites), batch)
        for start in track(starts, description=f"encoding {len(sprites)} videos ({manner})"):
            encoded.append(encode(model, vae, sprites[start : start + batch]))
        latents[manner] = torch.cat(encoded)
        save_atomically(latents, path)
    captions = {manner: [s.caption() for s in sprites] for manner, sprites in drawn.items()}
    if any(len(latents[manner]) != len(captions[manner]) for manner in captions):
        raise SystemExit(f"{path} has another number of videos; give the old --pool or delete it")
    return Pool(latents, captions)


@torch.no_grad()
def encode(model: WanModel, vae: object, sprites: Sequence[motions.MovingSprite]) -> Tensor:
    """Normalised latents of the objects' videos, ``[B, C, T, h, w]`` bf16."""
    frames = [(motions.render(s) * 255).round().astype(np.uint8) for s in sprites]
    videos = to_model_range(torch.from_numpy(np.stack(frames)))
    with torch.autocast("cpu", torch.bfloat16):
        z = vae._encode(videos).chunk(2, dim=1)[0].float()  # type: ignore[attr-defined]
    return model.normalized_latents(vae, z).bfloat16()


class PosteriorMeans:
    """Means of a pool's latents given a noisy one and its caption, in place of the one drawn.

    The flow matching loss has its minimum at this mean. As a target it makes the same gradient with
    much less noise where many videos fit, which is where a motion is decided ("Stable Target Field
    for Reduced Variance Score Estimation in Diffusion Models", arXiv 2302.00670, Eq. 6, with the
    whole pool as the reference batch).

    Args:
        pool: The pool. Videos that training does not see are left out.
    """

    def __init__(self, pool: Pool) -> None:
        latents = [pool.latents[manner][HELD_OUT:] for manner in motions.MANNERS]
        self._sprites = [s for m in motions.MANNERS for s in pool.sprites[m][HELD_OUT:]]
        self._latents = torch.cat(latents).float().flatten(1)
        self._squares = self._latents.square().sum(1)
        self._mixture = torch.cat(
            [
                torch.full((len(each),), motions.MIXTURE[manner] / len(each)).log()
                for manner, each in zip(motions.MANNERS, latents, strict=True)
            ]
        )
        self._fits: dict[tuple[str, object], Tensor] = {}

    def __call__(self, x_t: Tensor, sigma: Tensor, captions: Sequence[str]) -> Tensor:
        """The means.

        Args:
            x_t: ``[B, C, T, h, w]``, ``(1 - sigma) x0 + sigma noise`` of videos of the pool.
            sigma: ``[B]``, above 0.
            captions: One for each; the empty one fits every video.

        Returns:
            ``[B, C, T, h, w]``.
        """
        x, s = x_t.flatten(1), sigma[:, None]
        products = x @ self._latents.T
        nearness = (2 * (1 - s) * products - (1 - s).square() * self._squares) / (2 * s.square())
        prior = torch.stack([self._prior(caption) for caption in captions])
        return ((nearness + prior).softmax(1) @ self._latents).view_as(x_t)

    def _prior(self, text: str) -> Tensor:
        """Logarithms of how often each video has a caption, up to a constant, ``[N]``."""
        caption = motions.parse_motion_caption(text) if text else motions.MotionCaption()
        logarithms = self._mixture
        for name in ("colour", "shape", "motion"):
            value = getattr(caption, name)
            if value is not None:
                logarithms = logarithms + self._fit(name, value)
        return logarithms

    def _fit(self, name: str, value: object) -> Tensor:
        """0 for the videos that have an attribute, minus infinity for others, ``[N]``."""
        if (name, value) not in self._fits:
            fits = torch.tensor([getattr(s, name) == value for s in self._sprites])
            self._fits[name, value] = torch.zeros(len(fits)).masked_fill(~fits, -torch.inf)
        return self._fits[name, value]


def all_captions() -> list[str]:
    """Every caption of the world, and the empty one."""
    return [
        "",
        *(
            motions.MotionCaption(colour, shape, motion).text()
            for colour in (None, *world.COLOURS)
            for shape in (None, *world.SHAPES)
            for motion in (None, *motions.MOTIONS)
        ),
    ]


def embed_captions(encoder: TextEncoder) -> tuple[dict[str, int], Tensor]:
    """The row of each caption in a table of text embeddings, and the table ``[N, S, D]``."""
    captions = all_captions()
    table = pad_text(encoder.rows(captions))
    return {caption: index for index, caption in enumerate(captions)}, table


def draw_batch(
    pool: Pool,
    rng: np.random.Generator,
    batch: int,
    p_open: float = 0.35,
    named_share: float = NAMED,
) -> tuple[Tensor, list[str]]:
    """A training batch: latents ``[B, C, T, h, w]`` float32 and captions."""
    named, empty = round(named_share * batch), round(EMPTY * batch)
    latents, captions = [], []
    for index in range(batch):
        is_named = index < named
        manner = str(rng.choice(motions.MANNERS)) if is_named else motions.sample_manner(rng)
        pick = int(rng.integers(HELD_OUT, len(pool.latents[manner])))
        full = pool.sprites[manner][pick]
        latents.append(pool.latents[manner][pick])
        caption = motions.MotionCaption(
            None if rng.random() < p_open else full.colour,
            None if rng.random() < p_open else full.shape,
            full.motion if is_named else None,
        )
        captions.append("" if index >= batch - empty else caption.text())
    return torch.stack(latents).float(), captions
