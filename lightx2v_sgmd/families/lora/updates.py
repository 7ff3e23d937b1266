"""LoRA files merged into weights: into a network block by block, or into tensors when read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.lora.reading import read_lora
from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier
from lightx2v_sgmd.files.tensors.tensor_reader import Names, WholeTensors, copied
from lightx2v_sgmd.files.weighted_lora import WeightedLora

Shapes = Mapping[str, tuple[int, ...]]


class LoraUpdates:
    """The updates that LoRA files add to a network's weights.

    Merged, nothing is computed twice, and the network can be fused and quantised. The sum is
    made in float32 and rounded to the network's precision once.

    Args:
        loras: Files that ``open_lora`` accepted, with their strengths.
        shapes: Shapes of the network's parameters, by diffusers' name.
        skip_image_layers: True leaves out the layers of image-to-video models.

    Raises:
        UserError: a file cannot be read, or has values that are not finite.
    """

    def __init__(
        self, loras: Sequence[WeightedLora], shapes: Shapes, skip_image_layers: bool = False
    ) -> None:
        self._products: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        self._differences: dict[str, list[tuple[Tensor, float]]] = {}
        for lora in loras:
            update = read_lora(lora.path, shapes, skip_image_layers)
            for name, difference in update.differences.items():
                self._differences.setdefault(name, []).append((difference, lora.strength))
            for layer, (down, up) in update.factors.items():
                product = (down, up, lora.strength)
                self._products.setdefault(f"{layer}.weight", []).append(product)

    def __contains__(self, name: str) -> bool:
        """True if a file changes the weight of that name."""
        return name in self._products or name in self._differences

    @torch.no_grad()
    def add_to(self, name: str, weight: Tensor) -> None:
        """Adds what the files have for a weight, in place.

        Args:
            name: The weight's name in diffusers.
            weight: The weight, float32, on any device.
        """
        place = weight.device
        for down, up, strength in self._products.get(name, ()):
            weight.addmm_(up.to(place).float(), down.to(place).float(), alpha=strength)
        for difference, strength in self._differences.get(name, ()):
            weight.add_(difference.to(place).float(), alpha=strength)

    def has_difference(self, name: str) -> bool:
        """True if a file changes a weight by a tensor of its own shape."""
        return name in self._differences

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """The products that are added to a weight: ``up [out, r]``, ``down [r, in]``, float32."""
        return [
            (strength * up.float(), down.float())
            for down, up, strength in self._products.get(name, ())
        ]

    @torch.no_grad()
    def merge(self, prefix: str, part: nn.Module) -> None:
        """Adds what belongs to a part, where its weights are.

        Args:
            prefix: The part's name in the network, "" for the network itself.
            part: The part; weights that are on no device yet are left alone.
        """
        for own, p in part.named_parameters():
            name = f"{prefix}.{own}" if prefix else own
            if p.is_meta or name not in self:
                continue
            wide = p.float() if p.dtype != torch.float32 else p
            self.add_to(name, wide)
            if wide is not p:
                p.copy_(wide)


class MergedWholeTensors(WholeTensors):
    """The tensors of a network with LoRA files merged into them, each one when it is read.

    What a file changes is read as float32. Slices are equal to the whole to the last bit, because
    the sum is made of whole weights.

    Args:
        files: As for ``WholeTensors``.
        names: As for ``WholeTensors``; must give diffusers' names.
        updates: The updates that are added.
    """

    def __init__(self, files: Sequence[Path], names: Names | None, updates: LoraUpdates) -> None:
        super().__init__(files, names)
        self._updates = updates
        wide = FILE_NAMES[torch.float32]
        tensors = {
            name: replace(info, dtype=wide, start=None) if name in updates else info
            for name, info in self.header.tensors.items()
        }
        self.header = Header(tensors, self.header.metadata)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU; see ``WholeTensors.tensor``."""
        stored = super().tensor(name)
        if name not in self._updates:
            return stored
        merged = stored.to(torch.float32, copy=True)
        self._updates.add_to(name, merged)
        return merged

    def load(self, name: str, dtype: torch.dtype, copier: WeightCopier) -> Tensor:
        """A whole tensor in another precision; see ``WholeTensors.load``."""
        if name not in self._updates:
            return super().load(name, dtype, copier)
        return copied(self.tensor(name), dtype, copier)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements of the flattened tensor, a copy; see ``WholeTensors.read``."""
        if name not in self._updates or start >= stop:
            return super().read(name, start, stop)
        return self.tensor(name).flatten()[start:stop].clone()
