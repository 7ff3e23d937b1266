"""The processes of a run: the rank of this one, and the few values that they exchange."""

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
    """This process among the run's processes; a single process communicates nothing.

    Attributes:
        rank: This process's number, from 0.
        size: Number of processes.
        device: The device that this process computes on.
        share: Number of neighbouring processes that share one video's tokens (the sequence
            degree); it divides ``size``.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    share: int = 1

    @property
    def data_rank(self) -> int:
        """Index of this process's part of the global batch, equal for ranks that share a video."""
        return self.rank // self.share

    @property
    def data_size(self) -> int:
        """Number of parts of the global batch."""
        return self.size // self.share

    @property
    def first(self) -> bool:
        """True on the process that writes the files that a run writes once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Collects every process's ``value`` (it must pickle), in the order of ranks, on all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def once(self, action: Callable[[], T]) -> T:
        """Runs ``action`` on the first process and returns its result on all.

        Raises:
            UserError: ``action`` raised one on the first process; all processes raise it.
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
        """Runs ``action`` on each process and returns all results on all.

        Raises:
            UserError: ``action`` raised one on some process; all processes raise it.
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
        """Returns True on all processes if ``flag`` is set on any."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum(self, values: Tensor) -> Tensor:
        """Adds up ``values`` over all processes, on all."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values
