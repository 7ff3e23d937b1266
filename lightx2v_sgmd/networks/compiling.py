"""Compiled blocks that take any size: the first one exactly, all others by one graph.

Blocks whose weights have the same shapes share kernels, as all of a transformer's mostly do; a
U-Net has several kinds of them.

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
from torch.utils._pytree import tree_leaves

from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.networks.compiled_passes import gradient_options, prepare_compiler
from lightx2v_sgmd.system.errors import named_line

__all__ = ["BlockCompiler", "compile_blocks", "compile_for_training"]


def compile_for_training(network: Any, report: Callable[[str], None]) -> None:
    """Compiles whole blocks with their backward passes, for networks without passes of their own.

    A backward pass to a block's inputs computes the gradients of its trained weights too.
    Call it last, after checkpointing is enabled.

    Args:
        network: The network; its weights are whole.
        report: As for ``compile_blocks``.
    """
    prepare_compiler()
    compile_blocks(network, report, whole=False, options=gradient_options())


def compile_blocks(
    network: Any,
    report: Callable[[str], None],
    whole: bool = True,
    options: dict[str, Any] | None = None,
) -> None:
    """Compiles the blocks that a diffusers network repeats, once for all that are alike.

    Args:
        network: The network.
        report: Called with a line of news: a change to flexible kernels, or a compiler failure.
        whole: False if a block may be compiled in several pieces.
        options: Settings of the compiler.
    """
    said: set[str] = set()

    def report_once(line: str) -> None:
        if line not in said:
            said.add(line)
            report(line)

    compilers: dict[Any, BlockCompiler] = {}
    blocks: Any = repeated_blocks(network)
    for block in blocks:
        kind = type(block), tuple((name, p.shape) for name, p in block.named_parameters())
        if kind not in compilers:
            compilers[kind] = BlockCompiler(report_once, whole, options)
        block.forward = MethodType(_Compiled(compilers[kind], block.forward), block)


class _Compiled:
    """A replacement for a block's ``forward`` that runs compiled kernels."""

    def __init__(self, compiler: BlockCompiler, forward: Any) -> None:
        self.compiler = compiler
        # A plain function: the compiler sees the block as an argument, so all blocks share kernels.
        self.function = forward.__func__

    def __call__(self, block: Any, *args: Any, **kwargs: Any) -> Any:
        return self.compiler(self.function, block, *args, **kwargs)


class BlockCompiler:
    """Chooses kernels by shape; one for each kind of block of a network.

    Args:
        report: Called with a line of news.
        whole: False if a block may be compiled in several pieces.
        options: Settings of the compiler.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        whole: bool = True,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.report = report

        def compiled(dynamic: bool) -> Any:
            own = _own_code(_call)
            return torch.compile(own, fullgraph=whole, dynamic=dynamic, options=options)

        self.exact: Any = compiled(dynamic=False)
        self.flexible: Any = compiled(dynamic=True)
        self.first_shape: tuple[Any, ...] | None = None
        self.changed_over = False
        self.failed = False

    def __call__(self, function: Any, block: Any, *inputs: Any, **named: Any) -> Any:
        """Runs the function on a block and its inputs."""
        args = (function, block, *inputs)
        if self.failed:
            return _call(*args, **named)
        given = (x for x in tree_leaves((inputs, named)) if isinstance(x, Tensor))
        shape = tuple((x.shape, x.dtype) for x in given)
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
            return compiled(*args, **named)
        except _failures() as error:
            self.failed = True
            self.report(
                f"compile: failed ({named_line(error)[:180]}); going on without "
                "compiled blocks, which is slower and gives the same"
            )
        return _call(*args, **named)


def _call(function: Any, block: Any, *args: Any, **kwargs: Any) -> Any:
    return function(block, *args, **kwargs)


def _own_code(function: Any) -> Any:
    """A copy of a function: TorchDynamo counts how often it compiled one code object."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions of the compiler, as opposed to those of the block itself."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
