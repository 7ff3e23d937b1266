"""One evaluation of a real network whose weights are never in memory all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.loading import empty_weights
from weights.io.heap import HeapTrimmer

_ROWS = 8
"""Text tokens of the prompt that is made up."""


def probe(
    model: Model, dtype_of: Callable[[str], torch.dtype], read: Callable[[str], Tensor]
) -> Tensor:
    """The prediction of a network on a few tokens, float32, the same tokens for every network.

    diffusers' own network is built without weights; each layer gets its own just before it runs
    and loses them right after. A network of 28 GB then needs no more memory than its largest
    layer. Two calls with the same weights give the same bits: every weight is copied into memory
    of torch's own alignment, so that the kernels add in the same order.

    Args:
        model: The model whose network is built.
        dtype_of: The type of each weight.
        read: A function that reads a weight, by diffusers' name, in that type.
    """
    network, trimmer = _empty(model, dtype_of), HeapTrimmer()
    names = {
        (module, own): f"{path}.{own}".lstrip(".")
        for path, module in network.named_modules()
        for own in module._parameters
    }

    def fill(module: Any, args: Any) -> None:
        for own, parameter in module._parameters.items():
            if parameter is not None:
                value = read(names[module, own]).clone()
                module._parameters[own] = torch.nn.Parameter(value, requires_grad=False)

    def empty(module: Any, args: Any, output: Any) -> None:
        for own, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[own] = torch.nn.Parameter(
                    parameter.to("meta"), requires_grad=False
                )
        trimmer.trim()

    for module in network.modules():
        if module._parameters:
            module.register_forward_pre_hook(fill)
            module.register_forward_hook(empty)
    return _run(network, model)


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


@torch.no_grad()
def _run(network: Any, model: Model) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
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
    conditioning = model.conditioning([embedding])
    return model.predict(network, x_t, torch.tensor([0.96]), conditioning).float()
