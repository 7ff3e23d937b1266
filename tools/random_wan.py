"""A Wan model of any published shape with random weights, made in memory, on the device or a CPU.

No folder is read or written, so a benchmark of a large shape starts in seconds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.models.wan import WanModel, kept_in_float32, open_wan
from lightx2v_sgmd.tensorfiles import Header, TensorInfo

SPREAD = 0.02
"""Standard deviation of the random matrices."""


@dataclass(frozen=True)
class RandomWan(WanModel):
    """An opened model whose transformer gets random weights: every role starts from the same ones.

    Attributes:
        device: Where the weights are made.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def load_transformer(
        self, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Any:
        """The network with random weights; what diffusers keeps in float32 stays float32."""
        from accelerate import init_empty_weights

        device = device or self.device
        with init_empty_weights(include_buffers=False):
            network = self.build_transformer()
        kept = kept_in_float32(network)
        values = {
            name: _values(name, tuple(p.shape), device).to(torch.float32 if kept(name) else dtype)
            for name, p in network.named_parameters()
        }
        network.load_state_dict(values, assign=True)
        return network.to(device).eval()

    def transformer_weights(self) -> Any:
        """The same weights, made slice by slice."""
        with torch.device("meta"):
            network = self.build_transformer()
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        return RandomTensors(shapes, self.device)

    def random_rows(self, count: int, length: int) -> list[Tensor]:
        """Random text embeddings ``[length, D]``, in place of those of an encoder."""
        source = torch.Generator().manual_seed(0)
        return [torch.randn(length, self.text_dim, generator=source) for _ in range(count)]


class RandomTensors:
    """Random weights with the interface of ``WholeTensors``.

    A slice has other numbers than the same part of the whole tensor.

    Args:
        shapes: By name.
        device: Where they are made.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        self._device = device
        nowhere = Path("random")
        found = {name: TensorInfo("F32", shape, nowhere) for name, shape in shapes.items()}
        self.header = Header(found, {})

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return _values(name, self.header.tensors[name].shape, self._device)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``[start, stop)`` of the flattened tensor."""
        assert 0 <= start <= stop <= prod(self.header.tensors[name].shape), name
        return _values(name, (stop - start,), self._device, vector=self._is_vector(name))

    def _is_vector(self, name: str) -> bool:
        return len(self.header.tensors[name].shape) == 1


def _values(
    name: str, shape: tuple[int, ...], device: torch.device, vector: bool | None = None
) -> Tensor:
    """Ones for the norms' weights, zeros for biases, normal numbers for matrices."""
    if len(shape) == 1 if vector is None else vector:
        return torch.full(shape, float(name.endswith("weight")), device=device)
    source = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, device=device).normal_(0, SPREAD, generator=source)


def open_random_wan(path: str, device: torch.device) -> RandomWan:
    """A published model's shape with random weights; nothing is downloaded.

    Args:
        path: A hub id of Wan2.1, ``sprites`` or a folder.
        device: Where the weights are made.
    """
    model = open_wan(path)
    return RandomWan(**vars(model), device=device)
