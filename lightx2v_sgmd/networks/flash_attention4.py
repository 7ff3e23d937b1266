"""FlashAttention 4 as an operator of PyTorch, so that a compiled network can call it.

The package's own function builds its kernel while it runs and asks PyTorch whether it is being
traced, which ``torch.compile`` cannot follow. An operator is one node of the graph, whose output
shape is known without running it. There is no backward pass: only the engine uses it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor

# B batch, S tokens, N heads, D head size

MODULE: Final = "flash_attn.cute"
_NAME: Final = "lightx2v_sgmd::flash_attention_4"
_SCHEMA: Final = "(Tensor q, Tensor k, Tensor v, float? scale, bool causal) -> Tensor"


class FlashAttention4(Protocol):
    """Attention by FlashAttention 4, its arguments named as the package names them."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Computes attention.

        Args:
            q: ``[B, S, N, D]``, bfloat16 or float16.
            k: Like ``q``; its S may differ.
            v: Like ``k``.
            softmax_scale: Default ``D ** -0.5``.
            causal: True if a token attends to earlier ones only.

        Returns:
            ``[B, S, N, D]``, contiguous.
        """
        ...


@cache
def flash_attention_4() -> FlashAttention4:
    """The function that calls the installed package, which is imported at the first call.

    The operator's name belongs to the whole process, so it is registered once, and outside the
    returned function, because a compiler that traces that function must not see the registration.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
        function = importlib.import_module(MODULE).flash_attn_func
        out = function(q, k, v, softmax_scale=scale, causal=causal)
        # Some releases also return the log-sum-exp.
        attended: Tensor = out[0] if isinstance(out, tuple) else out
        return attended.contiguous()

    def shape(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    operator = torch.library.custom_op(_NAME, run, mutates_args=(), schema=_SCHEMA)
    operator.register_fake(shape)

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        attended: Tensor = operator(q, k, v, softmax_scale, causal)
        return attended

    return attend
