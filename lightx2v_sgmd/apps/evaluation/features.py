"""Features of videos in the teacher's own network, for a Frechet distance without outside weights.

A video model that is conditioned on noise is a feature extractor at every noise level (arXiv
2306.03881). Here the video's latents get a quarter of a fixed noise, the network runs without a
prompt as far as its middle block, and the mean of that block's output over all tokens is the
feature.

Legend: C channels, T latent frames, h, w latent height and width, F, H, W video, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightx2v_sgmd.apps.evaluation.measuring import Measurements, frames_of
from lightx2v_sgmd.families.wan import (
    WanModel,
    normalized_latents,
    pad_text,
    text_dtype,
    velocity,
)
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.flow import add_noise
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.sampling.sampler import noise_for
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from lightx2v_sgmd.text.encoding import encode_prompts

SIGMA: Final = 0.25
_NOISE_SEED: Final = 0
RULES: Final = "middle block, mean over tokens, sigma 0.25, no prompt, 1"


class _Reached(Exception):
    """The middle block has run; the rest of the network is not needed."""


class TeacherFeatures:
    """Takes features of videos in a model's network.

    Args:
        model: The teacher.
        device: The device of its networks.
        dtype: Their precision.
    """

    def __init__(self, model: WanModel, device: str, dtype: torch.dtype) -> None:
        self.model, self.device = model, torch.device(device)
        rows = encode_prompts(model, [""], Ranks(device=self.device), text_dtype(dtype), cache=None)
        self.text = pad_text(list(rows)).to(self.device)
        self.network: Any = model.load_transformer(dtype, self.device).requires_grad_(False)
        self.vae = model.load_vae(device=self.device)

    @torch.no_grad()
    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """The features ``[D]`` of a video ``[F, H, W, 3]``.

        Frames beyond the last ``4k + 1`` are left out.

        Raises:
            UserError: the model cannot take a video of that size.
        """
        count = (len(frames) - 1) // 4 * 4 + 1
        self.model.latent_shape(frames.shape[1], frames.shape[2], count)
        video = torch.from_numpy(frames[:count]).permute(3, 0, 1, 2)[None].to(self.device)
        encoded = self.vae.encode(video.float() / 127.5 - 1).latent_dist.mode()
        x0 = normalized_latents(self.vae, encoded).float()
        sigma = torch.full((1,), SIGMA, device=self.device)
        noise = noise_for(_NOISE_SEED, tuple(x0.shape[1:])).to(self.device)
        return self._middle(add_noise(x0, noise, sigma), sigma).cpu().numpy()

    def _middle(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """``[D]``: the middle block's output, mean over tokens, in float32."""
        seen: list[Tensor] = []

        def look(module: Any, arguments: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen.append(hidden.float().mean(1)[0])
            raise _Reached

        blocks = self.network.blocks
        handle = blocks[len(blocks) // 2].register_forward_hook(look)
        try:
            velocity(self.network, x_t, sigma, self.text)
        except _Reached:
            pass
        finally:
            handle.remove()
        return seen[0]


def teacher_features(
    load: Callable[[], TeacherFeatures],
    model: WanModel,
    files: Sequence[Path],
    hashes: Sequence[str],
    written: WrittenFiles,
    side: str,
    quiet: bool,
) -> NDArray[np.float64]:
    """The features ``[N, D]`` of one side's videos, kept by their content.

    Args:
        load: Loads the teacher, once a video has to be looked at.
        model: The teacher.
        files: The videos.
        hashes: The hash of each.
        written: The output folder's files.
        side: ``weights`` or ``against``.
        quiet: Show no progress.
    """
    rules = f"{RULES}, {weights_digest(model, 'transformer', 'vae')}"
    store = Measurements(written, f"measured/{side}_features.json", rules)

    def measure(index: int) -> list[float]:
        try:
            values = load()(frames_of(files[index])[0])
        except UserError as error:
            text = str(error).replace("video.", "")
            raise UserError(f"{files[index]}: {text}; or leave out the metric frechet") from error
        return [float(value) for value in values]

    rows = store.of(hashes, measure, f"the teacher's features of {side}", quiet)
    return np.array(rows, np.float64)
