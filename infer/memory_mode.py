"""The memory that a generation needs, and the fastest memory mode that fits.

The weights are counted on the meta device, where networks have shapes and no storage. What
loading takes beside them follows from how ``infer.network.loading`` does it, block by block. What
the computation needs beside them is a formula whose factors PyTorch's profiler measured on
diffusers' classes; ``tests/infer/test_memory_mode.py`` measures it again, and compares it with the
meter that plans training. docs/decisions/028 says why generation does not use that meter.

B batch, S tokens of a video, D network width, F its feed-forward width, H, W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Final

import torch

from infer.options import Quantize
from infer.vae.decode_memory import decode_gib
from infer.vae.decoding import FRAMES_AT_ONCE, Tiling
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import GIB
from lightx2v_sgmd.text.loading import encoder_parameters
from lightx2v_sgmd.untrusted.building import build_text_encoder, build_transformer, build_vae

_CONTEXT_GIB: Final = 0.8
"""The memory that CUDA and its libraries take before the first tensor."""
_GROUPS_AT_ONCE: Final = 3
"""Blocks on the device with group offload and a stream: the one that computes, the one before it,
which may still be leaving, and the next one, which is coming."""
_BYTES: Final = {"fp8": 1.0, "int8": 1.0, "fp8-storage": 1.0}
_TEXT_SIZES: Final = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size")


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a model's parts.

    Attributes:
        linears: Parameters in the matrices of the transformer's blocks, which can be quantised.
        rest: The transformer's other parameters.
        block: Parameters of one block.
        text_encoder: Parameters of the text encoder.
        streamed_encoder: The most of them that are in memory while its blocks stay in their file.
        vae: Parameters of the VAE.
    """

    linears: int
    rest: int
    block: int
    text_encoder: int
    streamed_encoder: int
    vae: int


@dataclass(frozen=True)
class MemoryMode:
    """A combination of settings that save memory; each costs time, and none of them is the fastest.

    Attributes:
        quantize: ``none``; ``fp8`` (computes in it), ``int8`` and ``fp8-storage`` (store in it).
        offload: The blocks' weights wait in the main memory and are fetched one ahead.
        one_at_a_time: Only the part that computes is on the device: text encoder, transformer or
            VAE.
        tile_vae: The VAE decodes tiles.
        text_on_cpu: The text encoder computes on the CPU.
        stream_text: The text encoder's blocks stay in their file until they compute (on a CPU).
        half: bfloat16 weights on a CPU, where float32 is the default.
        frames_at_once: Latent frames that the VAE decodes at once: 2, or 1 to need less memory.
    """

    quantize: Quantize = "none"
    offload: bool = False
    one_at_a_time: bool = False
    tile_vae: bool = False
    text_on_cpu: bool = False
    stream_text: bool = False
    half: bool = False
    frames_at_once: int = FRAMES_AT_ONCE

    def flags(self) -> str:
        """The options that choose it, or ``the defaults``."""
        flags = [
            f"--quantize {self.quantize}" if self.quantize != "none" else "",
            "--offload" if self.offload else "",
            "--one-at-a-time" if self.one_at_a_time else "",
            "--tile-vae" if self.tile_vae else "",
            "--text-on-cpu" if self.text_on_cpu else "",
            "--stream-text" if self.stream_text else "",
            "--dtype bf16" if self.half else "",
        ]
        return " ".join(flag for flag in flags if flag) or "the defaults"


@dataclass(frozen=True)
class Workload:
    """A generation, as far as its memory depends on it.

    Attributes:
        model: The model.
        height: Height of the videos in pixels.
        width: Width of the videos in pixels.
        num_frames: Number of frames, ``4k + 1``.
        batch: Number of videos denoised together.
        bytes_each: Bytes of a number in the network's precision: 2 or 4.
        cuda: True if the device is a GPU.
        ranks: Processes that share the tokens.
        teacher_dtype: Precision of the student's teacher, if it is known: the text encoder runs in
            it, otherwise in the network's.
    """

    model: Model
    height: int
    width: int
    num_frames: int
    batch: int
    bytes_each: int
    cuda: bool
    ranks: int = 1
    teacher_dtype: str | None = None


def sizes_of(model: Model) -> Sizes:
    """Counts a model's parameters on the meta device."""
    return _sizes(
        json.dumps(model.transformer_config, sort_keys=True),
        json.dumps(model.vae_config, sort_keys=True),
        json.dumps(_text_config(model), sort_keys=True),
    )


@lru_cache(maxsize=100)
def _sizes(transformer: str, vae: str, text: str) -> Sizes:
    with torch.device("meta"):
        network = build_transformer(json.loads(transformer))
        autoencoder = build_vae(json.loads(vae))
        encoder = build_text_encoder(json.loads(text))
    blocks = repeated_blocks(network)
    linears = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, torch.nn.Linear))
    return Sizes(
        linears,
        _count(network) - linears,
        _count(blocks[0]),
        *encoder_parameters(encoder),
        _count(autoencoder),
    )


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _text_config(model: Model) -> dict[str, Any]:
    saved = model.expected_text_encoder_config()
    return {key: saved[key] for key in _TEXT_SIZES if key in saved}


def needed_gib(work: Workload, memory_mode: MemoryMode) -> dict[str, float]:
    """The peak memory of each stage in GiB: ``load``, ``text``, ``denoise``, ``decode``.

    ``load`` is the network's loading: text encoder and VAE, which come later, need no more than
    what they weigh.
    """
    parts = _parts(work, memory_mode)
    resting = 0.0 if memory_mode.one_at_a_time else parts.together
    context = _CONTEXT_GIB * GIB if work.cuda else 0.0
    stages = {
        "load": parts.loading,
        "text": max(parts.encoder, resting),
        "denoise": max(parts.transformer, resting) + _activations(work, parts.bytes_each),
        "decode": max(parts.vae, resting) + _decoding(work, memory_mode),
    }
    return {stage: (amount + context) / GIB for stage, amount in stages.items()}


def resting_gib(work: Workload, memory_mode: MemoryMode) -> float:
    """The memory in GiB that a loaded model keeps between two videos, without CUDA's own."""
    parts = _parts(work, memory_mode)
    if memory_mode.one_at_a_time:  # the last one that computed stays
        return max(parts.encoder, parts.transformer, parts.vae) / GIB
    return parts.together / GIB


@dataclass(frozen=True)
class _Parts:
    """Bytes on the device of a model's parts, and while its network is loaded."""

    transformer: float
    encoder: float
    vae: float
    loading: float
    bytes_each: int

    @property
    def together(self) -> float:
        return self.transformer + self.encoder + self.vae


def _parts(work: Workload, memory_mode: MemoryMode) -> _Parts:
    sizes = sizes_of(work.model)
    each = 2 if memory_mode.half else work.bytes_each
    held = sizes.streamed_encoder if memory_mode.stream_text else sizes.text_encoder
    encoder = held * _text_bytes(work, each)
    linears = sizes.linears * _BYTES.get(memory_mode.quantize, each)
    transformer = linears + sizes.rest * each
    loading = transformer + _changing(sizes, each)
    if memory_mode.offload:
        loading = sizes.rest * each + _changing(sizes, each)
        share = sizes.block * (transformer / (sizes.linears + sizes.rest))
        transformer = _GROUPS_AT_ONCE * share + sizes.rest * each
    # Experts take turns like the other parts; blocks that are offloaded leave by themselves.
    turns = memory_mode.one_at_a_time and not memory_mode.offload
    at_once = 1 if turns else len(work.model.experts)
    loading += (at_once - 1) * transformer
    if work.cuda and (memory_mode.text_on_cpu or memory_mode.stream_text):
        encoder = 0
    return _Parts(at_once * transformer, encoder, sizes.vae * 4, loading, each)


def _text_bytes(work: Workload, each: int) -> int:
    """Bytes of a number in the text encoder."""
    return work.model.text_dtype(work.teacher_dtype).itemsize if work.teacher_dtype else each


def _changing(sizes: Sizes, each: int) -> float:
    """Bytes that loading takes beside the finished blocks: at most one block as it is read."""
    return sizes.block * each


def _activations(work: Workload, each: int) -> float:
    """Bytes of one block's intermediate values: in the attention, or in the feed-forward layer."""
    config = work.model.transformer_config
    shape = work.model.latent_shape(work.height, work.width, work.num_frames)
    patch_t, patch_h, patch_w = config["patch_size"]
    tokens = shape[1] * shape[2] * shape[3] / float(patch_t * patch_h * patch_w)
    width = work.model.width
    attention = width * (18 + 4 * each)  # some of it is float32 whatever the precision
    forward = each * (2 * int(config["ffn_dim"]) + 5.5 * width)
    per_token: float = max(attention, forward)
    return work.batch * tokens * per_token / work.ranks


def _decoding(work: Workload, memory_mode: MemoryMode) -> float:
    """Bytes of the VAE's intermediate values and of what its convolutions remember."""
    tiling = Tiling() if memory_mode.tile_vae else None
    size = (work.height, work.width, work.num_frames)
    return GIB * decode_gib(
        work.model.vae_config, size, work.batch, memory_mode.frames_at_once, tiling, work.ranks
    )


def choose_memory_mode(
    work: Workload,
    limit_gib: float,
    asked: MemoryMode,
    possible: tuple[Quantize, ...] = (),
    halvable: bool = False,
    free_on: str | None = None,
    swap_gib: float = 0.0,
) -> MemoryMode:
    """The first memory mode that fits: exact ones before those that round weights, fast ones first.

    Args:
        work: The generation.
        limit_gib: The memory that may be used.
        asked: The memory mode that the user asked for; every other one saves at least as much.
        possible: Quantisations that can run here beside ``none``, the best first.
        halvable: True if float32 weights may become bfloat16.
        free_on: The device whose free memory the limit is; None if the user set it.
        swap_gib: Swap space beside that memory; what needs it is slow, but not refused.

    Raises:
        UserError: nothing fits; says how much is needed at least.
    """
    modes = list(_memory_modes(work, asked, possible, halvable))
    for mode in modes:
        if max(needed_gib(work, mode).values()) <= limit_gib:
            return mode
    least = min(modes, key=lambda mode: max(needed_gib(work, mode).values()))
    needed = max(needed_gib(work, least).values())
    if needed <= limit_gib + swap_gib:
        return least
    video = f"{work.height}x{work.width}, {work.num_frames} frames"
    if free_on is not None:
        raise UserError(
            f"out of memory: {video} needs {needed:.3g} GiB at least (with {least.flags()}), and "
            f"{limit_gib:.3g} GiB are available on {free_on}; close other programs, or ask for a "
            "smaller or shorter video"
        )
    raise UserError(
        f"max_memory_gib: {limit_gib:g} is too little for {video}: {needed:.3g} GiB is the least "
        f"that is needed (with {least.flags()}); give more, or ask for a smaller or shorter video"
    )


def _memory_modes(
    work: Workload, asked: MemoryMode, possible: tuple[Quantize, ...], halvable: bool
) -> Iterator[MemoryMode]:
    kinds: tuple[Quantize, ...] = ("none", *possible)
    if asked.quantize != "none":
        kinds = (asked.quantize,)
    no_yes = (False, True)
    halves = no_yes if halvable and work.bytes_each == 4 else (False,)
    offloads = no_yes if work.cuda else (False,)
    streams = (False,) if work.cuda else no_yes
    counts = sorted({asked.frames_at_once, 1}, reverse=True)
    # The last one changes first: what costs least is tried before what costs more.
    for kind, half, offload, text_on_cpu, tile, stream, apart, count in product(
        kinds, halves, offloads, offloads, no_yes, streams, no_yes, counts
    ):
        yield replace(
            asked,
            quantize=kind,
            half=half or asked.half,
            offload=offload or asked.offload,
            one_at_a_time=apart or asked.one_at_a_time,
            tile_vae=tile or asked.tile_vae,
            text_on_cpu=text_on_cpu or asked.text_on_cpu,
            stream_text=stream or asked.stream_text,
            frames_at_once=count,
        )
