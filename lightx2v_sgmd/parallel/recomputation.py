"""Gradient checkpointing: what of a network is computed again in its backward pass."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

Recomputation = Literal[False, "selective", True]
"""``False``: nothing. ``True``: of each block all but its input. ``"selective"``: as that, but what
attention gave is kept: a row as wide as the token, where computing it again costs most."""

_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_PACKAGES = ("flash_attn", "flash_attn_2", "flash_attn_3")
"""Namespaces of the operators that other packages' kernels register."""


def enable_recomputation(network: Any, kind: Recomputation) -> None:
    """Switches gradient checkpointing of a diffusers network on; ``False`` leaves it as it is.

    Non-reentrant: it works under ``autograd.grad``, with ZeRO-3's and sequence parallelism's hooks,
    and gives the same numbers.
    """
    if kind is True:
        network.enable_gradient_checkpointing()
    elif kind == "selective":
        network.enable_gradient_checkpointing(_selective)


def recomputes_attention(kind: Recomputation) -> bool:
    """Whether attention is computed once more for a backward pass."""
    return kind is True


def _selective(block: Any, *args: Any) -> Any:
    def contexts() -> tuple[_Keep, _Reuse]:
        keep = _Keep()
        return keep, _Reuse(keep.results)

    # The bound call, so that hooks run again, too.
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers what attention kernels give, in their order, for as long as the graph lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_attention(func):
            self.results.append(_detached(result))
        return result


class _Reuse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives it back in a block that is computed again.

    Torch's own selective checkpointing forgets what it has given back. Here one graph may serve
    two backward passes, the generator's and the fake score's.
    """

    def __init__(self, results: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results
        self._next = 0

    def __enter__(self) -> _Reuse:
        self._next = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_attention(func):
            return func(*args, **(kwargs or {}))
        result = self._results[self._next]
        self._next += 1
        return _detached(result)


def _detached(result: Any) -> Any:
    """The same data without a graph: autograd would write its own into what it is given."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, result)


def _is_attention(operator: Any) -> bool:
    namespace, _, name = str(operator).partition(".")
    if namespace == "aten":
        return name.partition(".")[0] in _KERNELS
    return namespace in _PACKAGES and "forward" in name
