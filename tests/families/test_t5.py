"""Common parts of families with a T5 encoder: the names of its weights, and its tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightx2v_sgmd.families.t5 import check_vocabulary, one_embedding
from lightx2v_sgmd.system.errors import UserError

SHARED, ALIAS = "shared.weight", "encoder.embed_tokens.weight"


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        ([SHARED, "a"], {SHARED: SHARED, "a": "a"}),
        ([ALIAS, "a"], {ALIAS: SHARED, "a": "a"}),
        ([SHARED, ALIAS, "a"], {ALIAS: SHARED, "a": "a"}),  # the encoder computes with the second
    ],
)
def test_the_embedding_has_one_name(stored: list[str], names: dict[str, str]) -> None:
    assert one_embedding(stored) == names


def test_a_tokenizer_of_another_model_is_refused() -> None:
    network = SimpleNamespace(config=SimpleNamespace(vocab_size=10))
    check_vocabulary(torch.tensor([[0, 9]]), network)
    with pytest.raises(UserError, match="gives token 10, but the text encoder has 10"):
        check_vocabulary(torch.tensor([[0, 10]]), network)
