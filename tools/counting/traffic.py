"""Counts the bytes that one Wan block reads and writes beside its products and attention.

    python -m tools.counting.traffic [--tokens 32760] [--heads 40] [--ffn 13824] [--json]

Nothing is computed: tensors have shapes and no memory. Without a compiler, PyTorch's dispatcher
tells each operation's inputs and outputs, which are read and written once each. With one, it is
the kernels that TorchInductor makes of the block, by its fusions for a CPU; a GPU's may differ
little. Products and attention are left out, and with them what their kernels do on the way (GELU).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.counting.count_passes import size

TEXT_ROWS = 512
_OTHER_WORK = ("mm", "linear", "convolution", "scaled_dot_product", "gelu_product", "onednn")
"""Parts of the names of operations that are products or attention."""


@dataclass
class Traffic:
    """The bytes that one forward pass moves beside its products and attention.

    Attributes:
        gigabytes: Read and written, in 10^9 bytes.
        kernels: Operations, or compiled kernels, that move them.
    """

    gigabytes: float = 0.0
    kernels: int = 0

    def add(self, moved: int) -> None:
        """Counts one more kernel, which moves so many bytes."""
        if moved:
            self.gigabytes += moved / 1e9
            self.kernels += 1


def eager(block: Any, inputs: tuple[Any, ...]) -> Traffic:
    """The traffic of a block's forward pass, operation by operation; on the meta device."""
    counter = _Counter()
    attention = mock.patch.object(F, "scaled_dot_product_attention", _attention)
    norm = mock.patch.object(F, "rms_norm", _rms_norm)
    with torch.no_grad(), counter, attention, norm:
        block(*inputs)
    return counter.traffic


def _attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """A result in the layout of a GPU's kernels; the meta device takes attention to pieces."""
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    """One kernel, as it is on a GPU; the meta device takes this norm to pieces, too."""
    return F.layer_norm(x, shape, weight, None, eps)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__
        if any(part in name for part in _OTHER_WORK) or "empty" in name or func.is_view:
            return result
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name.startswith("_unsafe_view") or not made:
            return result
        unread = [args[0]] if name.startswith("copy_") else [kwargs.get("out")]
        read = [x for x in given if not any(x is each for each in unread)]
        self.traffic.add(sum(map(size, read)) + sum(map(size, made)))
        return result


class _Counted(BaseException):
    """Ends a compilation once its kernels are counted."""


def compiled(block: Any, inputs: tuple[Any, ...]) -> Traffic:
    """The traffic of a block's forward pass after TorchInductor's fusions; of fake CPU tensors."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    traffic = Traffic()

    def codegen(lowered: Any) -> Any:
        lowered._update_scheduler()
        _count_kernels(lowered.scheduler.nodes, traffic)
        raise _Counted

    torch._dynamo.reset()
    function = torch.compile(lambda *args: block(*args), fullgraph=True)
    caches_off = config.patch(fx_graph_cache=False)
    with torch.no_grad(), caches_off, mock.patch.object(GraphLowering, "codegen", codegen):
        with contextlib.suppress(_Counted):
            function(*inputs)
    return traffic


def _count_kernels(nodes: Any, traffic: Traffic) -> None:
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    for node in nodes:
        if isinstance(node, NopKernelSchedulerNode):
            continue
        if not isinstance(node, ExternKernelSchedulerNode) or _copies(node):
            traffic.add(int(node.get_read_write_buffers_sizes()))


def _copies(node: Any) -> bool:
    """True for an extern kernel that is no product and no attention."""
    name = str(
        getattr(node.node, "op_overload", None) or getattr(node.node, "python_kernel_name", "")
    )
    return bool(name) and not any(part in name for part in _OTHER_WORK)


def make_block(
    heads: int, ffn: int, tokens: int, device: str, engine: bool, dtype: torch.dtype
) -> tuple[Any, tuple[Any, ...]]:
    """A block without memory, diffusers' or as the engine runs it on a GPU, and its inputs.

    For ``device`` ``cpu`` call it under a ``FakeTensorMode``.
    """
    from diffusers import WanTransformer3DModel

    from infer.network.blocks import fuse_qkv
    from infer.network.fused_products import GeluProduct, register
    from lightx2v_sgmd.families.loading import stays_float32
    from lightx2v_sgmd.networks.fused_blocks import fuse_passes

    width = heads * 128
    with torch.device(device):
        network = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=128,
            ffn_dim=ffn,
            num_layers=1,
            text_dim=64,
        )
        is_float32 = stays_float32(network)
        for name, p in network.named_parameters():
            p.data = p.data if is_float32(name) else p.data.to(dtype)
        cos, sin = torch.zeros(2, 1, tokens, 1, 128).unbind()
        tensors = [torch.zeros(1, rows, width, dtype=dtype) for rows in (tokens, TEXT_ROWS, 6)]
    network.eval().requires_grad_(False)
    if engine:
        register()
        for block in network.blocks:
            fuse_qkv(block)
        fuse_passes(network)
        for block in network.blocks:
            block.ffn.net[0] = GeluProduct(block.ffn.net[0].proj)
    x, text, temb = tensors
    return network.blocks[0], (x, text, temb.view(1, 6, width), (cos, sin))


def count(heads: int, ffn: int, tokens: int, dtype: torch.dtype) -> dict[str, Traffic]:
    """The traffic of diffusers' block and the engine's, with and without a compiler."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = {}
    for name, engine in (("diffusers", False), ("engine", True)):
        block, inputs = make_block(heads, ffn, tokens, "meta", engine, dtype)
        found[f"{name}, eager"] = eager(block, inputs)
        with FakeTensorMode():
            block, inputs = make_block(heads, ffn, tokens, "cpu", engine, dtype)
            found[f"{name}, compiled"] = compiled(block, inputs)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32760, help="tokens of the video")
    parser.add_argument("--heads", type=int, default=40, help="attention heads of 128")
    parser.add_argument("--ffn", type=int, default=13824, help="width of the feed-forward layer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    found = count(args.heads, args.ffn, args.tokens, torch.bfloat16)
    if args.json:
        json.dump({name: asdict(traffic) for name, traffic in found.items()}, sys.stdout, indent=1)
        return
    for name, traffic in found.items():
        print(f"{name:<20} {traffic.gigabytes:6.2f} GB  {traffic.kernels:3d} kernels")


if __name__ == "__main__":
    main()
