"""Joins the processes of a run through a key-value store of the launcher or of rank 0."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightx2v_sgmd.parallel.hang_detector import PATIENCE
from lightx2v_sgmd.system.environment import check_joining
from lightx2v_sgmd.system.errors import RunError


def host_store() -> Any:
    """Opens a store on this machine for processes that this one starts, and holds its ``port``.

    Another program could take a port that is only chosen for them before they open it.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(backend: str, timeout_minutes: float) -> None:
    """Joins the processes that the environment describes (torch's ``env://``).

    Collectives have a longer timeout than the hang detector, so that the detector ends a
    standstill.

    Raises:
        RunError: some have not joined in time; the message names them.
    """
    timeout = timedelta(minutes=timeout_minutes)
    check_joining()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore("lightx2v-sgmd/join", store)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise RunError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: could not join the others "
            f"at {address} within {timeout_minutes:g} min; start the same command on every "
            "machine, with an address of the first one that all of them reach"
        ) from error
    keys = [f"here/{number}" for number in range(size)]
    store.set(keys[rank], "")
    try:
        store.wait(keys, timeout)
    except dist.DistStoreError as error:
        missing = [str(number) for number, key in enumerate(keys) if not store.check([key])]
        raise RunError(
            f"rank {', '.join(missing)} of {size} has not joined at {address} within "
            f"{timeout_minutes:g} min; start the same command on every machine"
        ) from error
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=(1 + PATIENCE) * timeout
    )
