"""Encodes prompts as CogVideoX attends to them: T5's output for 226 tokens, padding included.

The stock pipeline masks nothing, in the encoder or in the network, so the rows of padding tokens
count and are cached with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightx2v_sgmd.families.text_rows import TextEncoder

# B batch, S text tokens, D text width


class PaddedTextEncoder(TextEncoder):
    """T5 and its tokenizer: encodes prompts into text embeddings of one length.

    Args:
        tokenizer: The tokenizer.
        network: The encoder.
        length: Number of tokens S, the padding included.
    """

    def __init__(self, tokenizer: Any, network: Any, length: int) -> None:
        super().__init__(tokenizer, network)
        self.length = length

    @property
    def _clean(self) -> Callable[[str], str]:
        return str  # the pipeline gives the prompt to the tokenizer as it is

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, S]``; a longer prompt is cut."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def inputs(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """The network's arguments, on its device: token ids ``[B, S]`` and no mask."""
        return super().inputs(prompts)[:1]
