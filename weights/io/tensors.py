"""Tensors of a network that are read one by one: from files, or put together from adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.dtypes import TORCH_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import Header, TensorInfo, check_keys
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors, read_elements


class Tensors(Protocol):
    """The weights of a ``WanTransformer3DModel``, under diffusers' names; nothing is in memory."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, in the network's order."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a weight is stored."""
        ...

    def read(self, name: str) -> Tensor:
        """One weight, in that type."""
        ...

    def where(self, name: str) -> str:
        """The file that holds it, for messages."""
        ...


def read_tensor(info: TensorInfo) -> Tensor:
    """One tensor of a safetensors file, a copy.

    Not mapped into memory: mapped pages are read one by one where they are first touched, which
    would be in the thread that writes.
    """
    values = read_elements(info, TORCH_TYPES[info.dtype], 0, torch.Size(info.shape).numel())
    return values.view(info.shape)


@dataclass(frozen=True)
class FileTensors:
    """Weights in safetensors files, under any names.

    Attributes:
        header: The header of the files.
        shapes: The shapes by diffusers' names, in the network's order.
        stored_name: From diffusers' names to those in the files.
    """

    header: Header
    shapes: Mapping[str, tuple[int, ...]]
    stored_name: Callable[[str], str] = field(default=str)

    @classmethod
    def checked(
        cls,
        header: Header,
        shapes: Mapping[str, tuple[int, ...]],
        stored_name: Callable[[str], str],
        what: str,
    ) -> FileTensors:
        """Makes sure that the files hold exactly the network's weights.

        Raises:
            UserError: something is missing, unexpected or of another shape.
        """
        check_keys(header, {stored_name(name): shape for name, shape in shapes.items()}, what)
        return cls(header, shapes, stored_name)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a weight is stored."""
        return TORCH_TYPES[self.header.tensors[self.stored_name(name)].dtype]

    def read(self, name: str) -> Tensor:
        """One weight, in the type in which it is stored."""
        return read_tensor(self.header.tensors[self.stored_name(name)])

    def where(self, name: str) -> str:
        """The file that holds a weight, for messages."""
        return str(self.header.tensors[self.stored_name(name)].file)


@dataclass(frozen=True)
class ReaderTensors:
    """Weights that the library reads, in whatever layout they are stored: a teacher's."""

    reader: WholeTensors
    shapes: Mapping[str, tuple[int, ...]]

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a weight is stored."""
        return TORCH_TYPES[self.reader.header.tensors[name].dtype]

    def read(self, name: str) -> Tensor:
        """One weight, in the type in which it is stored."""
        return self.reader.tensor(name)

    def where(self, name: str) -> str:
        """The file that holds a weight, for messages."""
        return str(self.reader.header.tensors[name].file)


@dataclass(frozen=True)
class WithConstants:
    """Trained weights, and the constant tables of the network, which stay the teacher's.

    Attributes:
        trained: The weights.
        constants: The tables and whatever else the teacher has.
        shapes: The shapes of both, in the network's order.
    """

    trained: Tensors
    constants: Tensors
    shapes: Mapping[str, tuple[int, ...]]

    def _holder(self, name: str) -> Tensors:
        return self.trained if name in self.trained.shapes else self.constants

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a weight is stored."""
        return self._holder(name).dtype(name)

    def read(self, name: str) -> Tensor:
        """One weight, in the type in which it is stored."""
        return self._holder(name).read(name)

    def where(self, name: str) -> str:
        """The file that holds a weight, for messages."""
        return self._holder(name).where(name)


class Adapters(Protocol):
    """The changes that a LoRA makes to a network's weights."""

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The tensor that is added to a weight, float32; None if there is none."""
        ...

    def where(self) -> str:
        """The file that holds them, for messages."""
        ...


@dataclass(frozen=True)
class MergedTensors:
    """A network with adapters merged into it: ``base + up @ down``, float32.

    A checkpoint whose student is adapters is read as this.
    """

    base: Tensors
    adapters: Adapters

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape, in the network's order."""
        return self.base.shapes

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a weight is stored."""
        return torch.float32

    def read(self, name: str) -> Tensor:
        """One weight, in the type in which it is stored."""
        base = self.base.read(name).float()
        delta = self.adapters.delta(name, self.shapes[name])
        return base if delta is None else base + delta

    def where(self, name: str) -> str:
        """The file that holds a weight, for messages."""
        return self.adapters.where()


def constant_names(model: Any) -> set[str]:
    """The names of constant tables among the weights of a ``Model``'s network."""
    with torch.device("meta"):
        network = model.build_transformer()
    stored = set(network.state_dict())
    return {name for name, _ in network.named_buffers() if name in stored}


def network_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The weights of a ``Model``'s network, from its configuration alone."""
    shapes: dict[str, tuple[int, ...]] = model.transformer_shapes()
    return shapes
