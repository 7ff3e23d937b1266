"""Prefetching of weights by DeepSpeed for a network that runs in several kinds of passes.

DeepSpeed records the order in which a network's modules run, from one forward to the next, and
gathers the weights of what comes next while a module computes. It holds one recording, of one
order: a pass of another kind invalidates it, and nothing is gathered ahead until two passes later.
In an iteration the kinds alternate (forwards without gradient, a backward pass to the inputs alone,
one to the weights), so here each kind has a recording of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PassKind = tuple[bool, bool, bool, str]
"""Gradient at all, to the weights, to the inputs; and a label for any other difference."""


class PrefetchByPass:
    """One of DeepSpeed's parameter coordinators for each kind of pass of a network.

    A coordinator has the recording and all bookkeeping of a pass. Coordinators share the weights
    and the registry of weights that are being gathered. A forward must not begin before the
    backward pass of the same network's last forward has ended, which DeepSpeed requires anyway.

    Args:
        engine: The engine, from ``deepspeed.initialize`` at stage 3.
    """

    def __init__(self, engine: Any) -> None:
        optimizer = engine.optimizer
        self._offload = getattr(optimizer, "parameter_offload", optimizer)
        self._network: nn.Module = engine.module
        self._label = ""
        self._unused: Any = self._offload.param_coordinator
        self.coordinators: dict[PassKind, Any] = {}
        # It runs before DeepSpeed's own hook, which begins or ends a recording.
        self._network.register_forward_pre_hook(self._choose, with_kwargs=True, prepend=True)

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Inside, forwards are passes of another kind, whose backward pass runs other modules."""
        before, self._label = self._label, label
        try:
            yield
        finally:
            self._label = before

    def _choose(self, module: Any, args: Any, kwargs: Any) -> None:
        kind = self._kind((*args, *kwargs.values()))
        if kind not in self.coordinators:
            self.coordinators[kind], self._unused = self._unused or self._another(), None
        self._offload.param_coordinator = self.coordinators[kind]

    def _kind(self, inputs: tuple[Any, ...]) -> PassKind:
        gradient = torch.is_grad_enabled()
        return (
            gradient,
            gradient and any(p.requires_grad for p in self._network.parameters()),
            gradient and any(isinstance(x, Tensor) and x.requires_grad for x in inputs),
            self._label,
        )

    def _another(self) -> Any:
        offload = self._offload
        return type(offload.param_coordinator)(
            prefetch_bucket_sz=offload._prefetch_bucket_sz,
            max_reuse_distance_in_numel=offload._max_reuse_distance_in_numel,
            max_available_parameters_in_numel=offload._max_available_parameters_in_numel,
            allgather_stream=offload._DeepSpeedZeRoOffload__allgather_stream,
            inflight_param_registry=self._network.ds_inflight_param_registry,
            prefetch_nvme=False,  # parameters are never in files, see ``deepspeed_config``
            timers=offload.timers,
        )
