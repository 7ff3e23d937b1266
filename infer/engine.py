"""Runs a student: the library's rollout on the schedule that came with the weights.

B batch, C channels, T latent frames, h, w latent height and width, F frames, H, W, S text tokens,
D text width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from infer.checks import Checked, check_student, wanted_size
from infer.engine_plan import EnginePlan, make_plan, memory_explained
from infer.multi_gpu import share_tiles
from infer.network.offload import PartSwitcher
from infer.options import Options
from infer.parts import TEXT_ROWS, StudentParts
from infer.result import Generation, Video
from infer.stopping import Cancel, OnStep, reporter, stoppable
from infer.text import Texts
from infer.vae.decoding import Tiling, decode_stream, videos_at_once
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import TEXT, Conditioning, Embedding
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.files.video import Frames
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.sampling.sampler import fresh_noise_for, noise_for
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.images import EmbeddingsWithImages, encode_images

_TOKENS_AT_ONCE = 4096
"""Latent positions per batch unless the caller says otherwise: 16 small videos or one large."""


class Student:
    """Loaded weights. The text encoder and the VAE are loaded when first needed.

    With several ``ranks`` all of them call the same methods with the same arguments; latents come
    out on all of them, frames on the first.
    """

    def __init__(
        self, checked: Checked, plan: EnginePlan, ranks: Ranks | None = None, quiet: bool = True
    ) -> None:
        self.checked, self.plan, self.quiet = checked, plan, quiet
        self.ranks = ranks or Ranks(device=plan.device)
        self.device, self.dtype, self.attention = plan.device, plan.dtype, plan.attention
        self.parts = PartSwitcher(plan.device, plan.memory_mode.one_at_a_time)
        mode = plan.memory_mode
        on_cpu = mode.text_on_cpu or mode.stream_text
        self.texts = Texts(
            self.model,
            torch.device("cpu") if on_cpu else plan.device,
            plan.text_dtype,
            plan.options.text_cache,
            self.parts,
            quiet,
            mode.stream_text,
        )
        self._boundary = boundary_of(self.model.experts)
        self.loaded = StudentParts(checked, plan, self.ranks, quiet, self.parts)
        if not plan.memory_mode.one_at_a_time:
            for expert in range(len(self.model.experts)):
                self.loaded.network_of(expert)  # loads it

    @property
    def model(self) -> Model:
        """The model that the student runs as: its configuration and its parts."""
        return self.checked.model

    @property
    def schedule(self) -> Schedule:
        """The steps it runs."""
        return self.checked.schedule

    @property
    def fps(self) -> float:
        """Frames per second of its videos."""
        return self.checked.fps

    @property
    def suffix(self) -> str:
        """The suffix of the files that show what it makes: ``.mp4``, or ``.png`` of images."""
        return self.model.size_rules.suffix

    @property
    def transformer(self) -> Any:
        """The network, on its device; of a model with experts the first one's."""
        return self.loaded.network_of(0)

    @property
    def decoder(self) -> Any:
        """The VAE's decoder; see ``StudentParts.decoder``."""
        return self.loaded.decoder

    def release(self, part: str) -> None:
        """Says that a part (``NETWORK``, ``TEXT_ENCODER``) is not needed again."""
        self.loaded.release(part)

    def latent_shape(self, height: int, width: int, num_frames: int) -> tuple[int, int, int, int]:
        """``(C, T, h, w)`` of a video's latents."""
        return self.model.latent_shape(height, width, num_frames)

    def batch_for(self, size: tuple[int, int, int]) -> int:
        """The number of videos of a size (height, width, frames) denoised together by default."""
        return videos_together(self.latent_shape(*size))

    def noise(self, seed: int, shape: tuple[int, int, int, int]) -> Tensor:
        """The start of one video, ``[C, T, h, w]`` float32.

        It is what diffusers draws from the same generator; drawn on the CPU, so that every machine
        starts from the same noise.
        """
        return noise_for(self.model, seed, shape)[0]

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Embedding]:
        """Each prompt's embedding on the CPU; says which prompts are cut."""
        return self.ranks.once(lambda: self.texts.encode(prompts, quiet))

    def with_images(
        self,
        rows: Sequence[Embedding],
        images: Sequence[tuple[Path | None, tuple[int, int, int]]],
        quiet: bool = True,
        cached: bool = True,
    ) -> Sequence[Embedding]:
        """The prompts' embeddings beside what is made of the images that their videos start from.

        Args:
            rows: Each video's embedding, from ``encode``.
            images: Each video's image file, None without one, and its height, width and frames.
            quiet: No progress bar.
            cached: Keep what is made in the folder of ``--text-cache``.

        Raises:
            UserError: an image cannot be read, or there are too many for no cache.
        """
        wanted = [None if image is None else (image, size) for image, size in images]
        if not any(wanted):
            return rows
        cache = self.plan.options.text_cache if cached else None
        alone = Ranks(device=self.device)
        made = self.ranks.once(
            lambda: encode_images(self.model, wanted, alone, cache, quiet, "--text-cache")
        )
        return EmbeddingsWithImages(rows, made)

    @torch.no_grad()
    def denoise(
        self,
        rows: Sequence[Embedding],
        seeds: Sequence[int],
        size: tuple[int, int, int],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Runs the student's steps on one batch.

        Args:
            rows: Each video's embedding, from ``encode``.
            seeds: One per video.
            size: Height, width and frames.
            on_step: Called after each step; it may raise to cancel.

        Returns:
            ``[B, C, T, h, w]`` float32 on the CPU.
        """
        shape = self.latent_shape(*size)
        noise = torch.stack([self.noise(seed, shape) for seed in seeds])
        conditioning = self.model.conditioning(rows)
        if self.model.takes_image == "always" and len(conditioning) == 1:
            raise UserError(
                f"{self.model.path}: starts videos from an image; use `lightx2v-sgmd generate "
                "--image FILE`, or give `denoise` what `with_images` made"
            )
        text_rows = conditioning["text"].shape[1]
        if self.plan.compile and self.model.embedding_shapes[TEXT][0] is None:
            padding = (0, 0, 0, -text_rows % TEXT_ROWS)
            text = torch.nn.functional.pad(conditioning[TEXT], padding)
            conditioning = Conditioning({**conditioning, TEXT: text})
        conditioning = conditioning.to(self.device)

        def predict(x_t: Tensor, time: Tensor) -> Tensor:
            network = self.loaded.network_for(text_rows, expert_at(self._boundary, time))
            return self.model.predict(network, x_t, time, conditioning)

        with memory_explained(self.model, self.plan, size, len(seeds), "denoising"):
            x0 = rollout(
                predict,
                noise.to(self.device),
                self.schedule,
                on_step=on_step,
                interpolant=self.model.interpolant,
                fresh_noise=fresh_noise_for(self.model, seeds, shape),
            )
            return x0.float().cpu()

    def decode(self, latents: Tensor) -> Iterator[Frames]:
        """One video's frames, chunk by chunk.

        Args:
            latents: ``[C, T, h, w]``.

        Yields:
            ``[F, H, W, 3]`` uint8: the first frame, then four or eight at a time; all frames at
            once in families without streamed decoding.
        """
        return (chunk[0] for chunk in self._decode(latents[None]))

    def decode_each(self, latents: Tensor) -> Iterator[Iterator[Frames]]:
        """The same for each of several videos; small ones are decoded together.

        Args:
            latents: ``[B, C, T, h, w]``.
        """
        count = videos_at_once(*self._pixels(latents)) if self.ranks.size == 1 else 1
        for start in range(0, len(latents), count):
            group = latents[start : start + count]
            together: list[Frames] = []
            if len(group) > 1:
                # If this fails, each by itself shows whether it can be done with less memory.
                with suppress(UserError):
                    together = list(self._decode(group))
            for index, one in enumerate(group):
                yield iter([chunk[index] for chunk in together]) if together else self.decode(one)

    def _decode(self, latents: Tensor) -> Iterator[Frames]:
        """Chunks ``[B, F, H, W, 3]``."""
        height, width = self._pixels(latents)
        rules = self.model.size_rules
        if "streamed_decoding" not in self.model.features:
            if not self.ranks.first:  # it decodes alone
                return
            size = (height, width, rules.temporal * (latents.shape[2] - 1) + 1)
            with memory_explained(self.model, self.plan, size, len(latents), "decoding"):
                whole = self.model.decode_latents(self.decoder, latents.to(self.device))
            yield whole.cpu().numpy()
            return
        size = (height, width, rules.temporal * (latents.shape[2] - 1) + 1)
        tiling = Tiling() if self.plan.memory_mode.tile_vae else None
        share = share_tiles(self.ranks)
        tiles = tiling.count(height, width) if tiling is not None and share is not None else 1
        if self.ranks.rank >= tiles:
            return
        with memory_explained(self.model, self.plan, size, len(latents), "decoding"):
            count = self.plan.memory_mode.frames_at_once
            here = latents.to(self.device)
            for chunk in decode_stream(self.decoder, here, tiling, share, count):
                yield chunk.cpu().numpy()

    def _pixels(self, latents: Tensor) -> tuple[int, int]:
        """Height and width of the frames."""
        ratio = self.model.size_rules.spatial
        return latents.shape[-2] * ratio, latents.shape[-1] * ratio

    # A str is a sequence of str, too; the first signature is the one that counts for it.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str,
        seed: int = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        quiet: bool = True,
    ) -> Video: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        seed: int | Sequence[int] = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        quiet: bool = True,
    ) -> Generation: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        seed: int | Sequence[int] = 0,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        quiet: bool = True,
    ) -> Video | Generation:
        """Makes one video, or one per prompt.

        Args:
            prompt: One, which gives a ``Video``, or several, which give a ``Generation``.
            seed: One per prompt; or the first one's, and each next prompt takes the next number.
            height: In pixels; default as trained.
            width: In pixels; default as trained.
            num_frames: ``4k + 1``; default as trained.
            batch_size: Videos denoised together; does not change them beyond rounding.
            decode: True makes frames, False latents only.
            on_step: Called after each step of each batch with its index and the latents
                ``[B, C, T, h, w]``; it may raise to cancel.
            cancel: Asked between steps and between chunks of frames whether to stop.
            quiet: No progress bar.

        Raises:
            UserError: a size that the model cannot make, seeds that do not match the prompts, or
                latents that are not finite.
            Cancelled: ``cancel`` said so.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        numbers = seed_list(seed, len(texts))
        size = wanted_size(self.checked, height, width, num_frames)
        together = batch_size or self.batch_for(size)
        timings: dict[str, float] = {}
        with self.timed(timings, "text"):
            rows = self.encode(texts, quiet)
        with (
            self.timed(timings, "denoise"),
            progress(len(texts) * len(self.schedule), "denoising", quiet) as bar,
        ):
            report = reporter(bar, on_step, cancel)
            latents = torch.cat(
                [
                    self.denoise(rows[i : i + together], numbers[i : i + together], size, report)
                    for i in range(0, len(texts), together)
                ]
            )
        if not latents.isfinite().all():
            raise UserError(
                f"{self.checked.model.path}: the network gave values that are not finite; its "
                "weights are damaged, or fp16 is too narrow for them: use bf16 or fp32"
            )
        with self.timed(timings, "decode"), progress(len(texts), "decoding", quiet) as bar:
            videos = []
            for chunks in self.decode_each(latents) if decode else ():
                videos.append(np.concatenate(list(stoppable(chunks, cancel))))
                bar.advance()
        made = Generation(tuple(texts), tuple(numbers), latents, tuple(videos), self.fps, timings)
        return made[0] if isinstance(prompt, str) else made

    @contextmanager
    def timed(self, timings: dict[str, float], stage: str) -> Iterator[None]:
        """Adds a block's wall time to a stage; waits for the GPU, which works on by itself."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start


def videos_together(shape: tuple[int, int, int, int]) -> int:
    """The number of videos with latents ``(C, T, h, w)`` that are denoised together by default."""
    return max(1, min(16, _TOKENS_AT_ONCE // (shape[1] * shape[2] * shape[3])))


def load_student(
    path: str | Path, options: Options | None = None, *, quiet: bool = True
) -> Student:
    """Loads weights, after checking that they are whole and meant for this engine.

    Args:
        path: A student that ``lightx2v-sgmd export`` wrote (a folder, or a file of a network
            alone), or a base model for LoRAs: in diffusers' or the original layout, or ``sprites``,
            the bundled teacher.
        options: Precision, device, memory, LoRAs and so on; see ``infer.Options``.
        quiet: Show no progress bars while weights are loaded.

    Raises:
        UserError: the files are pickles, damaged, missing or do not fit; the schedule is missing or
            one that this engine does not run; or an option cannot run here.
    """
    options = options or Options()
    checked = check_student(
        path,
        options.assume_schedule,
        options.loras,
        options.base,
        options.skip_image_layers,
        quiet=quiet,
    )
    video = checked.video
    size = (video.height, video.width, video.num_frames) if video else None
    plan = make_plan(checked.model, options, size, teacher_dtype=checked.teacher_dtype)
    return Student(checked, plan, quiet=quiet)


def seed_list(seeds: int | Sequence[int], count: int) -> list[int]:
    """One seed per video: as given, or counting up from the first.

    Raises:
        UserError: there are not as many as videos, or one is out of range.
    """
    numbers = [seeds + i for i in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(numbers) != count:
        raise UserError(f"seed: {len(numbers)} seeds for {count} prompts; give one of each, or one")
    if min(numbers, default=0) < 0 or max(numbers, default=0) >= 2**63:
        raise UserError(f"seed: {seeds} is out of range; use 0 to 2^63 - 1")
    return numbers
