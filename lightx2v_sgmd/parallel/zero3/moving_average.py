"""The student's EMA weights under ``zero3``: each rank averages its part of the master weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.parallel.zero3.master_weights import MasterWeights

_PIECE = 1 << 24
"""Numbers of the moving average that change places at once."""


class MovingAverage:
    """This rank's part of the EMA weights of the student's networks.

    Args:
        masters: Gives a role's master weights.
        roles: The student's roles, one for each expert.
    """

    def __init__(self, masters: Callable[[str], MasterWeights], roles: Sequence[str]) -> None:
        self._masters = masters
        self._flats = {role: [f.detach().clone() for f in masters(role).flats()] for role in roles}

    @torch.no_grad()
    def update(self, decay: float, role: str) -> None:
        """Moves the average: ``decay * average + (1 - decay) * student``."""
        flats = self._masters(role).flats()
        for average, flat in zip(self._flats[role], flats, strict=True):
            average.lerp_(flat, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swaps EMA and master weights piece by piece: a copy may not fit in memory."""
        for role, averages in self._flats.items():
            masters = self._masters(role)
            for average, flat in zip(averages, masters.flats(write=True), strict=True):
                pieces = (torch.split(numbers, _PIECE) for numbers in (average, flat))
                for ours, theirs in zip(*pieces, strict=True):
                    before = ours.clone()
                    ours.copy_(theirs)
                    theirs.copy_(before)
            masters.publish()

    def parts(self, role: str) -> Iterator[tuple[str, Any, Tensor]]:
        """This rank's part of each weight: its name, its parameter, and its EMA values."""
        masters = self._masters(role)
        for group, flat in enumerate(self._flats[role]):
            yield from masters.split(group, flat)
