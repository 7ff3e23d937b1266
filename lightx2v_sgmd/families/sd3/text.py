"""Encodes prompts as SD3 attends to them: two CLIP encoders side by side, then T5's rows.

The stock pipeline masks nothing, in the encoders or in the network, so the rows of padding tokens
count and are cached with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.conditioning import POOLED, TEXT, Embedding
from lightx2v_sgmd.families.t5 import check_vocabulary
from lightx2v_sgmd.families.t5_streaming import PROMPTS_AT_ONCE, StreamedT5, run_each

# B batch, S text tokens, D text width


class SD3TextEncoder:
    """The tokenizers and encoders of SD3.

    Args:
        tokenizers: Those of CLIP-L, CLIP-G and, if the model has it, T5.
        networks: The encoders; that of T5 may be a ``StreamedT5``.
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
        self.tokenizers = list(tokenizers)
        in_memory = [network for network in networks if isinstance(network, torch.nn.Module)]
        self.network = torch.nn.ModuleList(in_memory)
        self.t5 = networks[2] if len(networks) > 2 else None
        self.text_dim, self.lengths = text_dim, lengths

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that reads most of a prompt: T5's, or CLIP's without it."""
        return self.tokenizers[-1]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Embedding]:
        """Encodes each prompt alone; its rows are ``[S, D]`` and its pooled vector ``[P]``."""
        last = self._t5_rows(prompts)
        return [self._encode(prompt, rows) for prompt, rows in zip(prompts, last, strict=True)]

    @property
    def prompts_at_once(self) -> int:
        """Prompts to encode in a call: 1, or several where each call reads T5's weights."""
        return PROMPTS_AT_ONCE if isinstance(self.t5, StreamedT5) else 1

    def _encode(self, prompt: str, last: Tensor | None) -> Embedding:
        hidden, pooled = [], []
        for tokenizer, network in zip(self.tokenizers[:2], self.network[:2], strict=True):
            ids = tokens(tokenizer, prompt, self.lengths[0], network)
            out = network(ids, output_hidden_states=True)
            pooled.append(out[0][0])
            hidden.append(out.hidden_states[-2][0])
        rows = torch.cat(hidden, dim=-1)
        rows = torch.nn.functional.pad(rows, (0, self.text_dim - rows.shape[-1]))
        if last is None:
            last = rows.new_zeros(self.lengths[1], self.text_dim)
        return Embedding({TEXT: torch.cat([rows, last]), POOLED: torch.cat(pooled)})

    def _t5_rows(self, prompts: Sequence[str]) -> Sequence[Tensor | None]:
        """T5's rows of each prompt; None without T5, in whose place are then rows of zeros."""
        if self.t5 is None:
            return [None] * len(prompts)
        tokenizer, length = self.tokenizers[2], self.lengths[1]
        inputs = [(tokens(tokenizer, prompt, length, self.t5),) for prompt in prompts]
        return [hidden[0] for hidden in run_each(self.t5, inputs)]


def tokens(tokenizer: Any, prompt: str, length: int, network: Any) -> Tensor:
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
