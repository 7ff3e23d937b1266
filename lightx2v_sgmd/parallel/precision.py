"""Keeps some weights of a network float32 while the rest computes in bfloat16.

diffusers names them (``_keep_in_fp32_modules``): Wan's embedding of the time, the tables that are
added to it and the norms, a few thousandths of all weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightx2v_sgmd.families.loading import stays_float32


def keep_in_float32(network: Any) -> None:
    """Makes these weights float32 in a network that was built in shards, before it has values."""
    is_float32 = stays_float32(network)
    for name, p in network.named_parameters():
        if is_float32(name):
            p.data = p.data.float()
            p.ds_tensor.data = p.ds_tensor.data.float()


def follow_diffusers(network: Any, device: torch.device) -> None:
    """Makes a float32 network under autocast compute what its bfloat16 copy does, bit for bit.

    Autocast would take the embedding of the time to bfloat16, and norms of heads to float32.
    It also computes layer norms in float32, which is not undone here: a network that has plain ones
    differs from its copy by rounding.
    """
    as_they_are = torch.autocast(device.type, enabled=False)
    if "time_embedder" in (network._keep_in_fp32_modules or ()):
        embedder = network.condition_embedder.time_embedder
        embedder.forward = as_they_are(embedder.forward)
    norms: list[Any] = [each for each in network.modules() if isinstance(each, nn.RMSNorm)]
    for norm in norms:
        norm.forward = as_they_are(partial(_normalized, norm))


def _normalized(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    assert norm.weight is not None
    return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def by_precision(weights: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups weights by precision, lowest first; DeepSpeed can lay out one group in one tensor."""
    groups: dict[torch.dtype, dict[str, Any]] = {}
    for name, p in weights.items():
        groups.setdefault(p.dtype, {})[name] = p
    return [groups[dtype] for dtype in sorted(groups, key=lambda dtype: dtype.itemsize)]


def of_mixed_precision(optimizer: Any) -> Any:
    """Derives a ZeRO-3 optimizer for weights of more than one precision from DeepSpeed's.

    DeepSpeed's own lays all shards side by side in one tensor, and gives offloaded weights the
    precision of the first one. Gradients travel in the first group's precision.

    Args:
        optimizer: DeepSpeed's class.

    Returns:
        A class for optimizers with a group of weights for each precision, the lowest first.
    """

    class MixedPrecision(optimizer):  # type: ignore[misc]
        def _get_parameter_partitions(self) -> list[Any]:
            every = super()._get_parameter_partitions()
            return [shard for shard in every if shard.dtype == self.dtype]

        def _set_fp16_partitioned_groups_flat(self) -> None:
            offset = 0
            for group in self.fp16_groups:
                numbers = sum(p.partition_numel() for p in group)
                if group[0].dtype == self.dtype:
                    flat = self.lp_param_buffer.narrow(0, offset, numbers)
                    offset += numbers
                else:
                    shard = group[0].ds_tensor
                    flat = torch.empty(numbers, dtype=shard.dtype, device=shard.device)
                    self._move_to_flat_buffer(group, flat)
                self.fp16_partitioned_groups_flat.append(flat)

        def _create_param_groups_fp16_flat_cpu_memory(self) -> None:
            super()._create_param_groups_fp16_flat_cpu_memory()
            held = self.param_groups_fp16_flat_cpu_memory
            for number, group in enumerate(self.trainable_param_groups):
                precision = group["params"][0].dtype
                if precision != self.dtype:
                    exact = torch.empty_like(held[number], dtype=precision)
                    held[number] = exact.pin_memory() if held[number].is_pinned() else exact

    return MixedPrecision
