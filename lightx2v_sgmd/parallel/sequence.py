"""Sequence parallelism after DeepSpeed-Ulysses (arXiv 2309.14509): ranks that share one video.

Each rank of a group keeps a share of the tokens. Only self-attention needs them all: there every
rank trades its share of the tokens of all heads for all tokens of its share of the heads, and
back. It is done with hooks and an attention processor; weights are not touched, so it works inside
ZeRO-3, under non-reentrant gradient checkpointing and for inference alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightx2v_sgmd.networks.gradient_checkpointing import attention_outputs_stored
from lightx2v_sgmd.parallel.collectives import (
    Group,
    exchange,
    gathered_parts,
    lengthened,
    own_part,
    shared,
    unflatten,
)
from lightx2v_sgmd.parallel.sequence_joint import JointSplit
from lightx2v_sgmd.system.errors import UserError

# B batch, S tokens of the whole video, s tokens of this rank (padding included), P ranks of the
# group, N heads, n = N / P heads of this rank, D head size


def sequence_degrees(heads: int, ranks: int = 0) -> list[int]:
    """Lists every degree that divides the heads and, if given, the number of ranks."""
    return [degree for degree in range(1, heads + 1) if math.gcd(heads, ranks) % degree == 0]


def check_degree(degree: int, heads: int, model: str, ranks: int = 0) -> None:
    """Checks a job's ``parallel.sequence``.

    Args:
        degree: Ranks that share one video.
        heads: Attention heads of the network.
        model: The network's name, for the message.
        ranks: Number of ranks of the run; 0 if it is not known yet.

    Raises:
        UserError: the degree does not divide the heads or the ranks; the message lists those that
            do.
    """
    if heads % degree:
        problem = f"does not divide the {heads} attention heads of {model}"
    elif ranks % degree:
        problem = f"does not divide the {ranks} ranks"
    else:
        return
    *others, last = map(str, sequence_degrees(heads, ranks))
    use = f"{', '.join(others)} or {last}" if others else last
    raise UserError(f"parallel.sequence: {degree} {problem}; use {use}")


def open_sequence_group(degree: int) -> dist.ProcessGroup:
    """Opens this rank's group: ranks ``k * degree`` to ``(k + 1) * degree - 1`` share video ``k``.

    This is a collective over all ranks of the run, whose number ``degree`` divides.
    """
    group: dist.ProcessGroup
    group, _ = dist.new_subgroups(group_size=degree)  # type: ignore[no-untyped-call]
    return group


def enable_sequence_parallel(network: Any, group: Group) -> None:
    """Lets the ranks of a group run a transformer together, Wan's or one with joint attention.

    Every rank of the group passes the same inputs, whole, and gets the whole output. Every rank
    then computes the same loss from it, unscaled.

    Gradients. Each rank's weights receive ``P`` times the part of the gradient that comes through
    its own tokens, so the **mean** over the group is the gradient of the loss. ZeRO and DDP
    average over all ranks, so nothing is left to do, and the loss must not be multiplied by the
    group's size. Code that sums over ranks divides by P. The gradient with respect to the network's
    inputs arrives on every rank whole and in its true scale.

    Args:
        network: The network. Its weights are equal on all ranks, or sharded by ZeRO-3 (before or
            after its engine is made). Its text padding may be folded.
        group: The group, from ``open_sequence_group``; its size divides the heads. A group of one
            changes nothing.

    Raises:
        UserError: the size does not divide the heads.
    """
    check_degree(group.size(), network.config.num_attention_heads, "the network")
    if group.size() == 1 or getattr(network, "sequence_degree", 1) == group.size():
        return
    if getattr(network, "sequence_degree", 1) != 1:
        raise ValueError(f"the network already has sequence degree {network.sequence_degree}")
    network.sequence_degree, network.sequence_group = group.size(), group
    if hasattr(network, "transformer_blocks"):  # text and video in one attention
        JointSplit(network, group)
        return
    split = _Split(group)
    network.register_forward_pre_hook(split.share_inputs, with_kwargs=True)
    network.rope.register_forward_hook(split.split_rotary)
    network.patch_embedding.register_forward_hook(split.split_tokens)
    network.proj_out.register_forward_hook(split.gather_tokens)
    for block in network.blocks:
        backend = getattr(block.attn1.processor, "_attention_backend", None)
        block.attn1.set_processor(UlyssesSelfAttention(group, backend))


def whole_tokens(network: Any, tokens_BsD: Tensor, length: int) -> Tensor:
    """Gathers a block's output from the network's group, ``[B, S, D]`` with S = ``length``.

    Gradients are those of ``enable_sequence_parallel``: every rank computes the same loss.
    """
    group = getattr(network, "sequence_group", None)
    if group is None:
        return tokens_BsD
    return gathered_parts(tokens_BsD, group).transpose(0, 1).flatten(1, 2)[:, :length]


class _Split:
    """The hooks of one network: tokens are split after the patches and gathered at the end."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._length = 0  # S of the forward under way

    def share_inputs(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Marks the inputs that need a gradient: each rank's tokens give a part of it.

        Of times ``[B, S]`` of each token the rank takes its share.
        """
        mark = partial(shared, group=self.group)
        args, kwargs = tuple(map(mark, args)), {k: mark(value) for k, value in kwargs.items()}
        timestep = kwargs.get("timestep")
        if timestep is not None and timestep.ndim == 2:
            kwargs["timestep"] = own_part(timestep, 1, self.group)
        return args, kwargs

    def split_rotary(self, module: Any, args: Any, output: Any) -> tuple[Tensor, Tensor, int]:
        """Cuts the tables ``[1, S, 1, D]`` to ``[1, s, 1, D]``, and lets S travel with them.

        A block recomputed in the backward pass must not ask this object, which may have seen
        another video since.
        """
        cos, sin = output
        self._length = cos.shape[1]
        return own_part(cos, 1, self.group), own_part(sin, 1, self.group), self._length

    def split_tokens(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """Cuts patches ``[B, ND, T, h, w]`` to ``[B, ND, s]``; the network flattens them anyway."""
        return own_part(output.flatten(2), 2, self.group)

    def gather_tokens(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """Gathers ``[B, s, K]`` to ``[B, S, K]``."""
        parts = gathered_parts(output, self.group)
        return parts.transpose(0, 1).flatten(1, 2)[:, : self._length]


class UlyssesSelfAttention:
    """Self-attention of all tokens over this rank's share of the heads.

    Padding is cut off before attention, so no kernel needs a mask.

    Args:
        group: The ranks that share the video.
        backend: diffusers' name of the attention kernel; None is its default.
    """

    def __init__(self, group: Group, backend: Any = None) -> None:
        self.group = group
        self.rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = _rotate
        # diffusers' set_attention_backend writes this attribute.
        self._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor, int] | None = None,
    ) -> Tensor:
        """Maps ``hidden_states [B, s, ND]`` to its like; ``rotary_emb`` is from ``_Split``."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        assert rotary_emb is not None, "self-attention comes with its rotary tables"
        cos, sin, length = rotary_emb
        heads = attn.heads
        query = self.rotate(unflatten(attn.norm_q(attn.to_q(hidden_states)), 2, heads), cos, sin)
        query = self._all_tokens(query, length)
        key = self.rotate(unflatten(attn.norm_k(attn.to_k(hidden_states)), 2, heads), cos, sin)
        key = self._all_tokens(key, length)
        value = self._all_tokens(unflatten(attn.to_v(hidden_states), 2, heads), length)
        with attention_outputs_stored():
            output = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        own = self._all_heads(output, hidden_states.shape[1]).flatten(2).type_as(hidden_states)
        projected: Tensor = attn.to_out[1](attn.to_out[0](own))
        return projected

    def _all_tokens(self, x_BsND: Tensor, length: int) -> Tensor:
        """Trades all heads of own tokens for all tokens ``[B, S, n, D]`` of own heads."""
        by_rank = unflatten(x_BsND, 2, self.group.size()).permute(2, 0, 1, 3, 4)
        exchanged = exchange(by_rank, self.group)  # P B s n D
        return exchanged.transpose(0, 1).flatten(1, 2)[:, :length]

    def _all_heads(self, x_BSnD: Tensor, count: int) -> Tensor:
        """Trades all tokens of own heads for all heads of ``count`` own tokens ``[B, s, N, D]``."""
        size = self.group.size()
        padded = lengthened(x_BSnD, 1, size * count)
        exchanged = exchange(unflatten(padded, 1, size).transpose(0, 1), self.group)
        return exchanged.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of ``[B, s, N, D]``; the tables hold each angle twice.

    A pair is a complex number, so one product does it.
    """
    cos, sin = cos[..., 0::2], sin[..., 0::2]
    exact = x.to(torch.promote_types(x.dtype, cos.dtype)).contiguous()
    pairs = torch.view_as_complex(unflatten(exact, -1, x.shape[-1] // 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)
