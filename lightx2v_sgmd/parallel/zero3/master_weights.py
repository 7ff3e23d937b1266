"""A trained role's float32 master weights and Adam's state, wherever DeepSpeed has them.

DeepSpeed stores them as a few flat tensors, one for each group of weights; a group's flat tensor is
this rank's slices of its weights, end to end. Offloaded to a disk the flat tensors are empty, but
for the time in which their group is swapped in. One group at a time fits into the buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WeightPart = tuple[str, Any, Tensor]
"""A weight's name, the weight and its part of a flat tensor, a view."""

MOMENTS = ("exp_avg", "exp_avg_sq")


class MasterWeights:
    """The master weights of one role.

    Args:
        sharded: DeepSpeed's ZeRO-3 optimizer.
        adam: The optimizer that it wraps.
        named: The role's trained weights, by name.
    """

    def __init__(self, sharded: Any, adam: torch.optim.AdamW, named: Mapping[str, Any]) -> None:
        self._sharded, self._adam = sharded, adam
        self._names = {p: name for name, p in named.items()}

    def flats(self, write: bool = False) -> Iterator[Tensor]:
        """Gives each group's master weights, valid until the next group is requested.

        Args:
            write: Keep changes to these weights and to the moments.
        """
        for group, _ in enumerate(self._sharded.fp16_groups):
            with self._swapped_in(group, write):
                yield self._sharded.fp32_partitioned_groups_flat[group]

    def parts(self, write: bool = False) -> Iterator[WeightPart]:
        """Gives each weight's part of them, in the order of the trained weights."""
        for group, flat in enumerate(self.flats(write)):
            yield from self.split(group, flat)

    def split(self, group: int, flat: Tensor) -> Iterator[WeightPart]:
        """Gives each weight's part of a tensor that is laid out like a group's master weights."""
        offset = 0
        for p in self._sharded.fp16_groups[group]:
            count = p.partition_numel()
            yield self._names[p], p, flat[offset : offset + count]
            offset += count

    def moments(self, flat: Tensor, start: bool = False) -> dict[str, Tensor]:
        """Reads Adam's state of the group that ``flats`` gave last; zeros before the first update.

        Args:
            flat: The group's master weights.
            start: Let Adam continue from these tensors.
        """
        state = self._adam.state[flat]
        moments = {
            kind: state[kind] if kind in state else torch.zeros_like(flat) for kind in MOMENTS
        }
        if start:
            state.update(moments)
        return moments

    def set_updates(self, flat: Tensor, count: int) -> None:
        """Tells Adam how many updates led to a group's state."""
        # Beside the weights, where fused Adam wants it.
        self._adam.state[flat]["step"] = torch.tensor(float(count), device=flat.device)

    def publish(self) -> None:
        """Copies the master weights into the network."""
        self._sharded.checkpoint_event_prologue()
        for group, _ in enumerate(self.flats()):
            self._sharded._reassign_or_swap_out_partitioned_parameters(group)
        self._sharded.checkpoint_event_epilogue()

    @contextmanager
    def _swapped_in(self, group: int, write: bool) -> Iterator[None]:
        if not self._sharded._swappable_optimizer_subgroup(group):
            yield
            return
        self._sharded._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            # The swap-out that ends an update would drop gradients that wait in memory.
            if write:
                self._sharded._writeback_swap_state(group, True, False)
            else:
                self._sharded._release_swap_buffers(group)
