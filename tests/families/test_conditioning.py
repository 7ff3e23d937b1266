"""Conditioning: named tensors that are batched, cut and repeated together."""

from __future__ import annotations

import pytest
import torch

from lightx2v_sgmd.families.conditioning import Conditioning, joined

TOLD = Conditioning(
    {
        "text": torch.arange(12.0).view(2, 3, 2),
        "pooled": torch.tensor([[1.0], [2.0]]),
    }
)


def test_every_tensor_has_the_same_samples() -> None:
    assert TOLD.batch == 2 and list(TOLD) == ["text", "pooled"]
    last = TOLD.rows(slice(-1, None))
    assert last["pooled"].tolist() == [[2.0]] and last["text"].tolist() == TOLD["text"][1:].tolist()
    with pytest.raises(AssertionError, match=r"different batches: \[1, 2\]"):
        Conditioning({"text": torch.zeros(2, 3), "pooled": torch.zeros(1)})


def test_repeating_keeps_the_order_of_the_batch() -> None:
    """As tensors do: the whole batch, and the whole batch again."""
    twice = TOLD.repeated(2)
    assert twice["pooled"].flatten().tolist() == [1, 2, 1, 2]
    assert torch.equal(twice["text"], TOLD["text"].repeat(2, 1, 1))
    one = TOLD.rows(slice(0, 1)).expanded(3)
    assert one["pooled"].flatten().tolist() == [1, 1, 1] and one["text"].shape == (3, 3, 2)
    assert one["text"].stride(0) == 0  # no copies


def test_batches_are_joined_in_order() -> None:
    both = joined([TOLD, TOLD.map(lambda tensor: -tensor)])
    assert both["pooled"].flatten().tolist() == [1, 2, -1, -2] and both.batch == 4
    assert both.to("meta")["text"].device.type == "meta"
