"""The VAE's decode of one video: stock diffusers, the engine's, and its other settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infer.vae.decoder import DecodeSettings, VaeDecoder
from infer.vae.decoding import FRAMES_AT_ONCE, Tiling, decode_stream
from lightx2v_sgmd.families.wan.forward import decode_latents
from tools.gpu_check.context import Context, tf32
from tools.gpu_check.report import Row, Step
from tools.gpu_check.steps.kernel_table import kernel_table


@dataclass(frozen=True)
class Variant:
    """A way to decode.

    Attributes:
        label: The row's label.
        settings: The engine's settings for decoding; None for stock diffusers.
        frames_at_once: Latent frames that the engine decodes at once.
        tiled: True if the engine decodes in tiles.
        dtype: Precision of the VAE.
        tf32: True if convolutions of float32 may round their inputs.
        benchmark: True if cuDNN tries its algorithms.
        table: True if the kernels' times are taken, too.
    """

    label: str
    settings: DecodeSettings | None = DecodeSettings(compile=True)
    frames_at_once: int = FRAMES_AT_ONCE
    tiled: bool = False
    dtype: torch.dtype = torch.float32
    tf32: bool = True
    benchmark: bool = False
    table: bool = False

    def prepare(self, context: Context) -> Callable[[Tensor], Tensor]:
        """A function from latents to frames, with the VAE loaded."""
        vae = context.model.load_vae(self.dtype)
        if self.settings is None:
            return partial(decode_latents, vae)
        settings = replace(self.settings, compile=self.settings.compile and context.cuda)
        decoder = VaeDecoder(vae, settings)
        tiling = Tiling() if self.tiled else None

        def decode(latents: Tensor) -> Tensor:
            chunks = decode_stream(decoder, latents, tiling, None, self.frames_at_once)
            return torch.cat(list(chunks), dim=1)

        return decode


_EAGER = DecodeSettings()
_CONTIGUOUS = DecodeSettings(channels_last=False, compile=True)
VARIANTS = (
    Variant("stock diffusers", None),
    Variant("engine, as it comes", table=True),
    Variant("engine, float16", dtype=torch.float16, table=True),
)
OTHER_SETTINGS = (
    Variant("engine, bfloat16", dtype=torch.bfloat16),
    Variant("engine, not compiled", _EAGER),
    Variant("engine, not channels last", _CONTIGUOUS),
    Variant("engine, TF32 off", tf32=False),
    Variant("engine, cudnn.benchmark", benchmark=True),
    Variant("engine, 1 latent frame at once", frames_at_once=1),
    Variant("engine, 4 latent frames at once", frames_at_once=4),
    Variant("engine, tiled", tiled=True),
    Variant("stock diffusers, bfloat16", None, dtype=torch.bfloat16),
)


def run(context: Context, step: Step) -> None:
    """A row for stock diffusers, whose frames the others are compared with, and the engine's."""
    measure_all(context, step, VARIANTS)


def measure_all(context: Context, step: Step, variants: Sequence[Variant]) -> None:
    """Measures variants, a row for each."""
    frames = step.out / "stock_frames.pt"
    for variant in variants:

        def measure(row: Row, variant: Variant = variant) -> None:
            one_variant(context, variant, row, frames)

        compiled = variant.settings is not None and variant.settings.compile
        step.row(variant.label, (25 if compiled else 12) if context.cuda else 2, measure)


def one_variant(context: Context, variant: Variant, row: Row, saved: Path) -> None:
    """Seconds of the first and the second decode, the peak, and how the frames differ."""
    decode = variant.prepare(context)
    shape = (1, *context.model.latent_shape(*context.size))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device)
    with tf32(variant.tf32), _benchmark(variant.benchmark), context.peak(row):
        times = []
        for _ in range(2):
            context.sync()
            start = time.perf_counter()
            frames = decode(latents)
            context.sync()
            times.append(time.perf_counter() - start)
        row["first_s"], row["s"] = times
        if variant.table:
            row |= kernel_table(context, lambda: decode(latents))
    if variant is VARIANTS[0]:
        torch.save(frames.cpu(), saved)
        with FlopCounterMode(display=False) as counter:
            decode(latents)
        row["tflop"] = counter.get_total_flops() / 1e12
    elif saved.is_file():
        expected = torch.load(saved, weights_only=True)
        difference = (frames.cpu().int() - expected.int()).abs()
        row["levels_max"], row["levels_mean"] = int(difference.max()), difference.float().mean()
        row["levels_mean"] = float(row["levels_mean"])


@contextmanager
def _benchmark(wanted: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
