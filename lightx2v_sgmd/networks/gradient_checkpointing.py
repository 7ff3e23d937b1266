"""Gradient checkpointing: a network's backward pass computes activations again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal[False, "selective", True]
"""The activations to compute again. ``False``: none. ``True``: all of a block but its input.
``"selective"``: the same, except that attention outputs are stored: they are as wide as the tokens,
and cost most to compute again."""

_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_PACKAGES = ("flash_attn", "flash_attn_2", "flash_attn_3")
"""Namespaces of the operators that other packages' kernels register."""


def enable_checkpointing(network: Any, kind: Checkpointing) -> None:
    """Enables gradient checkpointing of a diffusers network; ``False`` changes nothing.

    The checkpointing is non-reentrant: it works under ``autograd.grad``, with the hooks of ZeRO-3
    and of sequence parallelism, and gives the same numbers.
    """
    if kind is True:
        network.enable_gradient_checkpointing()
    elif kind == "selective":
        network.enable_gradient_checkpointing(_selective)


def recomputes_attention(kind: Checkpointing) -> bool:
    """True if a backward pass computes attention again."""
    return kind is True


def mark_attention(block: Any) -> None:
    """Marks a block whose attention runs inside ``attention_outputs_stored``.

    Under ``"selective"`` the rest of the block then runs outside a dispatch mode, in which
    ``torch.compile`` would do nothing.
    """
    block.marks_attention = True


@contextmanager
def attention_outputs_stored() -> Iterator[None]:
    """Wraps the attention of a marked block; does nothing unless its outputs are to be stored."""
    if _current is None:
        yield
        return
    with _current:
        yield


_current: _Keep | _Reuse | None = None
"""The dispatch mode of the marked block that is running."""


def _selective(block: Any, *args: Any) -> Any:
    marked = getattr(block, "marks_attention", False)

    def contexts() -> tuple[_Scope, _Scope]:
        keep = _Keep()
        return _Scope(keep, marked), _Scope(_Reuse(keep.results), marked)

    # The bound call, so that hooks run again, too.
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


class _Scope:
    """A context for one forward of a block in a dispatch mode; it may be entered again.

    Args:
        mode: The mode.
        marked: True if the block itself enters the mode, around its attention alone.
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
    """Stores the outputs of attention kernels, in order, as long as the graph lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[Any] = []

    def restart(self) -> None:
        """Does nothing: the first forward of a block runs once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_attention(func):
            self.results.append(_detached(result))
        return result


class _Reuse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Returns the stored outputs while the block is computed again.

    PyTorch's own selective checkpointing frees each output after one use. Here one graph may serve
    two backward passes, the generator's and the fake score's.
    """

    def __init__(self, results: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results
        self._next = 0

    def restart(self) -> None:
        """Starts again at the first attention of the block."""
        self._next = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_attention(func):
            return func(*args, **(kwargs or {}))
        result = self._results[self._next]
        self._next += 1
        return _detached(result)


def _detached(result: Any) -> Any:
    """The same data without a graph, so that autograd does not change the stored tensor."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, result)


def _is_attention(operator: Any) -> bool:
    namespace, _, name = str(operator).partition(".")
    if namespace == "aten":
        return name.partition(".")[0] in _KERNELS
    return namespace in _PACKAGES and "forward" in name
