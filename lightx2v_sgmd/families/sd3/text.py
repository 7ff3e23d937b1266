"""Encodes prompts as SD3 attends to them: two CLIP encoders side by side, then T5's rows.

The stock pipeline masks nothing, in the encoders or in the network, so the rows of padding tokens
count and are cached with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import TEXT, Embedding
from lightx2v_sgmd.families.t5 import check_vocabulary

# B batch, S text tokens, D text width

POOLED = "pooled"
"""The entry with the projected vectors of both CLIP encoders."""


class SD3TextEncoder:
    """The tokenizers and encoders of SD3.

    Args:
        tokenizers: Those of CLIP-L, CLIP-G and, if the model has it, T5.
        networks: Their encoders.
        text_dim: Width D of a text row.
        lengths: Numbers of tokens of CLIP and of T5, the padding included.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        networks: Sequence[Any],
        text_dim: int,
        lengths: tuple[int, int],
    ) -> None:
        self.tokenizers, self.network = list(tokenizers), torch.nn.ModuleList(networks)
        self.text_dim, self.lengths = text_dim, lengths

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads most of a prompt: T5's, or CLIP's without it."""
        return self.tokenizers[-1]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Embedding]:
        """Encodes each prompt alone; its rows are ``[S, D]`` and its pooled vector ``[P]``."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Embedding:
        hidden, pooled = [], []
        for tokenizer, network in zip(self.tokenizers[:2], self.network[:2], strict=True):
            ids = _tokens(tokenizer, prompt, self.lengths[0], network)
            out = network(ids, output_hidden_states=True)
            pooled.append(out[0][0])
            hidden.append(out.hidden_states[-2][0])
        rows = torch.cat(hidden, dim=-1)
        rows = torch.nn.functional.pad(rows, (0, self.text_dim - rows.shape[-1]))
        return Embedding(
            {TEXT: torch.cat([rows, self._t5(prompt, rows)]), POOLED: torch.cat(pooled)}
        )

    def _t5(self, prompt: str, like: Tensor) -> Tensor:
        """T5's rows; without T5 rows of zeros, as many."""
        if len(self.network) < 3:
            return like.new_zeros(self.lengths[1], self.text_dim)
        ids = _tokens(self.tokenizers[2], prompt, self.lengths[1], self.network[2])
        rows: Tensor = self.network[2](ids)[0][0]
        return rows


def _tokens(tokenizer: Any, prompt: str, length: int, network: Any) -> Tensor:
    """Token ids ``[1, length]``; a longer prompt is cut.

    Raises:
        UserError: the tokenizer has more tokens than the encoder.
    """
    ids: Tensor = tokenizer(
        [prompt],
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    ).input_ids
    check_vocabulary(ids, network)
    return ids.to(network.device)
