"""Weights that no file has, and a meter of what they take on a device: the meta device.

It stands for a GPU: operations on it run, on no data, and memory is taken and freed as on any.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.files.tensors.dtypes import TORCH_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import Header, TensorInfo
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier

DEVICE = torch.device("meta")


class DeviceMeter(TorchDispatchMode):
    """Bytes of the tensors that operations inside it made, by type of device.

    Attributes:
        live: Now.
        peak: The most so far.
        copied: Bytes copied, by the devices from and to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.copied: Counter[tuple[str, str]] = Counter()
        self._seen: set[int] = set()
        self._exempt: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes what it returns."""
        if func is torch.ops.aten.copy_.default:
            self._copy(args[1], args[0])
            if args[1].is_meta and not args[0].is_meta:
                return args[0]  # there is no data
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], Tensor):
            self._copy(args[0], result)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._note(x)
        for kind, live in self.live.items():
            self.peak[kind] = max(self.peak[kind], live)
        return result

    def _copy(self, source: Tensor, target: Tensor) -> None:
        self.copied[source.device.type, target.device.type] += target.numel() * target.itemsize

    def _note(self, x: Any) -> None:
        if is_traceable_wrapper_subclass(x):
            for name in x.__tensor_flatten__()[0]:
                self._note(getattr(x, name))
            return
        storage = x.untyped_storage()
        key, size, kind = storage._cdata, storage.nbytes(), x.device.type
        if key in self._seen:
            return
        self._seen.add(key)
        self.live[kind] += size
        weakref.finalize(storage, self._forget, key, size, kind)

    def _forget(self, key: int, size: int, kind: str) -> None:
        self._seen.discard(key)
        self.live[kind] -= 0 if key in self._exempt else size
        self._exempt.discard(key)

    def exempt(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors as no memory: those of a network that has no weights yet."""
        for storage in {x.untyped_storage()._cdata: x.untyped_storage() for x in tensors}.values():
            self.live[storage.device.type] -= storage.nbytes()
            self._exempt.add(storage._cdata)
        self.start()

    def start(self) -> None:
        """Measures the peak from here on."""
        self.peak = Counter(self.live)


class FakeWeights:
    """Stands for ``WholeTensors`` of files that do not exist; the copier is the real one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], stored: str) -> None:
        infos = {name: TensorInfo(stored, shape, Path("fake")) for name, shape in shapes.items()}
        self.header = Header(infos, {})
        self.stored = TORCH_TYPES[stored]

    def load(self, name: str, dtype: torch.dtype, copier: WeightCopier) -> Tensor:
        """Copies nothing, piece by piece."""
        shape = self.header.tensors[name].shape
        return copier.copy(lambda piece, start: None, shape, self.stored, dtype)


@contextmanager
def metered(monkeypatch: pytest.MonkeyPatch, stored: str = "BF16") -> Iterator[DeviceMeter]:
    """Inside, models have weights without files, and memory is metered."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    fill = WanModel._fill

    def weights(model: WanModel, part: str) -> FakeWeights:
        return FakeWeights(shapes[part], stored)

    def noted(model: WanModel, network: Any, part: str, *args: Any, **kwargs: Any) -> Any:
        state = network.state_dict().items()
        shapes[part] = {k: tuple(v.shape) for k, v in state if k not in EMBEDDING_ALIASES}
        meter.exempt(network.parameters())
        return fill(model, network, part, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(WanModel, "_weights", weights)
    monkeypatch.setattr(WanModel, "_fill", noted)
    meter = DeviceMeter()
    with meter:
        yield meter
