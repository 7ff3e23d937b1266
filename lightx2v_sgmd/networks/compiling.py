"""Compiled blocks that take any size: the first one exactly, all others by one graph.

``torch.compile`` makes kernels for the shapes that it sees. TorchDynamo makes at most eight sets
for one function and then raises an error if the whole function has to be one graph. A process that
makes videos sees any number of shapes: sizes, batches, lengths of text. Here the first shape gets
kernels of its own, in which every length is a constant. All further shapes share kernels that take
the lengths as arguments. PyTorch makes those twice, since it treats a batch of one apart. If a
compiler fails, blocks go on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

__all__ = ["BlockCompiler", "compile_blocks"]


def compile_blocks(network: Any, report: Callable[[str], None], whole: bool = True) -> None:
    """Compiles the block that a diffusers network repeats, once for all of them.

    Args:
        network: Has ``blocks``, whose first two inputs are the tokens and the text.
        report: Called with a line of news: a change to flexible kernels, or a compiler failure.
        whole: False if a block may be compiled in several pieces.
    """
    compiler = BlockCompiler(report, whole)
    for block in network.blocks:
        block.forward = MethodType(_Compiled(compiler, block.forward), block)


class _Compiled:
    """A replacement for a block's ``forward`` that runs compiled kernels."""

    def __init__(self, compiler: BlockCompiler, forward: Any) -> None:
        self.compiler = compiler
        # A plain function: the compiler sees the block as an argument, so all blocks share kernels.
        self.function = forward.__func__

    def __call__(self, block: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self.compiler(self.function, block, *args, **kwargs)


class BlockCompiler:
    """Chooses kernels by shape; one for each network.

    Args:
        report: Called with a line of news.
        whole: False if a block may be compiled in several pieces.
    """

    def __init__(self, report: Callable[[str], None], whole: bool = True) -> None:
        self.report = report
        self.exact: Any = torch.compile(_own_code(_call), fullgraph=whole, dynamic=False)
        self.flexible: Any = torch.compile(_own_code(_call), fullgraph=whole, dynamic=True)
        self.first_shape: tuple[Any, ...] | None = None
        self.changed_over = False
        self.failed = False

    def __call__(
        self, function: Any, block: Any, tokens: Tensor, text: Tensor, *others: Any, **named: Any
    ) -> Tensor:
        """Runs the function on a block and its inputs."""
        args = (function, block, tokens, text, *others)
        if self.failed:
            return _call(*args, **named)
        shape = (tokens.shape, text.shape, tokens.dtype)
        if self.first_shape is None:
            self.first_shape = shape
        compiled: Any = self.exact
        if shape != self.first_shape:
            compiled = self.flexible
            if not self.changed_over:
                self.changed_over = True
                self.report(
                    "compile: a second size of video, batch or text; it and all further sizes "
                    "share kernels for any size, which are compiled now"
                )
        try:
            result: Tensor = compiled(*args, **named)
            return result
        except _failures() as error:
            self.failed = True
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            self.report(
                f"compile: failed ({type(error).__name__}: {reason}); going on without "
                "compiled blocks, which is slower and gives the same"
            )
        return _call(*args, **named)


def _call(function: Any, block: Any, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = function(block, *args, **kwargs)
    return result


def _own_code(function: Any) -> Any:
    """A copy of a function: TorchDynamo counts how often it compiled one code object."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions of the compiler, as opposed to those of the block itself."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
