"""Slices of flattened tensors in safetensors files, which any number of processes can read.

Process ``r`` of ``n`` owns elements ``[r k, (r + 1) k)`` of each flattened tensor, ``k`` being the
number of elements over ``n``, rounded up. A run saved on 32 processes resumes on 16, or on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightx2v_sgmd.files.tensors.safetensors_files import open_tensors
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.parallel.ranks import Ranks

__all__ = [
    "SlicedTensors",
    "WholeTensors",
    "fill_shards",
    "owned",
    "put",
    "share_frozen",
]


def owned(numel: int, rank: int, size: int) -> tuple[int, int]:
    """Computes the first and last (exclusive) flat element of a process; equal if it has none."""
    count = -(-numel // size)
    return min(rank * count, numel), min((rank + 1) * count, numel)


@torch.no_grad()
def put(part: Tensor, values: Tensor) -> None:
    """Writes ``values`` into a slice that may be padded at its end."""
    part[: values.numel()].copy_(values)
    part[values.numel() :].zero_()


def fill_shards(
    held: Mapping[str, Any],
    whole: WholeTensors,
    ranks: Ranks,
    copies: Sequence[Iterable[Tensor]] = (),
) -> None:
    """Writes a file's weights into a sharded network and others of its shape, by one read.

    Args:
        held: The network's weights.
        whole: The file, which has all of them.
        ranks: The processes of the run.
        copies: This rank's slices of the other networks' weights, in the same order.
    """
    for (name, p), *slices in zip(held.items(), *copies, strict=True):
        values = whole.read(name, *owned(p.ds_numel, ranks.rank, ranks.size))
        for part in (p.ds_tensor, *slices):
            put(part, values)


def share_frozen(network: nn.Module, held: Mapping[str, Any]) -> None:
    """Lets a network with frozen weights read them from the shards of another one.

    Each network still gathers for itself; only frozen weights are shared.

    Args:
        network: The network.
        held: The weights of the other one, by name.
    """
    named: dict[str, Any] = dict(network.named_parameters())
    for name, p in named.items():
        p.ds_tensor = held[name].ds_tensor


class SlicedTensors:
    """Reads a role's state that a run on any number of processes saved.

    Args:
        files: The files ``{role}.*.safetensors``, in the order of ranks.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._open: dict[Path, Any] = {}

    def read(self, name: str, numel: int, start: int, stop: int) -> Tensor:
        """Reads elements ``[start, stop)`` of a tensor of ``numel`` elements."""
        parts = [torch.zeros(0)]
        for rank, file in enumerate(self._files):
            low, high = owned(numel, rank, len(self._files))
            if max(start, low) < min(stop, high):
                part = _handle(self._open, file).get_slice(name)
                parts.append(part[max(start, low) - low : min(stop, high) - low])
        return torch.cat(parts)


def _handle(opened: dict[Path, Any], file: Path) -> Any:
    if file not in opened:
        opened[file] = open_tensors(file)
    return opened[file]
