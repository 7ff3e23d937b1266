"""Remembers the shapes that operations without data return, since the same ones come many times.

An operation on the meta device computes shapes in Python, which takes about a millisecond. Blocks
and frames are alike, so most calls of a metered pass repeat an earlier one with the same shapes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 50_000
"""Most calls that are remembered at a time."""


class TensorLayout(NamedTuple):
    """Shape, strides and dtype of a tensor that is made without data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class RememberedShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, operations on the meta device return what they returned before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, or makes what it would return."""
        return remembered(func, args, kwargs or {})


_results: dict[Hashable, tuple[TensorLayout, ...] | None] = {}


def remembered(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation's result: new tensors of the shapes that an earlier call like this returned.

    Operations that return views, write in place or see anything but the meta device always run, and
    so do those whose results are not a tensor or several, each in memory of its own.
    """
    key = _key(func, args, kwargs)
    if key is None:
        return func(*args, **kwargs)
    if key in _results:
        known = _results[key]
        if known is None:
            return func(*args, **kwargs)
        made = [torch.empty_strided(s, t, dtype=d, device="meta") for s, t, d in known]
        return made[0] if len(func._schema.returns) == 1 else tuple(made)
    result = func(*args, **kwargs)
    if len(_results) >= MOST:
        _results.clear()
    _results[key] = _described(result, func)
    return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


_pure: dict[Any, bool] = {}


def _key(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """The key that tells a call from others; None if the call must run."""
    pure = _pure.get(func)
    if pure is None:
        schema = func._schema
        shared = any(each.alias_info for each in (*schema.arguments, *schema.returns))
        pure = _pure[func] = not shared and "Tensor" in {str(each.type) for each in schema.returns}
    if not pure:
        return None
    parts: list[Any] = [func]
    if not (_describe(args, parts) and _describe(tuple(kwargs.items()), parts)):
        return None
    return tuple(parts)


def _describe(value: Any, parts: list[Any]) -> bool:
    """Adds an argument's description to ``parts``; returns False if the call must run."""
    if isinstance(value, Tensor):
        if not value.is_meta or value.is_conj() or value.is_neg() or value.layout != torch.strided:
            return False
        parts.append((tuple(value.shape), value.stride(), value.dtype))
        return True
    if isinstance(value, list | tuple):
        parts.append(len(value))
        return all([_describe(each, parts) for each in value])
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.layout):
        parts.append((type(value), value))
        return True
    if isinstance(value, torch.device | torch.memory_format):
        parts.append(value)
        return True
    return False


def _described(result: Any, func: Any) -> tuple[TensorLayout, ...] | None:
    """The results as new tensors, or None if they are anything else."""
    several = result if isinstance(result, tuple) else (result,)
    if len(several) != len(func._schema.returns):
        return None
    storages = set()
    for x in several:
        if not isinstance(x, Tensor) or not x.is_meta or x.is_conj() or x.is_neg():
            return None
        storage = x.untyped_storage()
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        size = 0 if x.numel() == 0 else (last + 1) * x.element_size()
        if x.storage_offset() or storage.nbytes() != size:
            return None
        storages.add(storage._cdata)
    if len(storages) < len(several):
        return None
    return tuple(TensorLayout(tuple(x.shape), x.stride(), x.dtype) for x in several)
