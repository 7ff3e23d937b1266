"""Encodes prompts into the text embeddings that Wan attends to, and pads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import TEXT, Conditioning, Embedding
from lightx2v_sgmd.families.t5 import check_vocabulary
from lightx2v_sgmd.families.t5_streaming import PROMPTS_AT_ONCE, StreamedT5, run_each
from lightx2v_sgmd.system.errors import UserError

# B batch, S text tokens, D text width

TEXT_LENGTH: Final = 512
"""Number of text tokens that Wan attends to; shorter prompts are padded with rows of zeros."""


def text_dtype(teacher_dtype: torch.dtype | str) -> torch.dtype:
    """The precision of the text encoder for a teacher: the teacher's, or bfloat16 for float16.

    All code that encodes prompts uses this function, so that training and generation attend to the
    same embeddings. umT5 overflows in float16.

    Args:
        teacher_dtype: The teacher's precision, as a job (``teacher.dtype``) or torch names it.
    """
    dtype = getattr(torch, teacher_dtype) if isinstance(teacher_dtype, str) else teacher_dtype
    return torch.bfloat16 if dtype == torch.float16 else dtype


class TextEncoder:
    """umT5 and its tokenizer: encodes prompts into text embeddings, without padding."""

    def __init__(self, tokenizer: Any, network: Any) -> None:
        self.tokenizer = tokenizer
        self.network = network

    @cached_property
    def _clean(self) -> Callable[[str], str]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return prompt_clean  # type: ignore[no-any-return]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, S]``, padded to the longest, cut at ``TEXT_LENGTH``."""
        tokens = self.tokenizer(
            [self._clean(prompt) for prompt in prompts],
            padding="longest",
            max_length=TEXT_LENGTH,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def inputs(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """The network's arguments, on its device: token ids and mask ``[B, S]``."""
        ids, mask = self.tokenize(prompts)
        check_vocabulary(ids, self.network)
        return ids.to(self.network.device), mask.to(self.network.device)

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states ``[B, S, D]`` and mask ``[B, S]``; the caller's gradient mode applies."""
        ids, mask = TextEncoder.inputs(self, prompts)
        return self.network(ids, mask).last_hidden_state, mask

    @property
    def prompts_at_once(self) -> int:
        """Prompts to encode in a call: 1, or several where each call reads the weights."""
        return PROMPTS_AT_ONCE if isinstance(self.network, StreamedT5) else 1

    def encode(self, prompts: Sequence[str]) -> list[Embedding]:
        """The embedding of each prompt: its rows alone."""
        return [Embedding({TEXT: row}) for row in self.rows(prompts)]

    @torch.no_grad()
    def rows(self, prompts: Sequence[str]) -> list[Tensor]:
        """Encodes each prompt as ``[S_i, D]``, like ``WanPipeline`` before its zero padding.

        Each prompt is encoded alone. In a batch, the padding and the size of the products depend on
        the other prompts, and would change the last bits. So a prompt has the same embedding in
        training, in generation and in every measurement.
        """
        return [hidden[0] for hidden in run_each(self.network, [self.inputs([p]) for p in prompts])]


def pad_text(rows: Sequence[Tensor]) -> Tensor:
    """Stacks ``[S_i, D]`` to ``[B, S, D]``; zeros follow each, at least one row if S allows it."""
    longest = min(max(row.shape[0] for row in rows) + 1, TEXT_LENGTH)
    text = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    for target, row in zip(text, rows, strict=True):
        target[: row.shape[0]] = row
    return text


def text_conditioning(embeddings: Sequence[Embedding]) -> Conditioning:
    """The conditioning of networks that see text alone: ``text``, as ``pad_text`` makes it."""
    return Conditioning({TEXT: pad_text([embedding.text for embedding in embeddings])})


def fold_text_padding(transformer: Any) -> None:
    """Makes a network attend to the text's padding once, with a weight, instead of 500 times.

    Wan pads text to 512 rows of zeros, all of which give the same key and value. n equal
    keys add n times their exponential to the softmax, like one key whose logit is raised by
    ``log n``. So the result is the same, and a small model on a CPU, whose video has fewer tokens
    than its text, runs two to three times as fast. Large models gain nothing, and keep the kernels
    that take no mask.

    The weights pass from the text embedder to the blocks as one more row of the text, which the
    processor removes. This is a pure function of the inputs, so a block that gradient
    checkpointing computes again sees the same values.
    """
    if getattr(transformer, "text_padding_is_folded", False):
        return
    transformer.condition_embedder.register_forward_hook(_append_padding_bias, with_kwargs=True)
    for block in transformer.blocks:
        block.attn2.set_processor(_FoldedCrossAttention(block.attn2.processor))
    transformer.text_padding_is_folded = True


def _append_padding_bias(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
    temb, timestep_proj, embedded, image = output
    is_padding = (text == 0).all(-1)
    present = is_padding.sum(1, keepdim=True)
    wanted = present + (TEXT_LENGTH - text.shape[1])
    weight = wanted / present.clamp(min=1)
    bias = torch.where(is_padding, weight.clamp(min=1e-6).log(), 0.0)
    row = embedded.new_zeros(embedded.shape[0], 1, embedded.shape[2])
    if bias.shape[1] > row.shape[2]:
        raise UserError(
            f"the text has {bias.shape[1]} rows, more than the network's width {row.shape[2]}; "
            "shorten the prompts"
        )
    row[:, 0, : bias.shape[1]] = bias.to(row.dtype)
    return temb, timestep_proj, torch.cat([embedded, row], dim=1), image


class _FoldedCrossAttention:
    """A cross-attention processor that removes the padding weights and uses them as a mask."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Any:
        text, bias = encoder_hidden_states[:, :-1], encoder_hidden_states[:, -1]
        mask = bias[:, None, None, : text.shape[1]]
        return self.processor(attn, hidden_states, text, mask, rotary_emb)
