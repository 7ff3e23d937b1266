"""Counts what operations between the matrix products cost: bytes that pass and kernel launches.

``python -m tools.counting.count_passes`` counts the VAE's decode of 480x832, 81 frames, by
diffusers and by this engine, without weights: tensors on the meta device have shapes only.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MATRIX: Final = ("convolution", "mm", "addmm", "bmm", "baddbmm", "attention", "linear")
"""Parts of the names of operations whose time is arithmetic, not traffic."""
_OVERWRITES: Final = ("copy_", "fill_", "zero_")
"""Operations in place that do not read what they change."""


class PassCounter(TorchDispatchMode):
    """Counts the operations inside it, each as one kernel that reads and writes its tensors once.

    Views and allocations are free. Matrix products, convolutions and attention count as launches
    only. Padding writes its result twice, as PyTorch does: zeros first. What a library does inside
    a convolution, such as changing the memory layout, cannot be seen; a convolution's bias, which
    cuDNN adds in a kernel of its own, is counted apart.

    Attributes:
        launches: Kernels by operation.
        bytes: Bytes that elementwise kernels read and write, by operation.
        bias_bytes: Bytes that adding the convolutions' biases would pass on a GPU.
        bias_launches: The kernels that would add them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.bias_bytes = self.bias_launches = 0
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func._schema.name).removeprefix("aten::")
        if not self._paused and not func.is_view and "empty" not in name and name != "_unsafe_view":
            self._count(func, name, args, kwargs, result)
        return result

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        self.launches[name] += 1
        if any(part in name for part in _MATRIX):
            if name == "convolution" and args[2] is not None:
                self.bias_launches += 1
                self.bias_bytes += 2 * size(result)
            return
        given = [*args, *kwargs.values()]
        written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        read = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        if func._schema.is_mutable:
            out = kwargs.get("out")
            unread = out if out is not None else read[0] if name in _OVERWRITES else None
            read = [t for t in read if t is not unread]
        copies = 2 if name == "constant_pad_nd" else 1
        self.bytes[name] += sum(map(size, read)) + copies * sum(map(size, written))

    def fused(self, operation: Callable[..., None], writes: int) -> Callable[..., None]:
        """An operation in place that a compiler turns into one kernel.

        Args:
            operation: A function of tensors.
            writes: The position of the tensor that it writes.
        """

        def counted(*tensors: Tensor | None) -> None:
            with self._pause():
                operation(*tensors)
            name = operation.__name__
            self.launches[name] += 1
            given = [t for t in tensors if t is not None]
            # A tensor that is changed is also read, unless it is another one than the first.
            self.bytes[name] += sum(map(size, given)) + (size(given[0]) if writes == 0 else 0)

        return counted

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def summary(self) -> dict[str, Any]:
        """The totals, and the bytes and launches of each operation."""
        return {
            "launches": sum(self.launches.values()),
            "terabytes": sum(self.bytes.values()) / 1e12,
            "bias_launches": self.bias_launches,
            "bias_terabytes": self.bias_bytes / 1e12,
            "by_operation": {
                name: {"launches": count, "terabytes": self.bytes[name] / 1e12}
                for name, count in self.launches.most_common()
            },
        }


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's different elements: a broadcast dimension is read once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= 1 if stride == 0 else length
    return count * tensor.element_size()


def count_decodes(
    height: int, width: int, num_frames: int, frames_at_once: tuple[int, ...] = (1, 2, 4)
) -> dict[str, dict[str, Any]]:
    """The cost of decoding a video with Wan2.1's VAE, for each decoder and setting.

    Args:
        height: In pixels.
        width: In pixels.
        num_frames: ``4k + 1``.
        frames_at_once: Latent frames that the engine decodes at once, each of which is counted.

    Returns:
        A ``PassCounter``'s summary for ``diffusers``, and for ``eager, 1 at once``, ``compiled,
        1 at once`` and so on of the engine. In each case latents become frames of 8 bits.
    """
    from diffusers import AutoencoderKLWan

    from infer.vae.decoder import VaeDecoder
    from infer.vae.decoding import decode_stream
    from infer.vae.kernels import Kernels, fused_add, fused_norm_silu
    from lightx2v_sgmd.families.wan.forward import decode_latents

    with torch.device("meta"):
        vae = AutoencoderKLWan().eval().requires_grad_(False)
        shape = ((num_frames - 1) // 4 + 1, height // 8, width // 8)
        latents = torch.empty(1, vae.config.z_dim, *shape)
    decoder = VaeDecoder(vae)
    found: dict[str, dict[str, Any]] = {}
    with PassCounter() as counter:
        decode_latents(vae, latents)
    found["diffusers"] = counter.summary()
    for how in ("eager", "compiled"):
        for count in frames_at_once:
            with PassCounter() as counter:
                if how == "compiled":
                    decoder.kernels = Kernels(
                        counter.fused(fused_norm_silu, writes=2),
                        counter.fused(fused_add, writes=0),
                        adds_bias=True,
                    )
                for _ in decode_stream(decoder, latents, frames_at_once=count):
                    pass
            found[f"{how}, {count} at once"] = counter.summary()
    return found


def main() -> None:
    """Prints a table, or the counts as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--size", type=int, nargs=3, default=(480, 832, 81), metavar=("H", "W", "FRAMES")
    )
    parser.add_argument("--json", action="store_true", help="print the counts by operation as JSON")
    args = parser.parse_args()
    found = count_decodes(*args.size)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print("decode                  launches     TB   biases: launches     TB")
    for name, counts in found.items():
        print(
            f"{name:<22} {counts['launches']:>9} {counts['terabytes']:>6.2f} "
            f"{counts['bias_launches']:>18} {counts['bias_terabytes']:>6.2f}"
        )


if __name__ == "__main__":
    main()
