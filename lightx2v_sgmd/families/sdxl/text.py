"""Encodes prompts as SDXL attends to them: the rows of two CLIP encoders side by side.

The stock pipeline masks nothing, so the rows of padding tokens count and are cached with the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightx2v_sgmd.families.conditioning import POOLED, TEXT, Embedding
from lightx2v_sgmd.families.sd3.text import tokens

# S text tokens, D text width, P width of the pooled vector


class SDXLTextEncoder:
    """The tokenizers and encoders of SDXL.

    Args:
        tokenizers: Those of CLIP-L and of CLIP-G.
        networks: Their encoders; the second one gives the pooled vector too.
        length: Number of tokens S, the padding included.
        empty_is_zero: True if an empty prompt is zeros, as ``force_zeros_for_empty_prompt`` says.
    """

    def __init__(
        self, tokenizers: Sequence[Any], networks: Sequence[Any], length: int, empty_is_zero: bool
    ) -> None:
        self.tokenizers, self.network = list(tokenizers), torch.nn.ModuleList(networks)
        self.length, self.empty_is_zero = length, empty_is_zero

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads most of a prompt: both read as much."""
        return self.tokenizers[0]

    @property
    def prompts_at_once(self) -> int:
        """1: each prompt is encoded alone."""
        return 1

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Embedding]:
        """Encodes each prompt alone; its rows are ``[S, D]`` and its pooled vector ``[P]``."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Embedding:
        outputs = [
            network(tokens(tokenizer, prompt, self.length, network), output_hidden_states=True)
            for tokenizer, network in zip(self.tokenizers, self.network, strict=True)
        ]
        rows = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
        embedding = Embedding({TEXT: rows, POOLED: outputs[-1][0][0]})
        if prompt or not self.empty_is_zero:
            return embedding
        return embedding.map(torch.zeros_like)
