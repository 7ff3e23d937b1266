"""Conditioning: a small tree of tensors that a network is given beside x_t and the time.

An ``Embedding`` is what is computed once for a prompt and cached; a ``Conditioning`` is a batch of
them, as the network takes it. Both have an entry ``text``, which is all that text-to-video networks
of Wan need. Other families add pooled vectors, image latents or masks; code outside the families
passes them on without looking inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

# B batch, S text tokens, D text width

TEXT: Final = "text"
"""The entry that every family has: the rows of the text encoder."""
POOLED: Final = "pooled"
"""The entry of teachers of images: the projected vectors of CLIP's encoders."""


@dataclass(frozen=True)
class _Tensors(Mapping[str, Tensor]):
    """Tensors by name."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same names with a function of each tensor."""
        return type(self)({name: change(tensor) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Embedding(_Tensors):
    """The embedding of one prompt, made by a model's text encoders.

    Attributes:
        tensors: ``text``, ``[S, D]``, and whatever else the family needs, by name. Names are plain
            identifiers, because files of embeddings store them.
    """

    @property
    def text(self) -> Tensor:
        """The rows ``[S, D]`` of the prompt."""
        return self.tensors[TEXT]

    def with_image(self, tensors: Mapping[str, Tensor]) -> Embedding:
        """The same beside what an image encoder made of the image that the video starts from."""
        return Embedding({**self.tensors, **tensors})


@dataclass(frozen=True)
class Conditioning(_Tensors):
    """Named tensors with one row for each sample.

    Attributes:
        tensors: The tensors ``[B, ...]`` by name; the family says which it needs.
    """

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in self.tensors.values()}
        assert len(sizes) == 1, f"conditioning of different batches: {sorted(sizes)}"

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(next(iter(self.tensors.values())))

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
