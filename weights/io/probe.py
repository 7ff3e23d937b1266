"""Evaluations of a real network whose weights need not be in memory all at once."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning, Embedding
from lightx2v_sgmd.families.loading import empty_weights
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.host_memory import available_gib
from weights.io.heap import HeapTrimmer

_ROWS = 8
"""Text tokens of the prompt that is made up."""
_MARGIN = 1.2
"""Memory of a network that is kept, in sizes of its weights."""


def probe(
    model: Model, dtype_of: Callable[[str], torch.dtype], read: Callable[[str], Tensor]
) -> Tensor:
    """One evaluation of a network; see ``Probe``."""
    return Probe(model, dtype_of, read).forward()


def fits_in_memory(model: Model) -> bool:
    """True if the main memory holds a model's network in float32, with room to spare."""
    count = sum(map(prod, model.transformer_shapes().values()))
    return _MARGIN * 4 * count / 2**30 <= available_gib()


class Probe:
    """A network that is evaluated on a few tokens, in float32, the same tokens for every network.

    diffusers' own network is built without weights; each layer gets its own just before it runs
    and loses them right after. A network of 28 GB then needs no more memory than its largest
    layer. Two evaluations with the same weights give the same bits: every weight is copied into
    memory of torch's own alignment, so that the kernels add in the same order.

    Args:
        model: The model whose network is built.
        dtype_of: The type of each weight.
        read: A function that reads a weight, by diffusers' name, in that type.
        keep: True if layers keep their weights, for several evaluations, until ``release``.
    """

    def __init__(
        self,
        model: Model,
        dtype_of: Callable[[str], torch.dtype],
        read: Callable[[str], Tensor],
        keep: bool = False,
    ) -> None:
        self._model, self._trimmer = model, HeapTrimmer()
        self._network = _filled_as_it_runs(model, dtype_of, read, keep)
        generator = torch.Generator("cpu").manual_seed(0)
        self._x_t, self._conditioning = _inputs(model, generator)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The prediction at the time 0.96."""
        return self._predict(self._x_t, torch.tensor([0.96]))

    @torch.no_grad()
    def rollout(self, schedule: Schedule) -> Tensor:
        """The latents after all steps of a schedule.

        Args:
            schedule: The steps.
        """
        return rollout(
            self._predict,
            self._x_t,
            schedule,
            interpolant=self._model.interpolant,
            fresh_noise=lambda step: torch.randn(
                self._x_t.shape, generator=torch.Generator("cpu").manual_seed(1 + step)
            ),
        )

    def release(self) -> None:
        """Frees the weights that layers kept, at once: the network is part of reference cycles."""
        for module in self._network.modules():
            _empty_layer(module)
        self._trimmer.trim()

    def _predict(self, x_t: Tensor, time: Tensor) -> Tensor:
        predicted = self._model.predict(self._network, x_t, time, self._conditioning)
        return predicted.float()


def _filled_as_it_runs(
    model: Model,
    dtype_of: Callable[[str], torch.dtype],
    read: Callable[[str], Tensor],
    keep: bool,
) -> Any:
    """The network, whose layers get their weights when they run."""
    network, trimmer = _empty(model, dtype_of), HeapTrimmer()
    names = {
        (module, own): f"{path}.{own}".lstrip(".")
        for path, module in network.named_modules()
        for own in module._parameters
    }

    def fill(module: Any, args: Any) -> None:
        for own, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                value = read(names[module, own]).clone()
                module._parameters[own] = torch.nn.Parameter(value, requires_grad=False)
        trimmer.trim()  # what was read and copied is gone, also where layers keep the copies

    def empty(module: Any, args: Any, output: Any) -> None:
        _empty_layer(module)
        trimmer.trim()

    for module in network.modules():
        if module._parameters:
            module.register_forward_pre_hook(fill)
            if not keep:
                module.register_forward_hook(empty)
    return network


def _empty_layer(module: Any) -> None:
    """Puts a layer's own weights on the meta device, where they have no values."""
    for own, parameter in module._parameters.items():
        if parameter is not None:
            emptied = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
            module._parameters[own] = emptied


def _empty(model: Model, dtype_of: Callable[[str], torch.dtype]) -> Any:
    """The network on the meta device, but with its constant tables, which are no weights."""
    with empty_weights():
        network = model.build_transformer()
    for path, module in network.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                typed = parameter.to(dtype_of(f"{path}.{own}".lstrip(".")))
                module._parameters[own] = torch.nn.Parameter(typed, requires_grad=False)
    return network.eval()


def _inputs(model: Model, generator: torch.Generator) -> tuple[Tensor, Conditioning]:
    """The noise that every network starts from, and what it is told."""
    rules = model.size_rules
    frames, height, width = (2 * length for length in rules.patch)
    shape = (1, rules.channels, 1 if rules.images else frames, height, width)
    x_t = torch.randn(shape, generator=generator)
    shapes = model.embedding_shapes
    told = {
        name: torch.randn([size or _ROWS for size in sizes], generator=generator)
        for name, sizes in shapes.items()
    }
    embedding = Embedding(told).with_image(model.empty_image(shape[2:]))
    return x_t, model.conditioning([embedding])
