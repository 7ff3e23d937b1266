"""What a network is told beside x_t and the time, as a small tree of tensors.

Text-to-video networks of Wan have one entry, ``text``. Other families add pooled vectors, time ids,
image latents or masks; code outside the families passes them on without looking inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# B batch


@dataclass(frozen=True)
class Conditioning(Mapping[str, Tensor]):
    """Named tensors with one row for each sample.

    Attributes:
        tensors: The tensors ``[B, ...]`` by name; the family says which it needs.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in self.tensors.values()}
        assert len(sizes) == 1, f"conditioning of different batches: {sorted(sizes)}"

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(next(iter(self.tensors.values())))

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same names with a function of each tensor."""
        return Conditioning({name: change(tensor) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def rows(self, which: slice) -> Conditioning:
        """Some of the samples."""
        return self.map(lambda tensor: tensor[which])

    def repeated(self, count: int) -> Conditioning:
        """The whole batch ``count`` times: ``[count B, ...]``."""
        return self.map(lambda tensor: tensor.repeat(count, *[1] * (tensor.ndim - 1)))

    def expanded(self, count: int) -> Conditioning:
        """One sample for each of ``count``, without copies."""
        return self.map(lambda tensor: tensor.expand(count, *[-1] * (tensor.ndim - 1)))


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Several batches of one family as one, in order; their tensors have the same lengths."""
    return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
