"""DeepSpeed's prefetching when one network runs in several kinds of passes.

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

Kind = tuple[bool, bool, bool, str]
"""Gradient at all, to the weights, to the inputs; and what else sets a pass apart."""


class PrefetchByPass:
    """One of DeepSpeed's coordinators of parameters for each kind of pass of a network.

    A coordinator is the recording and all bookkeeping of a pass. They share the registry of weights
    that are under way, as they share the weights. A forward must not begin before the backward pass
    of the same network's last forward has ended, which holds for DeepSpeed anyway.

    Args:
        engine: Of ``deepspeed.initialize``, at stage 3.
    """

    def __init__(self, engine: Any) -> None:
        optimizer = engine.optimizer
        self._offload = getattr(optimizer, "parameter_offload", optimizer)
        self._network: nn.Module = engine.module
        self._label = ""
        self._unused: Any = self._offload.param_coordinator
        self.coordinators: dict[Kind, Any] = {}
        # Before DeepSpeed's own, which begins or ends a recording.
        self._network.register_forward_pre_hook(self._choose, with_kwargs=True, prepend=True)

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Inside, forwards begin passes of another kind: their backward runs other modules."""
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

    def _kind(self, inputs: tuple[Any, ...]) -> Kind:
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
            prefetch_nvme=False,  # parameters are never in files: see ``deepspeed_config``
            timers=offload.timers,
        )
