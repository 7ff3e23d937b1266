"""A Wan model of any published shape with random weights, made in memory, on the device or a CPU.

No folder is read or written, so a benchmark of a large shape starts in seconds. A weight depends on
its name alone, so all networks of a model start from the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.loading import stays_float32
from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.text_rows import TextEncoder
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.tensors.safetensors_files import Header, TensorInfo
from lightx2v_sgmd.networks.block_loading import Device, OnPart, fill_network

SHAPES: Final = {
    "14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "sprites": "sprites",
}
"""The models whose shapes are measured, by short names."""
PROMPT: Final = "a red circle moving left quickly"
SPREAD = 0.02
"""Standard deviation of the random matrices."""


@dataclass(frozen=True)
class RandomWan(WanModel):
    """An opened model whose networks get random weights: every role starts from the same ones.

    Attributes:
        device: The device that the weights are made on.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def load_transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
        on_part: OnPart | None = None,
    ) -> Any:
        """The network with random weights; what diffusers keeps in float32 stays float32.

        Args:
            dtype: The precision of the weights.
            device: The device that they are made on; default the model's.
            on_part: Called with each part that has its weights: "" and the network when all but its
                blocks have them, then each block with its name.
        """
        with _empty_weights():
            network = self.build_transformer()
        is_float32 = stays_float32(network)
        return _filled(network, dtype, is_float32, device or self.device, on_part)

    def load_vae(self, dtype: torch.dtype = torch.float32, device: Device | None = None) -> Any:
        """The VAE with random weights, frozen."""
        from diffusers import AutoencoderKLWan

        with _empty_weights():
            network = AutoencoderKLWan.from_config(self.vae_config)
        where = torch.device(device or self.device)
        return _filled(network, dtype, stays_float32(network), where).requires_grad_(False)

    def load_text_encoder(
        self,
        dtype: torch.dtype,
        device: Device | None = None,
        on_part: OnPart | None = None,
        stream: bool = False,
    ) -> TextEncoder:
        """The umT5 encoder at its size, frozen, and a tokenizer that knows the words of PROMPT."""
        assert not stream, "random weights are in no file"
        from transformers import UMT5Config, UMT5EncoderModel

        from tools.models.wan_folder import make_tokenizer

        with _empty_weights():
            network = UMT5EncoderModel(UMT5Config(**self.expected_text_encoder_config()))
        network.set_input_embeddings(network.shared)
        filled = _filled(network, dtype, lambda name: False, device or self.device, on_part)
        return TextEncoder(make_tokenizer(PROMPT.split()), filled.requires_grad_(False))

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
        device: The device that they are made on.
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


def _empty_weights() -> Any:
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


def _filled(
    network: Any,
    dtype: torch.dtype,
    is_float32: Callable[[str], bool],
    device: Device,
    on_part: OnPart | None = None,
) -> Any:
    """Gives an empty network its weights, those that are ``is_float32`` in that precision."""
    shapes = {
        name: tuple(p.shape)
        for name, p in network.named_parameters()
        if name not in EMBEDDING_ALIASES
    }
    fill_network(
        network,
        shapes,
        lambda name: torch.float32 if is_float32(name) else dtype,
        lambda name, dtype, copier: _values(name, shapes[name], copier.device).to(dtype),
        torch.device(device),
        on_part,
    )
    if hasattr(network, "shared"):  # umT5's embedding has two names
        network.set_input_embeddings(network.shared)
    return network.eval()


def _values(
    name: str, shape: tuple[int, ...], device: torch.device, vector: bool | None = None
) -> Tensor:
    """Ones for the norms' weights, zeros for biases, normal numbers for matrices."""
    if name.endswith("gamma"):  # of the VAE's norms
        return torch.ones(shape, device=device)
    if len(shape) == 1 if vector is None else vector:
        return torch.full(shape, float(name.endswith("weight")), device=device)
    source = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, device=device).normal_(0, SPREAD, generator=source)


def open_random_wan(path: str, device: torch.device) -> RandomWan:
    """A published model's shape with random weights; nothing is downloaded.

    Args:
        path: A name of ``SHAPES``, a hub id of Wan2.1, ``sprites`` or a folder.
        device: The device that the weights are made on.
    """
    model = open_wan(SHAPES.get(path, path))
    return RandomWan(**vars(model), device=device)
