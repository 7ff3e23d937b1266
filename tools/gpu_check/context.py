"""The context that steps share: the model, the device, and how to time, meter and estimate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.planning.flops import Operations, forward_operations
from infer.checks import Checked, engine_schedule
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.system.host_memory import GIB
from tools.benchmarks.peaks import gpu_peak
from tools.models.random_wan import RandomWan, open_random_wan

DEFAULT_FLOPS = {"cuda": 700e12, "cpu": 50e9}
"""A matrix rate to estimate by while none was measured."""


@dataclass(frozen=True)
class Context:
    """A shape on a device.

    Attributes:
        shape: A name of ``steps.SIZES``.
        size: Height, width and frames.
        device: The GPU, or the CPU in a rehearsal.
        limits: The results of the step ``limits``, as far as there are any.
    """

    shape: str
    size: tuple[int, int, int]
    device: torch.device
    limits: dict[str, float]

    @property
    def cuda(self) -> bool:
        """True on a GPU; on a CPU this is a rehearsal."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the engine computes in by default."""
        return torch.bfloat16 if self.cuda else torch.float32

    @cached_property
    def model(self) -> RandomWan:
        """The network's shape with random weights."""
        return open_random_wan(self.shape, self.device)

    @property
    def checked(self) -> Checked:
        """The same as the engine takes it, with four steps."""
        return Checked(self.model, None, engine_schedule())

    @property
    def head_dim(self) -> int:
        """The size of an attention head."""
        return int(self.model.transformer_config["attention_head_dim"])

    @property
    def tokens(self) -> int:
        """The tokens of the video."""
        return self.model.token_count(*self.size)

    @property
    def operations(self) -> Operations:
        """The operations of one forward pass."""
        return forward_operations(self.model.transformer_config, self.tokens, TEXT_LENGTH)

    @property
    def forward_s(self) -> float:
        """An estimate of one forward's seconds, for the clock alone."""
        work = self.operations.linear + self.operations.attention
        rate = self.limits.get("flops") or DEFAULT_FLOPS[self.device.type]
        return work / (0.75 * rate)

    @property
    def compile_s(self) -> float:
        """An estimate of the seconds that compiling a block takes."""
        return 15.0 if self.cuda else 25.0

    def sync(self) -> None:
        """Waits for the GPU."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repetitions: int = 3, warm: int = 1) -> float:
        """The median time of a call."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(repetitions):
            self.sync()
            start = time.perf_counter()
            work()
            self.sync()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    @contextmanager
    def peak(self, found: dict[str, Any], key: str = "peak_gib") -> Iterator[None]:
        """The most that PyTorch held on the GPU during a block, in GiB; nothing on a CPU."""
        with gpu_peak(self.device, found, key) if self.cuda else nullcontext():
            yield

    def beside_pytorch_gib(self) -> float:
        """Memory on the GPU that is not PyTorch's: CUDA's context and libraries."""
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free - torch.cuda.memory_reserved(self.device)) / GIB


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, products and convolutions of float32 round their inputs to TF32, or do not."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    before = cudnn.allow_tf32, cuda.matmul.allow_tf32
    cudnn.allow_tf32, cuda.matmul.allow_tf32 = allowed, allowed and before[1]
    try:
        yield
    finally:
        cudnn.allow_tf32, cuda.matmul.allow_tf32 = before


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|`` over all numbers."""
    found, expected = found.double(), expected.to(found.device).double()
    return float((found - expected).norm() / expected.norm())
