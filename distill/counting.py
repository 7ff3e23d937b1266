"""The cost of an iteration, counted by hooks on the networks rather than by a formula."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightx2v_sgmd.networks.adapters import is_adapter
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.parallel import DISCRIMINATOR, PIXEL_DISCRIMINATOR

COUNTS = ("forwards", "recomputed", "backwards", "weight_backwards")


class PassCounter:
    """Counts passes by role, as the networks see them, and the processor's time.

    One pass is one sample's: the guided teacher's batch, twice as long, is two. In units of a
    forward, a backward pass to the inputs costs one and the weights' gradients one more, so

    ``forward_equivalents = forwards + recomputed + backwards + weight_backwards``.

    Of adapters the weights' gradients cost their share of the network's weights.

    Discriminators' heads are small and are not counted; their passes through the teacher are.

    Args:
        networks: The networks by role.
        samples: Samples of this rank in an iteration.
    """

    def __init__(self, networks: Mapping[str, nn.Module], samples: int) -> None:
        self._samples = samples
        heads = (DISCRIMINATOR, PIXEL_DISCRIMINATOR)
        self._roles = [role for role in networks if role not in heads]
        self._rows: dict[str, dict[str, float]] = {}
        self._latest: dict[str, int] = {}
        self._reset()
        for role in self._roles:
            network = networks[role]
            network.register_forward_pre_hook(partial(self._forward, role), with_kwargs=True)
            blocks = repeated_blocks(network)
            blocks[0].register_forward_pre_hook(partial(self._block, role), with_kwargs=True)
            # Not at the network's end: a discriminator's heads read blocks before it. The output
            # of a block that runs again is in no graph, so its hook is never called.
            blocks[0].register_forward_hook(partial(self._watch, role))
            trained = [p for p in network.parameters() if p.requires_grad]
            if trained:
                hook = partial(self._weights, role, _share(trained, network))
                # A weight of this block, whose gradient comes after that of the block's output.
                watched: Any = next(p for p in blocks[0].parameters() if p.requires_grad)
                watched.register_post_accumulate_grad_hook(hook)

    def _reset(self) -> None:
        self._rows = {count: dict.fromkeys(self._roles, 0) for count in COUNTS}
        self._cpu_s = time.process_time()

    def _forward(self, role: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        rows = _rows(args, kwargs)
        self._rows["forwards"][role] += rows
        # The first block runs in this forward; when it runs again, that is a recomputation.
        self._rows["recomputed"][role] -= rows

    def _block(self, role: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._rows["recomputed"][role] += _rows(args, kwargs)

    def _watch(self, role: str, module: nn.Module, args: Any, output: Any) -> None:
        # Some blocks return the text's tokens beside the video's; gradient comes to both.
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(partial(self._backward, role, len(first)))

    def _backward(self, role: str, rows: int, gradient: Tensor) -> None:
        self._rows["backwards"][role] += rows
        self._latest[role] = rows

    def _weights(self, role: str, share: float, weight: Tensor) -> None:
        self._rows["weight_backwards"][role] += share * self._latest.get(role, 0)

    def take(self) -> dict[str, Any]:
        """Since the last call: each count per sample by role, their sum and the CPU's seconds."""
        counts: dict[str, Any] = {
            count: {role: rows / self._samples for role, rows in by_role.items()}
            for count, by_role in self._rows.items()
        }
        counts["forward_equivalents"] = sum(sum(by_role.values()) for by_role in counts.values())
        counts["cpu_seconds"] = round(time.process_time() - self._cpu_s, 4)
        self._reset()
        return counts


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Samples in a call of a network or a block, whose first argument is the noised latents."""
    return len(args[0] if args else next(iter(kwargs.values())))


def _share(trained: Sequence[nn.Parameter], network: nn.Module) -> float:
    """The share of numbers that are trained for each one of the network itself."""
    own = sum(_numel(p) for name, p in network.named_parameters() if not is_adapter(name))
    return sum(map(_numel, trained)) / own


def _numel(weight: nn.Parameter) -> int:
    """The size of the whole tensor, of which ZeRO-3 may hold a shard here."""
    return int(getattr(weight, "ds_numel", weight.numel()))
