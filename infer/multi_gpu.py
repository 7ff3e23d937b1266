"""Several processes make one video: torchrun starts them, each on a device of its own.

The transformer's tokens are shared out (``lightx2v_sgmd.parallel.sequence``). The first process
encodes the text and writes the files; the VAE is on the processes that have tiles to decode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infer.engine_plan import device_of
from infer.vae.decoding import Share
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.environment import check_joining
from lightx2v_sgmd.system.errors import UserError


@contextmanager
def processes(device: str | torch.device | None) -> Iterator[Ranks]:
    """This process among those that torchrun started; by itself without torchrun.

    Args:
        device: The device that was asked for; with several processes only its type counts.

    Raises:
        UserError: there are more processes than GPUs on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    where = device_of(device)
    if size == 1:
        yield Ranks(device=where)
        return
    check_joining()
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if where.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"device: process {local} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start as many as there are GPUs"
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, where)
        dist.barrier()
    finally:
        if joined:
            dist.destroy_process_group()


def check_ranks(ranks: Ranks, heads: int, option: str = "nproc-per-node") -> None:
    """Raises unless the heads can be dealt out to the processes.

    Args:
        ranks: The processes.
        heads: The number of attention heads.
        option: The option that says how many processes there are, for the message.

    Raises:
        UserError: says which numbers of processes can.
    """
    if heads % ranks.size:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"{option}: {ranks.size} processes do not divide the {heads} attention heads of "
            f"this model; start {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}"
        )


def share_tokens(network: Any, ranks: Ranks) -> None:
    """Splits the network's tokens over all processes; afterwards they call it together."""
    if ranks.size == 1:
        return
    from lightx2v_sgmd.parallel.sequence import enable_sequence_parallel

    assert dist.group.WORLD is not None, "the processes have not been joined"
    enable_sequence_parallel(network, dist.group.WORLD)


def share_tiles(ranks: Ranks) -> Share | None:
    """The processes' shares of a decode; the first process gets the frames."""
    if ranks.size == 1:
        return None

    def gather(
        own: list[tuple[int, Tensor]], shapes: list[tuple[int, ...]], like: Tensor
    ) -> list[Tensor] | None:
        tiles = dict(own)
        for index, shape in enumerate(shapes):
            owner = index % ranks.size
            if owner == 0:
                continue
            if ranks.rank == owner:
                dist.send(tiles[index].contiguous(), 0)
            elif ranks.first:
                tiles[index] = like.new_empty(shape)
                dist.recv(tiles[index], owner)
        return [tiles[index] for index in range(len(shapes))] if ranks.first else None

    return Share(ranks.rank, ranks.size, gather)
