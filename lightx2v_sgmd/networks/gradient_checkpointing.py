"""Gradient checkpointing: what of a network is computed again in its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def mark_attention(block: Any) -> None:
    """Says of a block that its attention runs inside ``attention_is_kept``.

    Under ``"selective"`` nothing else of it then runs in a dispatch mode, in which a compiler would
    stand aside.
    """
    block.marks_attention = True


@contextmanager
def attention_is_kept() -> Iterator[None]:
    """Goes around the attention of a marked block; does nothing unless the block is to keep it."""
    if _current is None:
        yield
        return
    with _current:
        yield


_current: _Keep | _Reuse | None = None
"""The mode of the marked block that is running."""


def _selective(block: Any, *args: Any) -> Any:
    marked = getattr(block, "marks_attention", False)

    def contexts() -> tuple[_Scope, _Scope]:
        keep = _Keep()
        return _Scope(keep, marked), _Scope(_Reuse(keep.results), marked)

    # The bound call, so that hooks run again, too.
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


class _Scope:
    """A forward of one block in a mode; it may be entered again.

    Args:
        mode: The mode.
        marked: True if the block enters it by itself, around its attention alone.
    """

    def __init__(self, mode: _Keep | _Reuse, marked: bool) -> None:
        self._mode: Any = mode  # torch's modes have no types
        self._marked = marked
        self._before: _Keep | _Reuse | None = None

    def __enter__(self) -> None:
        global _current
        self._mode.restart()
        if self._marked:
            self._before, _current = _current, self._mode
        else:
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        global _current
        if self._marked:
            _current = self._before
        else:
            self._mode.__exit__(*error)


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers what attention kernels give, in their order, for as long as the graph lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[Any] = []

    def restart(self) -> None:
        """A forward of the block begins; there is one."""

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

    def restart(self) -> None:
        """The block is computed again, from its first attention."""
        self._next = 0

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
