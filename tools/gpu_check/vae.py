"""The VAE's decode of one video: stock diffusers, the engine's, and what could make it faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer.decoding import Tiling, decode_stream
from lightx2v_sgmd.models.wan import decode_latents
from tools.gpu_check.context import Context, tf32
from tools.gpu_check.kernel_table import kernel_table
from tools.gpu_check.report import Row, Step

Decode = Callable[[Any, Tensor], Tensor]


def _engine(vae: Any, latents: Tensor) -> Tensor:
    return torch.cat(list(decode_stream(vae, latents)), dim=1)


def _tiled(vae: Any, latents: Tensor) -> Tensor:
    return torch.cat(list(decode_stream(vae, latents, Tiling())), dim=1)


@dataclass(frozen=True)
class Variant:
    """A way to decode.

    Attributes:
        label: Of the row.
        decode: Latents to frames.
        dtype: Of the VAE.
        tf32: Whether convolutions of float32 may round their inputs.
        benchmark: Whether cuDNN tries its algorithms.
        channels_last: Whether weights lie so.
        table: Whether the kernels' times are taken, too.
    """

    label: str
    decode: Decode
    dtype: torch.dtype = torch.float32
    tf32: bool = True
    benchmark: bool = False
    channels_last: bool = False
    table: bool = False


VARIANTS = (
    Variant("stock diffusers", decode_latents),
    Variant("engine, as it comes", _engine, table=True),
    Variant("engine, bfloat16", _engine, dtype=torch.bfloat16, table=True),
    Variant("engine, TF32 off", _engine, tf32=False),
    Variant("engine, cudnn.benchmark", _engine, benchmark=True),
    Variant("engine, channels last", _engine, channels_last=True),
    Variant("engine, channels last, cudnn.benchmark", _engine, benchmark=True, channels_last=True),
    Variant("engine, tiled", _tiled),
    Variant("stock diffusers, bfloat16", decode_latents, dtype=torch.bfloat16),
)


def run(context: Context, step: Step) -> None:
    """A row for each variant; the first one's frames are what the others are compared with."""
    frames = step.out / "stock_frames.pt"
    for variant in VARIANTS:

        def measure(row: Row, variant: Variant = variant) -> None:
            one_variant(context, variant, row, frames)

        step.row(variant.label, 12 if context.cuda else 2, measure)


def one_variant(context: Context, variant: Variant, row: Row, saved: Path) -> None:
    """Seconds of the first and the second decode, the peak, and how the frames differ."""
    vae = context.model.load_vae(variant.dtype)
    if variant.channels_last:
        for weight in vae.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    shape = (1, *context.model.latent_shape(*context.size))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device)
    with tf32(variant.tf32), _benchmark(variant.benchmark), context.peak(row):
        times = []
        for _ in range(2):
            context.sync()
            start = time.perf_counter()
            frames = variant.decode(vae, latents)
            context.sync()
            times.append(time.perf_counter() - start)
        row["first_s"], row["s"] = times
        if variant.table:
            row |= kernel_table(context, lambda: variant.decode(vae, latents))
    if variant is VARIANTS[0]:
        torch.save(frames.cpu(), saved)
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
