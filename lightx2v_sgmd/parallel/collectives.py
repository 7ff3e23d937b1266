"""Exchanges, with gradients, among the ranks that share a video: tokens, heads, parts."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# P ranks of the group, s tokens of a rank


class Group(Protocol):
    """The ranks that share a video: a ``ProcessGroup``, or on the meta device only its size."""

    def rank(self) -> int:
        """This rank's index in the group."""
        ...

    def size(self) -> int:
        """Number of ranks that share the video."""
        ...


def shared_input(x: Tensor, group: Group) -> Tensor:
    """Marks an input that every rank of a group has and uses for a part of the work.

    Its gradient is whole on every rank if the parts come together in ``gathered_parts``.
    """
    marked: Tensor = shared(x, group)
    return marked


def gathered_parts(part: Tensor, group: Group) -> Tensor:
    """Gathers each rank's part of the work, ``[...]`` to ``[P, ...]``, on all ranks.

    Gradients are those of ``enable_sequence_parallel``: every rank computes the same loss.
    """
    parts: Tensor = _Gather.apply(part, group)  # type: ignore[no-untyped-call]
    return parts


def own_part(x: Tensor, dim: int, group: Group) -> Tensor:
    """Takes this rank's share along ``dim``, with zeros after the last element."""
    count = -(-x.shape[dim] // group.size())
    start = min(group.rank() * count, x.shape[dim])
    own = x.narrow(dim, start, min(count, x.shape[dim] - start))
    return lengthened(own, dim, count)


def lengthened(x: Tensor, dim: int, length: int) -> Tensor:
    """Pads a dimension with zeros at its end to ``length``."""
    missing = length - x.shape[dim]
    return F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, missing)) if missing else x


def unflatten(x: Tensor, dim: int, count: int) -> Tensor:
    """Splits a dimension into ``count`` and the rest."""
    split: Tensor = x.unflatten(dim, (count, -1))  # type: ignore[no-untyped-call]
    return split


def shared(value: Any, group: Group) -> Any:
    """Marks an input of a network, if it needs a gradient; see ``shared_input``."""
    if isinstance(value, Tensor) and value.requires_grad:
        return _Shared.apply(value, group)  # type: ignore[no-untyped-call]
    return value


def exchange(x: Tensor, group: Group) -> Tensor:
    """Sends chunk ``r`` of the first dimension to rank ``r`` and takes chunk ``r`` from it."""
    exchanged: Tensor = _Exchange.apply(x, group)  # type: ignore[no-untyped-call]
    return exchanged


class _Shared(torch.autograd.Function):
    """An input that all ranks have; its gradient is the mean of theirs, see ``_Gather``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        if not whole.is_meta:
            dist.all_reduce(whole, group=ctx.group)
        return whole / ctx.group.size(), None


class _Exchange(torch.autograd.Function):
    """All-to-all over the first dimension, which is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradients[0], ctx.group), None


class _Gather(torch.autograd.Function):
    """Gathers ``[B, s, K]`` of each rank to ``[P, B, s, K]`` on all.

    All ranks compute the same loss, so each has the gradient already and takes its own part of it,
    times P: that is what makes a mean over ranks, as ZeRO takes it, the gradient of the loss.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = x.new_empty(group.size(), *x.shape)
        if not x.is_meta:
            dist.all_gather(list(parts.unbind()), x.contiguous(), group=group)
        return parts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.group.rank()] * ctx.group.size(), None


def _all_to_all(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    if not x.is_meta:  # the network of a plan, which has no other ranks
        dist.all_to_all_single(received, x, group=group)
    return received
