"""Runs a student: the library's rollout on the schedule that came with the weights.

B batch, C channels, T latent frames, h, w latent height and width, F frames, H, W, S text tokens,
D text width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.checks import Checked, check_student, wanted_size
from lightx2v_sgmd import attention as kernels
from lightx2v_sgmd.console import note, progress
from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.models.wan import (
    TextEncoder,
    WanModel,
    decode_latents,
    fold_text_padding,
    pad_text,
    velocity,
)
from lightx2v_sgmd.quiet import no_library_bars
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.video import WAN_FPS, Frames

_TOKENS_AT_ONCE = 4096
"""Latent positions per batch unless the caller says otherwise: 16 small videos or one large."""


@dataclass(frozen=True)
class Generation:
    """What ``Student.generate`` made.

    Attributes:
        prompts: One per video.
        seeds: One per video; the same seed, prompt and size give the same video in any batch.
        latents: ``[N, C, T, h, w]`` float32, normalised as the network sees them.
        videos: Each ``[F, H, W, 3]`` uint8; empty if decoding was not asked for.
        fps: Frames per second.
        seconds: Wall time by stage: ``text``, ``denoise``, ``decode``.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    videos: tuple[Frames, ...]
    fps: float
    seconds: dict[str, float]


class Student:
    """Loaded weights. The text encoder and the VAE are loaded when first needed."""

    def __init__(
        self, checked: Checked, attention: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.checked = checked
        self.attention = attention
        self.device = device
        self.dtype = dtype
        self.transformer = self._load_transformer()
        self._text_encoder: TextEncoder | None = None
        self._vae: Any = None

    def _load_transformer(self) -> Any:
        with no_library_bars():
            transformer = self.model.load_transformer(self.dtype).to(self.device)
        kernels.apply(transformer, self.attention)
        return transformer.eval().requires_grad_(False)

    @property
    def model(self) -> WanModel:
        """Its configuration."""
        return self.checked.model

    @property
    def schedule(self) -> Schedule:
        """The steps it runs."""
        return self.checked.schedule

    @property
    def fps(self) -> float:
        """Frames per second of its videos."""
        manifest = self.checked.manifest
        return WAN_FPS if manifest is None else manifest.video.fps

    def noise(self, seed: int, shape: tuple[int, int, int, int]) -> Tensor:
        """The start of one video, ``[C, T, h, w]`` float32.

        It is what diffusers draws from the same generator; drawn on the CPU, so that every machine
        starts from the same noise.
        """
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Tensor]:
        """Each prompt's embedding ``[S_i, D]`` on the CPU; says which prompts are cut.

        On a GPU the encoder is freed afterwards: it is larger than small students.
        """
        if self._text_encoder is None:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            with no_library_bars():
                self._text_encoder = self.model.load_text_encoder(dtype)
            self._text_encoder.network.to(self.device)
        for line in self._cut(prompts, self._text_encoder.tokenizer):
            note(line, quiet)
        # One at a time: padding would change the last bits with the company that a prompt keeps.
        rows = [self._text_encoder.encode([prompt])[0].cpu() for prompt in prompts]
        if self.device.type != "cpu":
            self._text_encoder = None
            torch.cuda.empty_cache()
        return rows

    def _cut(self, prompts: Sequence[str], tokenizer: Any) -> Iterator[str]:
        limit = self.model.text_length
        for number, prompt in enumerate(prompts, start=1):
            # A token stands for one byte at least; the first space and the end are tokens, too.
            if len(prompt.encode()) + 2 <= limit:
                continue
            tokens = tokenizer(" ".join(prompt.split()), verbose=False).input_ids
            if len(tokens) > limit:
                lost = tokenizer.decode(tokens[limit - 1 : -1]).strip()
                yield (
                    f"prompt {number} has {len(tokens)} tokens, the model reads {limit}; "
                    f"cut off: {lost[:80]!r}{' ...' if len(lost) > 80 else ''}"
                )

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        on_step: Callable[[int, Tensor], None] | None = None,
        quiet: bool = True,
    ) -> Generation:
        """Makes one video per prompt.

        Args:
            prompts: One or several.
            seeds: One per prompt; or the first one's, and each next prompt takes the next number.
            height: In pixels; default as trained.
            width: In pixels; default as trained.
            num_frames: ``4k + 1``; default as trained.
            batch_size: Videos denoised together; does not change them beyond rounding.
            decode: Whether to make frames, not latents only.
            on_step: Called after each step of each batch with its index and the latents
                ``[B, C, T, h, w]``; it may raise to cancel.
            quiet: No progress bar.

        Raises:
            UserError: a size that the model cannot make, or seeds that do not match the prompts.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        numbers = seed_list(seeds, len(texts))
        shape = self.model.latent_shape(*wanted_size(self.checked, height, width, num_frames))
        together = batch_size or max(
            1, min(16, _TOKENS_AT_ONCE // (shape[1] * shape[2] * shape[3]))
        )
        seconds: dict[str, float] = {}
        with _timed(seconds, "text"):
            rows = self.encode(texts, quiet)
        with (
            _timed(seconds, "denoise"),
            progress(len(texts) * len(self.schedule), "denoising", quiet) as bar,
        ):
            latents = []
            for start in range(0, len(texts), together):
                part = slice(start, start + together)
                noise = torch.stack([self.noise(seed, shape) for seed in numbers[part]])

                def report(step: int, x_t: Tensor) -> None:
                    bar.advance(x_t.shape[0])
                    if on_step is not None:
                        on_step(step, x_t)

                latents.append(self._denoise(noise, rows[part], report))
        with _timed(seconds, "decode"):
            videos = self._decode(latents, quiet) if decode else ()
        return Generation(
            tuple(texts), tuple(numbers), torch.cat(latents), videos, self.fps, seconds
        )

    def _denoise(
        self, noise: Tensor, rows: Sequence[Tensor], on_step: Callable[[int, Tensor], None]
    ) -> Tensor:
        text = pad_text(rows).to(self.device)
        network = self._network(text.shape[1])
        x0 = rollout(
            lambda x_t, sigma: velocity(network, x_t, sigma, text),
            noise.to(self.device),
            self.schedule,
            on_step=on_step,
        )
        return x0.float().cpu()

    def _network(self, text_rows: int) -> Any:
        """The network, with the text's padding folded where that helps: on a CPU, with plain SDPA.

        Folding needs the text to have no more rows than the network is wide; a longer one gets the
        network as it is.
        """
        if self.device.type != "cpu" or self.attention != "sdpa":
            return self.transformer
        config = self.model.transformer_config
        if text_rows <= self.model.num_heads * int(config["attention_head_dim"]):
            fold_text_padding(self.transformer)
        elif getattr(self.transformer, "text_padding_is_folded", False):
            self.transformer = self._load_transformer()
        return self.transformer

    def _decode(self, latents: Sequence[Tensor], quiet: bool) -> tuple[Frames, ...]:
        if self._vae is None:
            # In float32 as diffusers advises for Wan: bfloat16 shows as banding.
            self._vae = self.model.load_vae(torch.float32).to(self.device)
        videos: list[Frames] = []
        with progress(sum(len(part) for part in latents), "decoding", quiet) as bar:
            for part in latents:
                for one in torch.split(part, 1):
                    videos.extend(decode_latents(self._vae, one.to(self.device)).cpu().numpy())
                    bar.advance(1)
        return tuple(videos)


def load_student(
    path: str | Path,
    *,
    attention: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    assume_schedule: str | None = None,
) -> Student:
    """Loads exported weights, after checking that they are whole and meant for this engine.

    Args:
        path: A folder that ``lightx2v-sgmd export --format diffusers`` wrote.
        attention: ``auto``, or a kernel: ``flash3``, ``flash2``, ``xformers``, ``sdpa``.
        dtype: Default float32 on a CPU, bfloat16 on a GPU.
        device: Default the GPU if there is one.
        assume_schedule: ``"sgmd"`` runs weights that carry no schedule on SGMD's.

    Raises:
        UserError: pickles, damaged or missing files, keys that do not fit, a schedule that is
            another or missing, a kernel that cannot run.
    """
    return load_checked(check_student(path, assume_schedule), attention, dtype, device)


def load_checked(
    checked: Checked,
    attention: str = "auto",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Student:
    """The second half of ``load_student``: loads a folder that ``check_student`` accepted."""
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is no device; use cpu, cuda or cuda:1") from error
    kind = dtype or (torch.float32 if where.type == "cpu" else torch.bfloat16)
    head_dim = int(checked.model.transformer_config["attention_head_dim"])
    kernel = kernels.choose(attention, where, kind, head_dim)
    return Student(checked, kernel, where, kind)


def seed_list(seeds: int | Sequence[int], count: int) -> list[int]:
    """One seed per video: as given, or counting up from the first.

    Raises:
        UserError: there are not as many as videos, or one is out of range.
    """
    numbers = [seeds + i for i in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(numbers) != count:
        raise UserError(f"seed: {len(numbers)} seeds for {count} prompts; give one of each, or one")
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= 2**63:
        raise UserError(f"seed: {seeds} is outside 0 ... 2^63 - 1")
    return numbers


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
