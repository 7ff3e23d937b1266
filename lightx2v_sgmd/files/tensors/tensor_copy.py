"""Copies a tensor from its file to a device, piece by piece: no second copy of it anywhere.

On a GPU the pieces travel through two pinned buffers in turn, so that one is read from the file
while the other one is on its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

PIECE_BYTES: Final = 32 * 2**20
"""Size of a piece as it is stored: large enough for a disk and a bus, small beside any network."""

Reader = Callable[[Tensor, int], object]
"""Fills a flat CPU tensor with a stored tensor's elements, from an index on."""


class WeightCopier:
    """Makes tensors on one device from what a reader gives; its buffers serve all of them.

    Args:
        device: The device on which the tensors are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda" and torch.cuda.is_available()
        self._buffers: list[Tensor] = []
        self._copied: list[Any] = []

    def copy(
        self, read: Reader, shape: tuple[int, ...], stored: torch.dtype, dtype: torch.dtype
    ) -> Tensor:
        """A new tensor on the device.

        Args:
            read: Gives the elements as they are stored.
            shape: The shape of the new tensor.
            stored: The type of the stored elements.
            dtype: The type of the new tensor.
        """
        result = torch.empty(shape, dtype=dtype, device=self.device)
        flat = result.view(-1)
        if self.device.type == "cpu" and stored == dtype:
            if flat.numel():
                read(flat, 0)
            return result
        for piece, start in self._pieces(math.prod(shape), stored):
            read(piece, start)
            target = flat.narrow(0, start, len(piece))
            if stored != dtype and self.device.type != "cpu":
                target.copy_(piece.to(self.device, non_blocking=True))  # cast there, not here
            else:
                target.copy_(piece, non_blocking=self._pinned)
        return result

    def _pieces(self, count: int, stored: torch.dtype) -> Iterator[tuple[Tensor, int]]:
        """A buffer to fill for each piece, and the index of the piece's first element.

        When the next buffer is asked for, the copy out of this one has been started.
        """
        at_once = PIECE_BYTES // stored.itemsize
        for turn, start in enumerate(range(0, count, at_once)):
            which = turn % 2 if self._pinned else 0
            buffer = self._buffer(which)[: min(at_once, count - start) * stored.itemsize]
            yield buffer.view(stored), start
            if self._pinned:
                self._copied[which].record(torch.cuda.current_stream(self.device))

    def _buffer(self, which: int) -> Tensor:
        """A buffer of bytes that nothing is being copied from."""
        if which == len(self._buffers):
            self._buffers.append(_new_buffer(self._pinned))
            self._copied.append(_event() if self._pinned else None)
        elif self._pinned:
            self._copied[which].synchronize()
        return self._buffers[which]


def _new_buffer(pinned: bool) -> Tensor:
    return torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=pinned)


def _event() -> Any:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
