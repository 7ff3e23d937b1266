"""A forward pass of Wan blocks with as few passes over the tokens as PyTorch allows.

diffusers' block computes norms, modulation, rotations and gates in many small operations, each of
which reads and writes all tokens. This module uses few operations: they work in place without a
gradient and outside of ``torch.compile``, and otherwise are written so that a compiler fuses them.
The results equal those of diffusers' block in the same precisions, to rounding. Weights stay where
they are, and matrix products are calls of the block's own modules, which may be quantised,
offloaded, or have LoRA layers. ``compiled_passes`` does the same for training.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightx2v_sgmd.networks.block_modulation import block_modulation

# B batch, S tokens, N heads, D head size, W = N * D width

__all__ = ["FusedAttention", "fuse_passes", "fused_forward", "rotate"]


def fuse_passes(network: Any) -> None:
    """Gives every block of a ``WanTransformer3DModel`` the forward pass of this module.

    A block that also attends to an image keeps diffusers' forward pass. Call this function before
    an attention kernel is chosen and before tokens are shared, because both change the processors.
    """
    for block in network.blocks:
        if block.attn2.add_k_proj is not None:
            continue
        for attention in (block.attn1, block.attn2):
            attention.set_processor(FusedAttention())
        block.forward = MethodType(fused_forward, block)


def fused_forward(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: Any,
) -> Tensor:
    """A ``WanTransformerBlock``'s output, ``[B, S, W]``.

    Args:
        block: The block.
        hidden_states: ``[B, S, W]``.
        encoder_hidden_states: The text, ``[B, rows, W]``.
        temb: The embedded time, ``[B, 6, W]``, or ``[B, S, 6, W]`` where every token has its own.
        rotary_emb: Argument of the block's self-attention.
    """
    x = hidden_states
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = block_modulation(block, temb)

    normed = _modulated(x, 1 + scale, shift, block.norm1.eps)
    x = _gated(x, block.attn1(normed, None, None, rotary_emb), gate)
    normed = block.norm2(x.float()).type_as(x)
    attended = block.attn2(normed, encoder_hidden_states, None, None)
    x = x.add_(attended) if _in_place() else x + attended
    normed = _modulated(x, 1 + ffn_scale, ffn_shift, block.norm3.eps)
    return _gated(x, block.ffn(normed), ffn_gate, overwrite=True)


class FusedAttention:
    """A processor of ``WanAttention``: self-attention, or cross-attention to the text."""

    # diffusers' set_attention_backend writes the first attribute, and reads the second.
    _attention_backend: Any = None
    _parallel_config: Any = None

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

        query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
        query = _heads(_normalised(query, attn.norm_q), attn.heads)
        key = _heads(_normalised(key, attn.norm_k), attn.heads)
        value = _heads(value, attn.heads)
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
            if value.device.type == "cpu" and _in_place():
                value = _by_head(value).copy_(value)
        output = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
        )
        output = output.flatten(2, 3).type_as(query)
        projected: Tensor = attn.to_out[1](attn.to_out[0](output))
        return projected


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of numbers; may overwrite ``x`` if no gradient is needed.

    Args:
        x: ``[B, S, N, D]``.
        cos: ``[1, S, 1, D]`` float32, each value twice.
        sin: The sines, in the same layout.

    Returns:
        ``[B, S, N, D]`` in the precision of ``x``.
    """
    pairs = _split(x.float(), 2)
    if _in_place():
        # One pass over the numbers, as a product of complex ones.
        rotation = torch.complex(cos[..., 0::2].float(), sin[..., 1::2].float())
        turned = torch.view_as_complex(pairs)
        turned = torch.mul(turned, rotation, out=_by_head(turned) if x.is_cpu else turned)
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    # (a, b) becomes a cos + b (-sin) and b cos + a sin: one pass, without a concatenation.
    signs = 2 * torch.arange(2, device=x.device, dtype=sin.dtype) - 1
    rotated = pairs * _split(cos, 2) + pairs.flip(-1) * (_split(sin, 2) * signs)
    return rotated.flatten(-2).type_as(x)


def _by_head(x: Tensor) -> Tensor:
    """An empty tensor like ``x [B, S, N, D]`` in which the rows of a head follow one another.

    PyTorch's attention on a CPU reads such tensors faster.
    """
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


def _in_place() -> bool:
    """True if results may overwrite their inputs: no gradient, and no compiler."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _projected(attn: Any, x: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, ``[B, S or rows, W]`` each."""
    if not attn.fused_projections:
        source = x if text is None else text
        return attn.to_q(x), attn.to_k(source), attn.to_v(source)
    if text is None:
        query, key, value = attn.to_qkv(x).chunk(3, dim=-1)
        return query, key, value
    key, value = attn.to_kv(text).chunk(2, dim=-1)
    return attn.to_q(x), key, value


def _heads(x: Tensor, heads: int) -> Tensor:
    return _split(x, x.shape[-1] // heads)


def _split(x: Tensor, size: int) -> Tensor:
    """The last dimension as groups of ``size``."""
    split: Tensor = x.unflatten(-1, (-1, size))  # type: ignore[no-untyped-call]
    return split


def _normalised(x: Tensor, norm: Any) -> Tensor:
    """The RMS norm over all heads; PyTorch has no own kernel for it on a CPU."""
    if not (_in_place() and x.device.type == "cpu" and x.dtype == torch.float32):
        result: Tensor = norm(x)
        return result
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
    return x.mul_(inverse).mul_(norm.weight)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The normalised tokens times ``scale`` plus ``shift``, computed in float32."""
    width = (x.shape[-1],)
    if _in_place() and scale.shape[:2] == (1, 1) and len(x) == 1:
        # One video at one time: the modulation is what a layer norm has as weight and bias.
        return F.layer_norm(x.float(), width, scale[0, 0], shift[0, 0], eps).type_as(x)
    normed = F.layer_norm(x.float(), width, eps=eps)
    if _in_place():
        return torch.addcmul(shift, normed, scale, out=torch.empty_like(x))
    return (normed * scale + shift).type_as(x)


def _gated(x: Tensor, change: Tensor, gate: Tensor, overwrite: bool = False) -> Tensor:
    """``x + change * gate``, computed in float32."""
    if _in_place():
        return torch.addcmul(x, change, gate, out=x if overwrite else torch.empty_like(x))
    return (x.float() + change.float() * gate).type_as(x)
