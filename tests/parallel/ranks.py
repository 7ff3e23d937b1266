"""Real processes for tests, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightx2v_sgmd.parallel.rendezvous import host_store

# One process imports the libraries, and every rank is forked from it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.parallel.preload"])


@dataclass(frozen=True)
class Started:
    """Ranks at work.

    Attributes:
        processes: By rank.
        results: Where each sends what it gives, and the traceback if it fails.
        store: Where they meet; theirs as long as this lives.
    """

    processes: list[Any]
    results: list[Any]
    store: Any

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def start_ranks(size: int, work: Callable[..., Any], *args: Any) -> Started:
    """Begins ``work(*args)`` on ``size`` ranks; ``work`` is a module's function."""
    store = host_store()
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _CONTEXT.Process(target=_rank, args=(rank, size, store.port, send, work, args), daemon=True)
        for rank, (_, send) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, send in pipes:
        send.close()
    return Started(processes, [receive for receive, _ in pipes], store)


def run_ranks(size: int, work: Callable[..., Any], *args: Any, timeout_s: float = 900) -> Any:
    """The value that ``work(*args)`` returns on the first of ``size`` ranks.

    The first ranks on a machine wait for DeepSpeed's operations to be compiled: a minute of
    processor time, five minutes beside other work.

    Raises:
        AssertionError: a rank failed; with its traceback.
    """
    started = start_ranks(size, work, *args)
    try:
        results = []
        for rank, receive in enumerate(started.results):
            assert receive.poll(timeout_s), f"rank {rank} says nothing"
            results.append(receive.recv())
    finally:
        started.end()
    for rank, (_, problem) in enumerate(results):
        assert problem is None, f"rank {rank}: {problem}"
    return results[0][0]


def _rank(rank: int, size: int, port: int, send: Any, work: Any, args: Any) -> None:
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in launch.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        dist.init_process_group("gloo")
        result: Any = (work(*args) if rank == 0 else _silent(work, args), None)
        if dist.is_initialized():  # the work may have left already
            dist.barrier()
    except BaseException:
        result = (None, traceback.format_exc())
    send.send(result)
    send.close()
    os._exit(0)  # a process group that is alive at exit aborts


def _silent(work: Any, args: Any) -> None:
    work(*args)
