"""Fills an empty network with its weights, block by block.

A caller can merge, fuse or quantise each block before the next one is read, so memory holds one
block more than the finished network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier

Device = torch.device | str
Load = Callable[[str, torch.dtype, WeightCopier], Tensor]
"""A function that reads the weight of a name, in a precision, to a copier's device."""
OnPart = Callable[[str, nn.Module], None]
"""A function that gets the name and module of each filled part: "" and the network, then blocks."""


_BLOCKS: Final = ("blocks", "transformer_blocks", "encoder.block")
"""Names of the lists of blocks in the networks of diffusers and transformers."""
_UNET: Final = ("down_blocks", "mid_block", "up_blocks")
"""The parts of a U-Net in the order in which they run; each holds lists of transformer blocks."""
_UNET_BLOCKS: Final = "transformer_blocks"
_DEPTHS: Final = (2, 3, 5, 6)
"""Numbers of names in a path to a block: ``blocks.0``, or one in a U-Net."""


def repeated_blocks(network: nn.Module) -> nn.ModuleList:
    """The blocks that a network repeats: of a U-Net its transformer blocks, at all levels."""
    for name in _BLOCKS:
        blocks = getattr(network, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    found = _unet_blocks(network)
    if found:
        return nn.ModuleList(found.values())
    raise AssertionError(f"{type(network).__name__} has no list of blocks")


def blocks_of(network: nn.Module) -> Mapping[str, nn.Module]:
    """The blocks that a network repeats, by name, in the order in which they run."""
    for path in _BLOCKS:
        parent: Any = network
        for name in path.split("."):
            parent = getattr(parent, name, None)
        if isinstance(parent, nn.ModuleList):
            return {f"{path}.{index}": block for index, block in enumerate(parent)}
    return _unet_blocks(network)


def _unet_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks of a U-Net by name; empty for other networks."""
    if not all(isinstance(getattr(network, part, None), nn.Module) for part in _UNET):
        return {}
    return {
        f"{part}.{name}.{index}": block
        for part in _UNET
        for name, blocks in network.get_submodule(part).named_modules()
        if name.endswith(_UNET_BLOCKS) and isinstance(blocks, nn.ModuleList)
        for index, block in enumerate(blocks)
    }


def fill_network(
    network: nn.Module,
    names: Iterable[str],
    dtype_of: Callable[[str], torch.dtype],
    load: Load,
    device: torch.device,
    on_part: OnPart | None = None,
) -> None:
    """Fills a network that was built without memory for weights.

    Args:
        network: The network; its constant tables are moved to the device.
        names: Names of its weights.
        dtype_of: Gives the precision of a weight by its name.
        load: See ``Load``.
        device: Device of the weights.
        on_part: See ``OnPart``.
    """
    blocks = blocks_of(network)
    parts: dict[str, list[str]] = {"": [], **{name: [] for name in blocks}}
    for name in names:
        parts[_block_name(name, blocks)].append(name)
    for module in network.modules():
        for name, table in module.named_buffers(recurse=False):
            module._buffers[name] = table.to(device)
    copier = WeightCopier(device)
    for part, own in parts.items():
        for name in own:
            put_weight(network, name, load(name, dtype_of(name), copier))
        if on_part is not None:
            on_part(part, blocks.get(part, network))


def _block_name(name: str, blocks: Mapping[str, nn.Module]) -> str:
    for depth in _DEPTHS:
        start = ".".join(name.split(".")[:depth])
        if start in blocks:
            return start
    return ""


def put_weight(network: nn.Module, name: str, value: Tensor) -> None:
    """Gives a network the weight or constant table of a name."""
    owner, _, attribute = name.rpartition(".")
    module = network.get_submodule(owner)
    if attribute in module._buffers:
        module._buffers[attribute] = value
    else:
        empty = module.get_parameter(attribute)
        setattr(module, attribute, nn.Parameter(value, requires_grad=empty.requires_grad))
