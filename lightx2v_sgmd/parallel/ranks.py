"""The processes of a run: who this one is, and the few things they tell one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightx2v_sgmd.system.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the run's processes. With one process nothing is communicated.

    Attributes:
        rank: From 0.
        size: How many there are.
        device: Where this process computes.
        share: How many neighbouring processes share one video's tokens; divides ``size``.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    share: int = 1

    @property
    def data_rank(self) -> int:
        """Which part of the global batch this process works on, with those it shares it with."""
        return self.rank // self.share

    @property
    def data_size(self) -> int:
        """How many parts the global batch has."""
        return self.size // self.share

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value`` (anything that pickles), in the order of ranks, on all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def once(self, action: Callable[[], T]) -> T:
        """What ``action`` gives on the first process, on all.

        Raises:
            UserError: on all, if it does on the first.
        """
        value: Any = None
        problem: str | None = None
        if self.first:
            try:
                value = action()
            except UserError as error:
                problem = str(error)
        shared: tuple[T, str | None] = self.gather((value, problem))[0]
        if shared[1] is not None:
            raise UserError(shared[1])
        return shared[0]

    def each(self, action: Callable[[], T]) -> list[T]:
        """What ``action`` gives on each process, on all.

        Raises:
            UserError: on all, if it does on any.
        """
        value: Any = None
        problem: str | None = None
        try:
            value = action()
        except UserError as error:
            problem = str(error)
        outcomes: list[tuple[T, str | None]] = self.gather((value, problem))
        for _, problem in outcomes:
            if problem is not None:
                raise UserError(problem)
        return [value for value, _ in outcomes]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any process, on all."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on all."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values
