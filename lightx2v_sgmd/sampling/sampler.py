"""Samples a model at any size, on any steps, with or without guidance; weights can be exchanged.

Measurements of teachers, of their undistilled steps and of a run's snapshots use this sampler, and
so does the collection of ODE pairs.

Legend: C channels, T latent frames, h, w latent height and width, F, H, W video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning, Embedding
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.flow import guide
from lightx2v_sgmd.networks.adapters import load_trained
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.rollout import FreshNoise, PredictFn, rollout
from lightx2v_sgmd.sampling.teacher_steps import Solver
from lightx2v_sgmd.sampling.unipc import UniPC
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoding import encode_prompts
from lightx2v_sgmd.text.images import ImageTensors, encode_images

Videos = NDArray[np.uint8]


def noise_for(model: Model, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise ``[1, C, T, h, w]`` of one video, the same wherever it is made.

    It is what the model's stock pipeline draws from a CPU generator of that seed.
    """
    return model.draw_noise(shape, torch.Generator("cpu").manual_seed(seed))


def fresh_noise_for(model: Model, seeds: Sequence[int], shape: tuple[int, ...]) -> FreshNoise:
    """The noise of later steps of a rollout, for the solver ``renoise``.

    Each video's random numbers go on where ``noise_for`` of its seed ends, one draw a step, so that
    a video does not depend on those beside it.

    Args:
        model: The model.
        seeds: The videos' seeds.
        shape: ``(C, T, h, w)``.

    Returns:
        A function that gives ``[B, C, T, h, w]`` on the CPU; it is called once for each step, in
        their order.
    """
    generators: list[torch.Generator] = []

    def noise_at(step: int) -> torch.Tensor:
        if not generators:
            generators.extend(torch.Generator("cpu").manual_seed(seed) for seed in seeds)
            noise_at(step)  # the noise that the videos started from
        return torch.cat([model.draw_noise(shape, each) for each in generators])

    return noise_at


class VideoSampler:
    """Samples a network of one model.

    Args:
        model: The model whose network, VAE and text encoder are used.
        schedule: The steps of the sampler: a schedule for Euler, or UniPC.
        size: Height and width in pixels, and the number of frames.
        guidance_scale: Guidance in the form of Ho and Salimans; 1 runs no unconditional pass.
        negative_prompt: The prompt that guidance moves away from.
        batch: Number of videos that run together.
        on_batch: Called with the number of videos done after each batch.
        device: The device of the networks; noise is always drawn on the CPU.
        dtype: The teacher's precision, for the network and the text encoder.
        guidance_scale_2: The guidance of the second expert, for a model that has two; None is the
            same for both.
        images: The image that the video of a prompt starts from, for models that take one.
        image_cache: The folder of what images are encoded to; None keeps that in memory.
    """

    def __init__(
        self,
        model: Model,
        schedule: Solver,
        size: tuple[int, int, int],
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        *,
        batch: int = 32,
        on_batch: Callable[[int], None] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        guidance_scale_2: float | None = None,
        images: Mapping[str, Path] | None = None,
        image_cache: Path | None = None,
    ) -> None:
        self._images, self._image_cache = images or {}, image_cache
        if model.takes_image == "always" and not self._images:
            raise UserError(
                f"{model.path} starts videos from an image, and these are sampled from text alone; "
                "use a text-to-video model"
            )
        self.model = model
        self.schedule = schedule
        self.guidance_scale = guidance_scale
        second = guidance_scale if guidance_scale_2 is None else guidance_scale_2
        self._scales = (guidance_scale, second)[: len(model.experts)]
        self._boundary = boundary_of(model.experts)
        self.negative_prompt = negative_prompt
        self.batch = batch
        self.on_batch = on_batch
        self.device = torch.device(device)
        self.size, self.shape = size, model.latent_shape(*size)
        self.dtype = dtype
        self.transformers = [
            expert.model.load_transformer(dtype, self.device).eval().requires_grad_(False)
            for expert in model.experts
        ]
        self.vae = model.load_vae(device=self.device)
        self._rows: dict[str, Embedding] = {}
        self._encoded: dict[str, ImageTensors] = {}

    @property
    def nfe(self) -> int:
        """Network evaluations for one video."""
        return len(self.schedule) * (1 if self._unguided else 2)

    @property
    def _unguided(self) -> bool:
        return all(scale == 1 for scale in self._scales)

    def load_weights(self, files: Sequence[Path], expert: int = 0) -> None:
        """Takes a student's files of one network: all weights, or adapters for the model's own.

        Args:
            files: The files.
            expert: The index of the expert whose they are.
        """
        load_trained(self.transformers[expert], files)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Videos:
        """Samples one video ``[F, H, W, 3]`` for each prompt and seed."""
        self._encode(prompts)
        videos = []
        for start in range(0, len(prompts), self.batch):
            model, these = self.model, slice(start, start + self.batch)
            noise = torch.cat([noise_for(model, seed, self.shape) for seed in seeds[these]])
            fresh = fresh_noise_for(model, seeds[these], self.shape)
            latents = self.latents(prompts[these], noise, fresh)
            videos.append(self.model.decode_latents(self.vae, latents).cpu().numpy())
            if self.on_batch is not None:
                self.on_batch(len(noise))
        return np.concatenate(videos)

    @torch.no_grad()
    def latents(
        self, prompts: Sequence[str], noise: torch.Tensor, fresh_noise: FreshNoise | None = None
    ) -> torch.Tensor:
        """Samples latents from ``noise [B, C, T, h, w]`` as one batch.

        Args:
            prompts: One for each video.
            noise: The noise that the videos start from.
            fresh_noise: The noise of later steps, for a schedule that adds any.
        """
        self._encode(prompts)
        predict, noise = self._predict(prompts), noise.to(self.device)
        if isinstance(self.schedule, UniPC):
            return self.schedule.run(predict, noise)
        return rollout(
            predict,
            noise,
            self.schedule,
            interpolant=self.model.interpolant,
            fresh_noise=fresh_noise,
        )

    def _encode(self, prompts: Sequence[str]) -> None:
        """Encodes the missing prompts, then frees the encoder, which is often the largest part.

        Their images are encoded too, all at once.
        """
        if self._images and not self._encoded:
            wanted = [(path, self.size) for path in self._images.values()]
            ranks = Ranks(device=self.device)
            tensors = encode_images(self.model, wanted, ranks, self._image_cache)
            self._encoded = dict(zip(self._images, tensors, strict=True))
        missing = [
            text
            for text in dict.fromkeys([*prompts, self.negative_prompt])
            if text not in self._rows
        ]
        if not missing:
            return
        dtype = self.model.text_dtype(self.dtype)
        rows = encode_prompts(self.model, missing, Ranks(device=self.device), dtype, cache=None)
        self._rows |= zip(missing, (row.to(self.device) for row in rows), strict=True)
        longest = max(len(row.text) for row in self._rows.values()) + 1
        if self.device.type == "cpu" and longest <= self.model.width:
            for transformer in self.transformers:
                self.model.fold_text_padding(transformer)

    def _predict(self, prompts: Sequence[str]) -> PredictFn:
        rows = [self._told(prompt, prompt) for prompt in prompts]

        def run(x_t: torch.Tensor, time: torch.Tensor, told: Conditioning) -> torch.Tensor:
            network = self.transformers[expert_at(self._boundary, time)]
            return self.model.predict(network, x_t, time, told)

        if self._unguided:
            alone = self.model.conditioning(rows).to(self.device)
            return lambda x_t, time: run(x_t, time, alone)
        rows += [self._told(self.negative_prompt, prompt) for prompt in prompts]
        both = self.model.conditioning(rows).to(self.device)

        def guided(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            twice = run(torch.cat([x_t, x_t]), torch.cat([time, time]), both)
            cond, uncond = twice.chunk(2)
            return guide(cond, uncond, self._scales[expert_at(self._boundary, time)])

        return guided

    def _told(self, text: str, prompt: str) -> Embedding:
        """A text's embedding, beside the image of a prompt's video."""
        row, image = self._rows[text], self._encoded.get(prompt)
        return row if image is None else row.with_image(image.read())
