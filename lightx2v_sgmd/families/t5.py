"""T5 and umT5, the text encoders of several families: published sizes and names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T5_XXL: Final[Mapping[str, Any]] = {
    "model_type": "t5",
    "architectures": ["T5EncoderModel"],
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
"""``google/t5-v1_1-xxl``, the encoder of CogVideoX and SD3; umT5-XXL differs in its vocabulary."""
EMBEDDING: Final = "shared.weight"
EMBEDDING_ALIASES: Final = ("encoder.embed_tokens.weight",)
"""Second names that transformers gives to ``shared.weight``."""


def one_embedding(stored: Iterable[str]) -> dict[str, str]:
    """Maps stored names to transformers' names, with the embedding once, as ``shared.weight``.

    If a file has both of its names, the result has the one with which the encoder computes.
    """
    names = list(stored)
    alias = next((name for name in names if name in EMBEDDING_ALIASES), None)
    if alias is None:
        return {name: name for name in names}
    return {name: EMBEDDING if name == alias else name for name in names if name != EMBEDDING}


def check_vocabulary(ids: Tensor, network: Any) -> None:
    """Refuses tokens that an encoder does not have.

    Args:
        ids: Token ids of any shape.
        network: The encoder.

    Raises:
        UserError: the tokenizer is of another model.
    """
    known = int(network.config.vocab_size)
    if int(ids.max()) >= known:
        raise UserError(
            f"the tokenizer gives token {int(ids.max())}, but the text encoder has {known}; "
            "give the tokenizer and the text encoder of one model"
        )
