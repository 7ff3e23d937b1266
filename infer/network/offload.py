"""Parts of a model that take turns on a device, and the host memory that they wait in."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightx2v_sgmd.system.host_memory import host_memory_gib

T = TypeVar("T")
_ALIGNMENT: Final = 512
_SPARED_BYTES: Final = 4 * 2**30
"""Host memory that waiting parts leave to everything else."""


class PartSwitcher:
    """The text encoder, the network and the VAE, each loaded when first asked for.

    Where they take turns, asking for one sends the others away. From a GPU a part goes to pinned
    host memory, once: weights do not change, so afterwards they are only copied to the GPU. A part
    that will not come back, or that the host has no room for, is dropped and loaded again if it is
    needed after all; so are all parts on a CPU, where a second copy would save nothing.

    Args:
        device: The device that the parts compute on.
        alternate: True if they take turns; else all of them stay.
    """

    def __init__(self, device: torch.device, alternate: bool) -> None:
        self.device, self.alternate = device, alternate
        self._keeps = device.type != "cpu"
        self._parts: dict[str, Any] = {}
        self._waiting: dict[str, HostWeights] = {}
        self._present: set[str] = set()
        self._released: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """True if a part is in memory, on the device or in the host's."""
        return name in self._parts

    def present(self, name: str) -> bool:
        """True if a part is on its device."""
        return name in self._present

    def get(self, name: str, load: Callable[[], T], moves: bool = True) -> T:
        """A part, on its device.

        Args:
            name: The part's name.
            load: Loads it; called when it is first asked for.
            moves: True if it leaves for others; one that is offloaded by itself stays.
        """
        self._released.discard(name)
        if name in self._present:
            return self._parts[name]  # type: ignore[no-any-return]
        if self.alternate and moves:
            self._send_away(name)
        if name in self._waiting:
            self._waiting[name].to_device()
        else:
            self._parts[name] = load()
        if moves:
            self._present.add(name)
        return self._parts[name]  # type: ignore[no-any-return]

    def release(self, name: str) -> None:
        """Says that a part is not needed again: where parts take turns, it is then dropped.

        One that is on the device is dropped when it leaves, others at once.
        """
        if not self.alternate:
            return
        self._released.add(name)
        if name in self._parts and name not in self._present:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Frees a part, wherever it is; it is loaded again when it is asked for."""
        for table in (self._parts, self._waiting):
            table.pop(name, None)
        self._present.discard(name)
        self._collect()

    def _send_away(self, name: str) -> None:
        for other in sorted(self._present - {name}):
            waiting = self._waiting.get(other)
            if waiting is None and self._worth_keeping(other):
                waiting = self._waiting[other] = HostWeights(_module(self._parts[other]))
            if waiting is None or other in self._released:
                self.drop(other)
                continue
            waiting.to_host()
            self._present.discard(other)
        self._collect()

    def _worth_keeping(self, name: str) -> bool:
        if not self._keeps or name in self._released:
            return False
        return weight_bytes(_module(self._parts[name])) + _SPARED_BYTES <= available_bytes()

    def _collect(self) -> None:
        gc.collect()
        if self.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()


class HostWeights:
    """A frozen module's weights in host memory: copied to its device, never back from it.

    Args:
        module: On its device; its constant tables stay there.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._memory = pinned_bytes(weight_bytes(module))
        self._used = 0
        self._device: torch.device = next(module.parameters()).device
        self._host = {
            (owner, name): _each(p.detach(), self._keep) for owner, name, p in _weights(module)
        }

    def to_device(self) -> None:
        """Gives the module copies of its weights on the device."""
        for (owner, name), value in self._host.items():
            _give(owner, name, _each(value, self._copied))

    def to_host(self) -> None:
        """Gives the module the weights in host memory; what it had is freed."""
        for (owner, name), value in self._host.items():
            _give(owner, name, value)

    def _keep(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.itemsize
        flat = self._memory[self._used : self._used + size].view(tensor.dtype)
        self._used += _aligned(size)
        kept = flat.as_strided(tensor.shape, tensor.stride()) if _is_dense(tensor) else None
        if kept is None:
            kept = flat.view(tensor.shape)
        return kept.copy_(tensor)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True, copy=True)


def weight_bytes(module: nn.Module) -> int:
    """Host memory that a module's weights take."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(_aligned(tensor.numel() * tensor.itemsize))
        return tensor

    for _, _, p in _weights(module):
        _each(p.detach(), note)
    return sum(sizes)


def pinned_bytes(count: int) -> Tensor:
    """Host memory that a GPU reads at full speed; ordinary memory where there is no GPU.

    PyTorch's own pinned memory comes in powers of two, which would be half as much again for the
    weights of a 14B network.
    """
    memory = torch.empty(count, dtype=torch.uint8)
    if count and torch.cuda.is_available():
        driver: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(driver.cudaHostRegister(memory.data_ptr(), count, 0)) == 0:
            # Weights are views of it: its storage lives as long as the last one.
            weakref.finalize(memory.untyped_storage(), driver.cudaHostUnregister, memory.data_ptr())
    return memory


def available_bytes() -> float:
    """Host memory that could be taken now; unlimited where the system does not say."""
    memory = host_memory_gib()
    return float("inf") if memory is None else memory[1] * 2**30


def _module(part: Any) -> nn.Module:
    """A part's network: itself, or what it holds beside a tokenizer."""
    module = part if isinstance(part, nn.Module) else part.network
    assert isinstance(module, nn.Module), type(part)
    return module


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for owner in module.modules():
        for name, p in owner.named_parameters(recurse=False):
            yield owner, name, p


def _each(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Changes a tensor, or each plain tensor that a quantised one is made of."""
    if not _is_composed(tensor):
        return change(tensor)
    composed: Any = tensor
    names, context = composed.__tensor_flatten__()
    inner = {name: _each(getattr(composed, name), change) for name in names}
    made: Tensor = type(composed).__tensor_unflatten__(
        inner, context, tensor.shape, tensor.stride()
    )
    return made


def _give(owner: nn.Module, name: str, value: Tensor) -> None:
    p = owner.get_parameter(name)
    if _is_composed(value) or not torch._has_compatible_shallow_copy_type(p, value):
        setattr(owner, name, nn.Parameter(value, requires_grad=False))
    else:
        p.data = value  # the same parameter: compiled code knows it


def _is_composed(tensor: Any) -> bool:
    """True if a tensor is made of others, as quantised ones are."""
    return bool(is_traceable_wrapper_subclass(tensor))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _is_dense(tensor: Tensor) -> bool:
    """True if a tensor's elements fill their memory without holes, in whatever order."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)  # type: ignore[no-any-return]
