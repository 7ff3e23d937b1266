"""Memory of a network's passes, metered on the meta device: every operation runs, on no data.

A meter sees each tensor appear and go, so it counts what autograd keeps, what gradient
checkpointing computes again, and what an operation holds meanwhile. Attention stands for a fused
kernel: it keeps its inputs, its output and a number per row, never the matrix of weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.planning.metered_passes import MeteredPasses
from distill.planning.remembered_shapes import remembered, tensors_in
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.loading import stays_float32
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks.adapters import add_adapters
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.networks.compiled_passes import use_passes
from lightx2v_sgmd.networks.fp8_storage import store_in_fp8
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing, enable_checkpointing
from lightx2v_sgmd.parallel.sequence import enable_sequence_parallel

# B batch, C channels, T latent frames, h, w latent height and width, S text tokens, D text width

METERED_FRAMES = 21
"""Most latent frames whose decoding is metered: those of 81 frames."""


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living tensors that operations inside it made.

    Attributes:
        live: Bytes now.
        peak: The most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and takes note of what it returns."""
        known = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        result = remembered(func, args, kwargs or {})
        for x in tensors_in(result):
            self._note(x.untyped_storage(), known)
        self.peak = max(self.peak, self.live)
        return result

    def _note(self, storage: Any, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._seen:
            return  # a view, or written in place
        self._seen.add(key)
        self.live += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention is a fused kernel of no particular make, in backward passes too."""
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return output

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # A kernel's own name: selective checkpointing knows it, and FLOP counters do.
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        output, rows, *_ = kernel(query, key, value)
        ctx.save_for_backward(query, key, value, output, rows)
        assert isinstance(output, Tensor)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        # Kernels in half precision sum the query's gradient in float32.
        _sums = query.new_empty(query.shape, dtype=torch.float32)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@dataclass(frozen=True)
class PassMemory:
    """The memory of a pass on one rank, without the weights, in bytes.

    Attributes:
        forward: Peak of a forward without gradient.
        activations: Bytes that autograd keeps from a forward with gradient until its backward pass.
        backward: Peak of forward and backward; a weight's gradient goes as soon as it is there.
        backward_keeping: The same, and the gradients stay; as ``backward`` if not asked for.
    """

    forward: int
    activations: int
    backward: int
    backward_keeping: int


@dataclass(frozen=True)
class PlannedGroup:
    """A sequence-parallel group of processes that do not exist."""

    degree: int

    def size(self) -> int:
        """Ranks that would share a video."""
        return self.degree

    def rank(self) -> int:
        """The first rank: no other has more tokens."""
        return 0


@dataclass(frozen=True)
class Pass:
    """A pass to meter.

    Attributes:
        latents: ``(C, T, h, w)`` of a video.
        batch: Number of videos in the pass.
        dtype: The precision of weights and activations.
        text_rows: Text rows of a video that the network attends to.
        checkpointing: The activations that are computed again in the backward pass.
        degree: Number of ranks that share the tokens.
        keeping: True to meter ``backward_keeping``.
        adapters: Those that are trained, or None if all weights are.
        compiled: True if a compiler made the passes between the products.
        fp8_storage: True if the blocks' matrices are stored in 8 bits.
        image: True if the videos start from an image, as ``Model.empty_image`` has it.
    """

    latents: tuple[int, int, int, int]
    batch: int
    dtype: torch.dtype
    text_rows: int
    checkpointing: Checkpointing
    degree: int = 1
    keeping: bool = False
    adapters: AdapterSettings | None = None
    compiled: bool = False
    fp8_storage: bool = False
    image: bool = False


def meter_pass(model: Model, what: Pass) -> PassMemory:
    """Meters a forward, and a forward with backward, of a network.

    Where all blocks are alike, three and four of them tell what any number needs. With gradients
    that stay all of them must run: then the peak may be at either end of the backward pass.
    """
    layers = model.num_blocks
    if what.keeping or layers <= 4 or not model.blocks_are_alike:
        return PassMemory(**_meter(model, what, layers))
    few, more = _meter(model, what, 3), _meter(model, what, 4)
    return PassMemory(**{name: few[name] + (layers - 3) * (more[name] - few[name]) for name in few})


def meter_forward(model: Model, what: Pass) -> int:
    """Meters a forward pass without gradients, as ``meter_pass`` does, and no backward pass."""
    layers = model.num_blocks
    if layers <= 4 or not model.blocks_are_alike:
        return _forward(*prepare_pass(model, what, layers)[1:])
    few, more = (_forward(*prepare_pass(model, what, count)[1:]) for count in (3, 4))
    return few + (layers - 3) * (more - few)


def _meter(model: Model, what: Pass, layers: int) -> dict[str, int]:
    network, run, x_t = prepare_pass(model, what, layers)
    found = {"forward": _forward(run, x_t)}
    found["activations"], found["backward"] = _training(
        run, x_t.requires_grad_(), network, keep=False
    )
    found["backward_keeping"] = found["backward"]
    if what.keeping:
        _, found["backward_keeping"] = _training(run, x_t, network, keep=True)
    return found


def prepare_pass(
    model: Model, what: Pass, layers: int
) -> tuple[Any, Callable[[Tensor], Tensor], Tensor]:
    """Builds a network of so many blocks, its pass and the pass's input, all without data."""
    with torch.device("meta"):
        network = model.with_blocks(layers).build_transformer()
        x_t = torch.empty(what.batch, *what.latents)
        time = torch.empty(what.batch)
        text = model.empty_conditioning(what.batch, what.text_rows)
        image = model.empty_image(what.latents[1:]) if what.image else {}
    told = {name: tensor.expand(what.batch, *tensor.shape) for name, tensor in image.items()}
    conditioning = Conditioning({**text, **told})
    is_float32 = stays_float32(network)
    for name, p in network.named_parameters():
        p.data = p.data.to(torch.float32 if is_float32(name) else what.dtype)
    if what.fp8_storage:
        for block in repeated_blocks(network):
            store_in_fp8(block)
    if what.adapters is not None:
        add_adapters(network, what.adapters, 0, what.dtype)
    if what.degree > 1:
        enable_sequence_parallel(network, PlannedGroup(what.degree))
    network.text_padding_is_folded = True  # or ``predict`` would add rows
    enable_checkpointing(network, what.checkpointing)
    if what.compiled:
        use_passes(network, MeteredPasses())

    def run(x_t: Tensor) -> Tensor:
        return model.predict(network, x_t, time, conditioning)

    return network, run, x_t


def _forward(run: Callable[[Tensor], Tensor], x_t: Tensor) -> int:
    meter = MemoryMeter()
    with torch.no_grad(), fused_attention(), meter:
        run(x_t)
    return meter.peak


def _training(
    run: Callable[[Tensor], Tensor], x_t: Tensor, network: Any, keep: bool
) -> tuple[int, int]:
    """Bytes that a forward pass keeps, and the peak of forward and backward pass."""

    def drop(p: Tensor) -> None:
        p.grad = None

    weights = [p for p in network.parameters() if p.requires_grad and not keep]
    hooks = [p.register_post_accumulate_grad_hook(drop) for p in weights]
    meter = MemoryMeter()
    with fused_attention(), meter:
        output = run(x_t)
        activations = meter.live
        torch.autograd.backward(output, torch.empty_like(output))
        del output
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    x_t.grad = None
    return activations, meter.peak


def meter_decoding(model: Model, latents: tuple[int, int, int, int]) -> int:
    """Peak of a model's float32 VAE while it decodes one video, weights included.

    The VAE decodes one or two latent frames at a time, so the first ones tell what many need: each
    further one adds its input, and its frames twice, when they are joined to those before it. Where
    the layers' own memory is still larger, as with few frames of a large VAE, that is a little too
    much.
    """
    channels, frames, height, width = latents
    few = min(frames, METERED_FRAMES)
    peak, pixels = _decode(model, (channels, few, height, width))
    if frames == few:
        return peak
    _, fewer_pixels = _decode(model, (channels, few - 2, height, width))
    return peak + (frames - few) * (4 * channels * height * width + pixels - fewer_pixels)


def _decode(model: Model, latents: tuple[int, int, int, int]) -> tuple[int, int]:
    """Peak of a VAE that decodes one video, weights included, and the bytes of the video."""
    with torch.device("meta"):
        vae = model.build_vae().eval()
        x0 = torch.empty(1, *latents)
    if model.size_rules.images:
        x0 = x0.squeeze(2)  # the VAE of images knows no frames
    weights: int = sum(4 * p.numel() for p in vae.parameters())
    meter = MemoryMeter()
    with torch.no_grad(), meter:
        (video,) = vae.decode(x0, return_dict=False)
    return weights + meter.peak, 4 * video.numel()
