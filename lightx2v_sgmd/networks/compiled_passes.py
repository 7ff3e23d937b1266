"""Compiled passes over the tokens, between the matrix products of a network in training.

diffusers' block computes norms, modulation, rotation and gates in some forty operations, each of
which reads and writes all tokens. Here a compiler makes five kernels of them, and of their backward
passes. The products and attention remain calls of the block's own modules, so hooks (ZeRO-3's
gather a layer's weights), adapters, sequence parallelism and gradient checkpointing work as before.
A backward pass to the inputs alone computes no gradients of weights; through a block that is
compiled whole it would.

``fused_blocks`` does the same for the engine. The two share the modulation only: without a gradient
it works in place, and its rotation and RMS norm round differently from the compiled ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightx2v_sgmd.networks.block_modulation import block_modulation
from lightx2v_sgmd.networks.gradient_checkpointing import attention_outputs_stored, mark_attention

# B batch, S tokens, N heads, D head size, W = N * D width

RECOMPILATIONS = 64
"""Most kernels of one pass: one for each precision, batch size and set of inputs with gradient."""


class Passes:
    """The compiled passes of one network.

    Args:
        backend: Backend of torch.compile.
    """

    def __init__(self, backend: str = "inductor") -> None:
        def compiled(function: Callable[..., Any]) -> Any:
            # Code of its own: the compiler counts how often it compiled one, whichever the network.
            own = FunctionType(function.__code__.replace(), function.__globals__)
            options = gradient_options() if backend == "inductor" else None
            graph = torch.compile(own, backend=backend, dynamic=False, options=options)
            return partial(_exactly, graph)

        self.modulate = compiled(_modulate)
        self.gate = compiled(_gate)
        self.add_and_modulate = compiled(_add_and_modulate)
        self.layer_norm = compiled(_layer_norm)
        self.rms_norm = compiled(_rms_norm)
        self.rotate = compiled(_rotate)


def compile_passes(network: Any, backend: str = "inductor") -> None:
    """Gives the blocks of a ``WanTransformer3DModel`` compiled passes; see ``use_passes``.

    Args:
        network: The network.
        backend: Backend of torch.compile; other values than the default are for tests.
    """
    prepare_compiler()
    use_passes(network, Passes(backend))


def use_passes(network: Any, passes: Any) -> None:
    """Makes the blocks of a ``WanTransformer3DModel`` compute with given passes.

    Call it last: after text padding is folded, tokens are shared and checkpointing is enabled.

    Args:
        network: The network.
        passes: ``Passes``, or an object with the same methods.
    """
    for block in network.blocks:
        if block.attn2.add_k_proj is not None:  # attends to an image, too
            continue
        for attention in (block.attn1, block.attn2):
            attention.processor = _with_passes(attention.processor, passes)
        for norm in (block.attn1.norm_q, block.attn1.norm_k, block.attn2.norm_q):
            # Not the text's norm_k: it is small, and its length may change from batch to batch.
            norm.forward = partial(_normalised, passes, norm)
        if not isinstance(block.norm2, nn.Identity):
            block.norm2.forward = partial(_layer_normalised, passes, block.norm2)
        block.forward = MethodType(partial(_forward, passes), block)
        mark_attention(block)


def gradient_options() -> dict[str, Any]:
    """Settings of the compiler that gradients need.

    From PyTorch 2.10 on, one kernel of a GPU sums a norm's gradients over tokens and over channels.
    For modulated norms of 4,096 tokens and more its sums over tokens have a wrong shape or, without
    an error, wrong numbers (pytorch/pytorch issues 178080 and 193061).
    """
    from torch._inductor import config

    known = hasattr(config.triton, "mix_order_reduction")
    return {"triton.mix_order_reduction": False} if known else {}


def prepare_compiler() -> None:
    """Changes PyTorch's settings so that one graph may serve two backward passes."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    # One graph serves two backward passes, so no buffer of it may be reused.
    functorch.donated_buffer = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILATIONS)
    limit = "accumulated_recompile_limit"
    setattr(dynamo, limit, max(getattr(dynamo, limit), 16 * RECOMPILATIONS))


def _forward(
    passes: Any,
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: Any,
) -> Tensor:
    """A ``WanTransformerBlock``'s output ``[B, S, W]``, in the precisions of diffusers' own.

    Args:
        passes: Passes of the network.
        block: The block.
        hidden_states: ``[B, S, W]``.
        encoder_hidden_states: The text, ``[B, rows, W]``.
        temb: The embedded time, ``[B, 6, W]``, or ``[B, S, 6, W]`` where each token has its own.
        rotary_emb: Argument of the block's self-attention.
    """
    x = hidden_states
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = block_modulation(block, temb)
    normed = passes.modulate(x, scale, shift, block.norm1.eps)
    x = passes.gate(x, block.attn1(normed, None, None, rotary_emb), gate)
    attended = block.attn2(block.norm2(x), encoder_hidden_states, None, None)
    x, normed = passes.add_and_modulate(x, attended, ffn_scale, ffn_shift, block.norm3.eps)
    result: Tensor = passes.gate(x, block.ffn(normed), ffn_gate)
    return result


class CompiledAttention:
    """The processor of a ``WanAttention`` whose rotation is a compiled pass.

    Args:
        passes: Passes of the network.
        backend: diffusers' name of the attention kernel; None is its default.
    """

    _parallel_config: Any = None

    def __init__(self, passes: Any, backend: Any = None) -> None:
        self.passes = passes
        # diffusers' set_attention_backend writes this attribute.
        self._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Maps ``hidden_states [B, S, W]`` to ``[B, S, W]``; the text is ``[B, rows, W]``."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        key = _heads(attn.norm_k(attn.to_k(source)), attn.heads)
        value = _heads(attn.to_v(source), attn.heads)
        if rotary_emb is not None:
            query = self.passes.rotate(query, *rotary_emb)
            key = self.passes.rotate(key, *rotary_emb)
        with attention_outputs_stored():
            output = dispatch_attention_fn(
                query, key, value, attn_mask=attention_mask, backend=self._attention_backend
            )
        projected: Tensor = attn.to_out[1](attn.to_out[0](output.flatten(2, 3).type_as(query)))
        return projected


def _with_passes(processor: Any, passes: Any) -> Any:
    """Replaces a processor by one that uses the passes, or makes it use them itself."""
    if hasattr(processor, "processor"):  # takes the padding's weights off the text, then asks this
        processor.processor = _with_passes(processor.processor, passes)
        return processor
    if hasattr(processor, "rotate"):  # shares the tokens
        processor.rotate = passes.rotate
        return processor
    return CompiledAttention(passes, getattr(processor, "_attention_backend", None))


def _normalised(passes: Any, norm: Any, x: Tensor) -> Tensor:
    # The weight in the input's precision, also under autocast: see ``precision.follow_diffusers``.
    result: Tensor = passes.rms_norm(x, norm.weight, norm.eps)
    return result


def _layer_normalised(passes: Any, norm: Any, x: Tensor) -> Tensor:
    result: Tensor = passes.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return result


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
    return split


def _exactly(function: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """Calls a function in the precisions that it states; autocast would change them."""
    with torch.autocast(x.device.type, enabled=False):
        return function(x, *args)


# The functions that are compiled.


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale) + shift).type_as(x)


def _gate(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    return (x.float() + change.float() * gate).type_as(x)


def _add_and_modulate(
    x: Tensor, change: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = x + change
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return x, (normed * (1 + scale) + shift).type_as(x)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).type_as(x)


def _rms_norm(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of ``[B, S, N, D]``; tables ``[1, S, 1, D]``, each value twice."""
    pairs: Tensor = x.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    first, second = pairs.unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    rotated = (first * cos - second * sin, first * sin + second * cos)
    return torch.stack(rotated, dim=-1).flatten(-2).type_as(x)
