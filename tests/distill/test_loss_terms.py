"""Loss terms: their sums and means, and the error that names what is not finite."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.loss_terms import LossAccumulator, NotFiniteError, SampleInfo, UpdateIndex
from distill.updates import Iteration
from lightx2v_sgmd.parallel import Ranks

INDEX = UpdateIndex(iteration=6, update=1, batch_index=20)


@dataclass
class Samples:
    """A micro-batch of two."""

    samples: tuple[int, ...] = (0, 1)
    prompts: tuple[int, ...] = (7, 3)
    time: Tensor = field(default_factory=lambda: torch.tensor([0.25, 0.5]))


SECOND = Samples((2, 3), (5, 7), torch.tensor([0.75, 0.125]))


@dataclass(frozen=True)
class TwoRanks(Ranks):
    """A rank of two, whose fellow has the same losses three times as large, and its own report."""

    size: int = 2
    report: dict[str, list[SampleInfo]] = field(default_factory=dict)

    def sum(self, values: Tensor) -> Tensor:
        return values + 3 * values

    def gather(self, value: Any) -> list[Any]:
        return [value, self.report]


def test_a_total_is_the_mean_of_each_term_and_carries_gradient() -> None:
    losses = LossAccumulator(Ranks())
    a = torch.tensor([1.0, 3.0]).requires_grad_()
    total = losses.total({"a": a, "b": 2 * a}, Samples())
    assert total.item() == 2 + 4
    total.backward()
    assert a.grad is not None and a.grad.tolist() == [1.5, 1.5]


def test_terms_are_averaged_over_micro_batches_and_forgotten() -> None:
    losses, result = LossAccumulator(Ranks()), Iteration(7, 0)
    losses.total({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 0.0])}, Samples())
    losses.total({"a": torch.tensor([5.0, 7.0]), "b": torch.tensor([1.0, 3.0])}, SECOND)
    losses.add_to(result, INDEX)
    assert result.losses == {"a": 4.0, "b": 1.0} and result.updates == {"a": 1, "b": 1}
    losses.total({"a": torch.tensor([10.0, 10.0])}, Samples())
    losses.add_to(result, INDEX)
    assert result.losses == {"a": 7.0, "b": 1.0} and result.updates == {"a": 2, "b": 1}
    losses.total({"a": torch.tensor([-2.0, -2.0])}, Samples())
    losses.add_to(result, INDEX)
    assert result.losses["a"] == pytest.approx((4 + 10 - 2) / 3) and result.updates["a"] == 3


def test_terms_are_averaged_over_ranks() -> None:
    losses, result = LossAccumulator(TwoRanks()), Iteration(7, 0)
    losses.total({"a": torch.tensor([1.0, 3.0])}, Samples())
    losses.add_to(result, INDEX)
    assert result.losses == {"a": (2 + 6) / 2}
    assert json.loads(json.dumps(result.losses)) == result.losses  # numbers, not tensors


def test_values_are_kept_without_their_graph() -> None:
    losses = LossAccumulator(Ranks())
    losses.total({"a": torch.ones(2, requires_grad=True) * 2}, Samples())
    assert not losses._values["a"][0].requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_names_term_step_and_samples(bad: float) -> None:
    losses, result = LossAccumulator(Ranks()), Iteration(7, 0)
    losses.total({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([bad, 0.0])}, Samples())
    losses.total({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([bad, bad])}, SECOND)
    with pytest.raises(NotFiniteError) as stopped:
        losses.add_to(result, INDEX)
    error = stopped.value
    assert str(error) == "step 7: the loss b is not finite for the prompts [5, 7]"
    assert error.videos == {
        "b": [SampleInfo(0, 7, 0.25), SampleInfo(2, 5, 0.75), SampleInfo(3, 7, 0.125)]
    }
    assert error.index == INDEX and error.gradient is None and result.losses == {}
    assert json.loads(json.dumps(error.to_dict())) == {
        "problem": str(error),
        "iteration": 6,
        "update": 1,
        "batch_index": 20,
        "gradient": None,
        "videos": {
            "b": [
                {"sample": 0, "prompt": 7, "time": 0.25},
                {"sample": 2, "prompt": 5, "time": 0.75},
                {"sample": 3, "prompt": 7, "time": 0.125},
            ]
        },
    }
    losses.total({"a": torch.tensor([1.0, 3.0])}, Samples())
    losses.add_to(result, INDEX)  # the broken terms are forgotten
    assert result.losses == {"a": 2.0}


def test_an_error_names_the_samples_of_all_ranks() -> None:
    other = {"b": [SampleInfo(9, 1, 0.5), SampleInfo(0, 7, 0.25)], "a": [SampleInfo(8, 2, 0.5)]}
    losses = LossAccumulator(TwoRanks(report=other))
    nan = float("nan")
    losses.total({"b": torch.tensor([nan, 0.0]), "a": torch.tensor([nan, nan])}, Samples())
    with pytest.raises(NotFiniteError) as stopped:
        losses.add_to(Iteration(7, 0), INDEX)
    assert str(stopped.value) == (
        "step 7: the loss b is not finite for the prompts [1, 7]; "
        "step 7: the loss a is not finite for the prompts [2, 3, 7]"
    )
    assert stopped.value.videos["b"] == [SampleInfo(0, 7, 0.25), SampleInfo(9, 1, 0.5)]


def test_finite_losses_whose_sum_is_not() -> None:
    losses = LossAccumulator(Ranks())
    largest = torch.finfo(torch.float32).max
    losses.total({"a": torch.tensor([largest, largest])}, Samples())
    with pytest.raises(NotFiniteError, match="^step 7: the sum of finite losses is not finite$"):
        losses.add_to(Iteration(7, 0), INDEX)


def test_the_error_of_a_gradient() -> None:
    error = NotFiniteError.of_gradient("student", float("inf"), INDEX)
    assert str(error) == "step 7: the gradient of student is inf"
    assert error.gradient == "student" and error.videos == {} and error.index == INDEX
