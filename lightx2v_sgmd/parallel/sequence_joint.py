"""Sequence parallelism of networks whose text and video attend to each other in one attention.

CogVideoX's blocks carry text tokens beside the video's. A rank of a group keeps a share of each,
and trades both for all tokens of its share of the heads, as ``sequence`` does with the video's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightx2v_sgmd.networks.gradient_checkpointing import attention_outputs_stored
from lightx2v_sgmd.parallel.collectives import (
    Group,
    exchange,
    lengthened,
    own_part,
    shared,
    unflatten,
)
from lightx2v_sgmd.parallel.collectives import gathered_parts as gathered

# B batch, T and S text and video tokens, t and s those of this rank (padding included), P ranks of
# the group, N heads, n = N / P heads of this rank, D head size


class JointSplit:
    """The hooks of one network: text and video are split after the patches, video is gathered."""

    def __init__(self, network: Any, group: Group) -> None:
        self.group = group
        self._text: Any = None  # of the forward under way, whole
        self._length = 0  # S of the forward under way
        network.register_forward_pre_hook(self.share_inputs, with_kwargs=True)
        network.patch_embed.register_forward_pre_hook(self.whole_text)
        network.patch_embed.register_forward_hook(self.split_tokens)
        network.proj_out.register_forward_hook(self.gather_tokens)
        for block in network.transformer_blocks:
            block.attn1.set_processor(UlyssesJointAttention(group))

    def share_inputs(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Marks the inputs that need a gradient, and gives the network its share of the text.

        The network looks at that text's length only. T and S travel with the blocks' arguments: a
        block recomputed in the backward pass must not ask this object, which may have seen another
        video since.
        """
        assert not args, "the family names all arguments"
        _, frames, _, height, width = kwargs["hidden_states"].shape
        patch = module.config.patch_size
        self._length = frames * (height // patch) * (width // patch)
        kwargs = {key: shared(value, self.group) for key, value in kwargs.items()}
        self._text = kwargs["encoder_hidden_states"]
        lengths = (self._text.shape[1], self._length)
        told = {**(kwargs.get("attention_kwargs") or {}), "lengths": lengths}
        own = own_part(self._text, 1, self.group)
        return args, {**kwargs, "encoder_hidden_states": own, "attention_kwargs": told}

    def whole_text(self, module: Any, args: Any) -> tuple[Any, ...]:
        """Gives the patches' layer all text, whose positions it adds to."""
        text, self._text = self._text, None
        return (text, *args[1:])

    def split_tokens(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """Cuts ``[B, T + S, ND]`` to ``[B, t + s, ND]``."""
        parts = torch.split(output, [output.shape[1] - self._length, self._length], dim=1)
        return torch.cat([own_part(part, 1, self.group) for part in parts], dim=1)

    def gather_tokens(self, module: Any, args: Any, output: Tensor) -> Tensor:
        """Gathers ``[B, s, K]`` to ``[B, S, K]``."""
        return gathered(output, self.group).transpose(0, 1).flatten(1, 2)[:, : self._length]


class UlyssesJointAttention:
    """Attention of all text and video tokens over this rank's share of the heads.

    Padding is cut off before attention, so no kernel needs a mask.

    Args:
        group: The ranks that share the video.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        lengths: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Maps video ``[B, s, ND]`` and text ``[B, t, ND]`` to their like.

        ``image_rotary_emb`` are tables ``[S, D]``; ``lengths`` are T and S, from ``JointSplit``.
        """
        from diffusers.models.embeddings import apply_rotary_emb

        assert lengths is not None, "the lengths come with the network's inputs"
        own = encoder_hidden_states.shape[1], hidden_states.shape[1]
        joined = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        whole = partial(self._all_tokens, own=own, lengths=lengths)
        query, key, value = (
            unflatten(layer(joined), 2, attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (whole(x).transpose(1, 2) for x in (query, key, value))  # B n T+S D
        if image_rotary_emb is not None:
            text = lengths[0]
            query, key = (
                torch.cat(
                    [x[:, :, :text], apply_rotary_emb(x[:, :, text:], image_rotary_emb)], dim=2
                )
                for x in (query, key)
            )
        with attention_outputs_stored():
            output = F.scaled_dot_product_attention(query, key, value)
        back = self._all_heads(output.transpose(1, 2), own, lengths).flatten(2)
        projected = attn.to_out[1](attn.to_out[0](back.type_as(hidden_states)))
        text_out, video_out = torch.split(projected, list(own), dim=1)
        return video_out, text_out

    def _all_tokens(
        self, x_BksND: Tensor, own: tuple[int, int], lengths: tuple[int, int]
    ) -> Tensor:
        """Trades all heads of own tokens for all tokens ``[B, T + S, n, D]`` of own heads."""
        by_rank = unflatten(x_BksND, 2, self.group.size()).permute(2, 0, 1, 3, 4)
        exchanged = exchange(by_rank, self.group).transpose(0, 1)  # B P t+s n D
        parts = torch.split(exchanged, list(own), dim=2)
        return torch.cat(
            [part.flatten(1, 2)[:, :n] for part, n in zip(parts, lengths, strict=True)], dim=1
        )

    def _all_heads(self, x_BSnD: Tensor, own: tuple[int, int], lengths: tuple[int, int]) -> Tensor:
        """Trades all tokens of own heads for all heads ``[B, t + s, N, D]`` of own tokens."""
        size = self.group.size()
        parts = [
            unflatten(lengthened(part, 1, size * count), 1, size)
            for part, count in zip(torch.split(x_BSnD, list(lengths), dim=1), own, strict=True)
        ]
        exchanged = exchange(torch.cat(parts, dim=2).transpose(0, 1), self.group)
        return exchanged.permute(1, 2, 0, 3, 4).flatten(2, 3)
