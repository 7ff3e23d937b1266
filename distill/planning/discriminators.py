"""Memory and operations of discriminators, metered on the meta device.

The heads on the teacher's blocks read whole videos on every rank. The pixel discriminator's frozen
part, the VAE and a vision encoder, is whole on every rank as well. Both send gradient to the
student's video in its own update, and none in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill.pixels import PixelFeatures, frames_per_rank
from distill.planning.metering import MemoryMeter, Pass, fused_attention, prepare_pass
from distill.planning.remembered_shapes import RememberedShapes
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods.base import PixelDiscriminator
from lightx2v_sgmd.networks.vision_encoder import VisionBackbone
from lightx2v_sgmd.parallel.base import HeadSettings
from lightx2v_sgmd.parallel.discriminator import backbone_features, build_heads

# B batch, C channels, T latent frames, h, w latent height and width


@dataclass(frozen=True)
class HeadsMemory:
    """Peaks on one rank, without weights, in bytes.

    Attributes:
        generator: The student's loss, from x_t through the teacher and the heads and back.
        update: The heads' own update, which reads the student's and the real video.
    """

    generator: int
    update: int


@dataclass(frozen=True)
class PixelCost:
    """The cost of the frozen part of a pixel discriminator, on one rank.

    Attributes:
        generator: Peak in bytes of the student's loss, without weights.
        update: Peak in bytes of the discriminator's update, without weights.
        operations: Operations of both for one video, those that run again included; on one of
            the ranks that share it.
    """

    generator: int
    update: int
    operations: float


class DiscriminatorMeter:
    """Measures a model's discriminators without weights, and remembers each result.

    Args:
        model: The teacher, whose blocks the heads read and whose VAE decodes.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._heads: dict[object, HeadsMemory] = {}
        self._frozen: dict[str, int] = {}
        self._weights: dict[HeadSettings, dict[str, list[int]]] = {}
        self._widths: dict[str, tuple[int, ...]] = {}

    def weights(self, job: Job) -> dict[str, list[int]]:
        """The sizes of the heads' weights by role; none if the method has no discriminator."""
        settings = self._settings(job)
        if settings is None:
            return {}
        if settings not in self._weights:  # hundreds of layouts of a job ask for the same heads
            with torch.device("meta"):
                roles = build_heads(self.model, settings)
            self._weights[settings] = {
                role: [p.numel() for p in heads.parameters()] for role, heads in roles.items()
            }
        return self._weights[settings]

    def heads(self, job: Job, what: Pass) -> HeadsMemory:
        """The heads' memory in a job; ``what`` is the teacher's pass."""
        settings = self._settings(job)
        assert settings is not None, "the method has no discriminator"
        # One process has its heads in float32, a DeepSpeed engine in the job's precision.
        dtype = torch.float32 if job.parallel.strategy == "local" else what.dtype
        key = what, settings, dtype
        if key not in self._heads:
            self._heads[key] = meter_heads(self.model, what, settings, dtype)
        return self._heads[key]

    def pixel_weights(self, job: Job) -> int | None:
        """The bytes of the pixel discriminator's VAE and vision encoder; meters no pass."""
        pixels = job.method.pixel_discriminator
        if pixels is None:
            return None
        if pixels.vision_encoder not in self._frozen:
            with torch.device("meta"):
                vae = self.model.build_vae()
            vision = VisionBackbone.planned(pixels.vision_encoder).network
            sizes = [p.numel() for each in (vae, vision) for p in each.parameters()]
            self._frozen[pixels.vision_encoder] = 4 * sum(sizes)
        return self._frozen[pixels.vision_encoder]

    def pixels(self, job: Job, latents: tuple[int, int, int, int]) -> PixelCost | None:
        """The pixel discriminator's cost in a job with videos of that latent shape."""
        pixels = job.method.pixel_discriminator
        if pixels is None:
            return None
        vae = _Vae(repr(sorted(self.model.vae_config.items())), self.model)
        videos = (job.train.micro_batch, *latents)
        degree = job.parallel.sequence
        return _pixel_cost(vae, videos, job.video.frames, pixels, degree)

    def _settings(self, job: Job) -> HeadSettings | None:
        """The heads of a job, whose vision encoder need not be here yet."""
        heads, pixels = job.method.discriminator, job.method.pixel_discriminator
        if heads is None:
            return None
        widths: tuple[int, ...] = ()
        if pixels is not None:
            name = pixels.vision_encoder
            if name not in self._widths:
                self._widths[name] = VisionBackbone.planned(name).widths
            widths = self._widths[name]
        return HeadSettings(heads.head_every, heads.head_channels, 0, widths)


def meter_heads(
    model: Model, what: Pass, settings: HeadSettings, dtype: torch.dtype
) -> HeadsMemory:
    """Meters the heads with the blocks that they read.

    Where all blocks are alike, every head adds as much as the one before.

    Args:
        model: The teacher.
        what: The teacher's pass.
        settings: The heads.
        dtype: The heads' precision.
    """
    layers, every = model.num_blocks, settings.every
    count = max(1, layers // every)
    if count <= 3 or not model.blocks_are_alike:
        return _heads(model, what, settings, dtype, layers)
    few, more = (_heads(model, what, settings, dtype, heads * every) for heads in (2, 3))
    return HeadsMemory(
        *(
            getattr(few, name) + (count - 2) * (getattr(more, name) - getattr(few, name))
            for name in ("generator", "update")
        )
    )


def _heads(
    model: Model, what: Pass, settings: HeadSettings, dtype: torch.dtype, layers: int
) -> HeadsMemory:
    network, run, x_t = prepare_pass(model, what, layers)
    network.requires_grad_(False)
    twice, run_twice, pair = prepare_pass(model, replace(what, batch=2 * what.batch), layers)
    twice.requires_grad_(False)
    with torch.device("meta"):
        heads = next(iter(build_heads(model.with_blocks(layers), settings).values()))
        heads = heads.to(dtype)
    x_t.requires_grad_()
    meter = MemoryMeter()
    with fused_attention(), meter:
        logits = heads(backbone_features(model, network, lambda: run(x_t), x_t, settings))
        torch.autograd.grad(logits.sum(), x_t)
        del logits
    generator = meter.peak
    meter = MemoryMeter()
    with fused_attention(), meter:
        with torch.no_grad():
            features = backbone_features(model, twice, lambda: run_twice(pair), pair, settings)
        logits = heads(features)
        logits.sum().backward()
        del logits, features
    return HeadsMemory(generator, meter.peak)


@dataclass(frozen=True)
class _Vae:
    """A model's VAE; the text of its arguments tells it from others."""

    text: str
    model: Model = field(compare=False)


@lru_cache(maxsize=8)
def _pixel_cost(
    vae: _Vae,
    latents: tuple[int, ...],
    num_frames: int,
    pixels: PixelDiscriminator,
    degree: int,
) -> PixelCost:
    """The cost with the frames that need most, the last ones; models share their VAE."""
    last = min(pixels.frames, num_frames)
    frames = range(num_frames - frames_per_rank(last, degree), num_frames)
    return meter_pixels(vae.model, VisionBackbone.planned(pixels.vision_encoder), latents, frames)


def meter_pixels(
    model: Model, vision: VisionBackbone, latents: tuple[int, ...], frames: Sequence[int]
) -> PixelCost:
    """Meters the decoding of frames and the vision encoder.

    A video is decoded after the other, and a frame after the other: the last two frames have the
    peak, operations grow evenly, and each frame leaves itself and what the encoder makes of it.

    Args:
        model: The model whose VAE decodes.
        vision: The encoder, on the meta device.
        latents: ``(B, C, T, h, w)`` of the student's videos.
        frames: Indices of the frames, rising.
    """
    with torch.device("meta"):
        vae = model.build_vae()
    pixels = PixelFeatures(model, vae, vision)
    videos, count = latents[0], len(frames)
    with torch.device("meta"):
        x0 = torch.empty(1, *latents[1:], requires_grad=True)
        frame = pixels.decode(x0.detach(), frames[:1]).detach().requires_grad_()

    def decode_and_back(seen: Sequence[int]) -> None:
        torch.autograd.grad(pixels.decode(x0, seen).sum(), x0)

    def see_and_back() -> None:
        torch.autograd.grad(torch.stack([m.sum() for m in pixels.features(frame)]).sum(), frame)

    def update(seen: Sequence[int]) -> None:
        with torch.no_grad():
            pixels.decode(x0.detach(), seen)

    def see() -> None:
        with torch.no_grad():
            pixels.features(frame.detach())

    maps = pixels.features(frame.detach().requires_grad_())
    a_frame = sum(4 * each.numel() for each in (frame, *maps))
    a_video = _kept_bytes(partial(pixels.decode, x0, frames[-2:])) + (count - 2) * 4 * frame.numel()
    generator = max(_peak(partial(decode_and_back, frames[-2:])), a_video + _peak(see_and_back))
    generator += videos * count * a_frame + (videos - 1) * a_video
    update_peak = (
        max(_peak(partial(update, frames[-1:])), _peak(see)) + 2 * videos * count * a_frame
    )
    operations = _even(decode_and_back, frames) + 2 * _even(update, frames)
    operations += count * (_operations(see_and_back) + 2 * _operations(see))
    return PixelCost(generator, update_peak, operations)


def _peak(work: Callable[[], None]) -> int:
    meter = MemoryMeter()
    with fused_attention(), meter:
        work()
    return meter.peak


def _kept_bytes(work: Callable[[], Tensor]) -> int:
    """Bytes that wait for the backward pass."""
    meter = MemoryMeter()
    with fused_attention(), meter:
        result = work()
        activations = meter.live
    del result
    return activations


def _operations(work: Callable[[], None]) -> float:
    # Not beside the meter of memory: this counter holds tensors of passes that are over.
    with fused_attention(), RememberedShapes(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _even(work: Callable[[Sequence[int]], None], frames: Sequence[int]) -> float:
    """The operations of all frames, by those of the last and of the last two."""
    if len(frames) == 1:
        return _operations(partial(work, frames))
    one, two = (_operations(partial(work, frames[-n:])) for n in (1, 2))
    return one + (len(frames) - 1) * (two - one)
