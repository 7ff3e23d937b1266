"""Notices that the processes of a run have come to a standstill, and names the one to blame.

Collectives wait for ever for a process that is stopped, lost its machine or hangs in a driver. So
each process counts what it does and writes the count to a store that all of them read: whenever it
begins something new, and at intervals from a thread. A second thread compares what the processes
wrote: the first thread may itself be stuck in a network that is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch import nn

from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.console import duration
from lightx2v_sgmd.system.errors import RunError

PATIENCE: Final = 10.0
"""The factor by which loading, sampling and saving may exceed the timeout without progress."""
_SILENCE_S: Final = 120.0
"""A process that writes no heartbeat for so long, or for the timeout if that is shorter, is gone:
its thread writes them even while the process works on something long."""
_REMEDY: Final = "run the same command again to resume from the last checkpoint"


@dataclass(frozen=True)
class Heartbeat:
    """The state of one process as it last wrote it to the store.

    Attributes:
        rank: Rank of the process.
        host: Name of its machine.
        pulse: Number of heartbeats that the process has written.
        count: Number of things that it has done; all processes count alike.
        doing: The thing that it does now.
        patient: True if that may take long.
        left: The reason why it has left the run, or None.
    """

    rank: int
    host: str
    pulse: int = 0
    count: int = 0
    doing: str = "starting"
    patient: bool = False
    left: str | None = None

    @property
    def name(self) -> str:
        """The process's name in messages."""
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Diagnosis:
    """The ranks to blame for a standstill, and the message for the user."""

    ranks: frozenset[int]
    message: str


class HangDetector:
    """Finds standstills in a series of heartbeats; it has no clock and no threads of its own.

    Args:
        timeout_s: Longest time without progress.
        interval_s: Time between two calls of ``check``.
        now: The current time.
    """

    def __init__(self, timeout_s: float, interval_s: float, now: float) -> None:
        self._timeout_s, self._interval_s = timeout_s, interval_s
        self._silence_s = min(timeout_s, _SILENCE_S)
        self._checked = self._moved = now
        self._pulses: dict[int, tuple[int, float]] = {}  # by rank: pulse, and when it changed
        self._counts: list[int] = []

    def check(self, heartbeats: Sequence[Heartbeat], now: float) -> Diagnosis | None:
        """Compares the last heartbeat of each rank with earlier ones; None if all is well.

        If the last check is long ago, this process has been stopped itself (or its machine has
        slept) and knows nothing about the others: the clocks start anew.
        """
        if now - self._checked > self._silence_s / 2 + self._interval_s:
            self._pulses, self._moved = {}, now
        self._checked = now
        for heartbeat in heartbeats:
            if self._pulses.get(heartbeat.rank, (-1, 0.0))[0] != heartbeat.pulse:
                self._pulses[heartbeat.rank] = (heartbeat.pulse, now)
        counts = [heartbeat.count for heartbeat in heartbeats]
        if counts != self._counts:
            self._counts, self._moved = counts, now
        silent = [b for b in heartbeats if now - self._pulses[b.rank][1] >= self._silence_s]
        if silent:
            return Diagnosis(frozenset(b.rank for b in silent), _silent(silent, self._silence_s))
        patience = self._timeout_s * (PATIENCE if any(b.patient for b in heartbeats) else 1)
        if heartbeats and now - self._moved >= patience:
            behind = [b for b in heartbeats if b.count == min(counts)]
            message = _stuck(behind, heartbeats, patience)
            return Diagnosis(frozenset(b.rank for b in behind), message)
        return None


def _silent(silent: Sequence[Heartbeat], seconds: float) -> str:
    last = "; ".join(f"{heartbeat.name} was last at {heartbeat.doing}" for heartbeat in silent[:4])
    names = ", ".join(heartbeat.name for heartbeat in silent[:4]) + (
        " and others" if silent[4:] else ""
    )
    return (
        f"no sign of {names} for {duration(seconds)}: the process is stopped or dead, or its "
        f"machine is gone; {last}; {_REMEDY}"
    )


def _stuck(behind: Sequence[Heartbeat], heartbeats: Sequence[Heartbeat], seconds: float) -> str:
    at = f"at {behind[0].doing}"
    if len(behind) == len(heartbeats):
        who = f"every rank is {at}" if len(heartbeats) > 1 else f"it hangs {at}"
    else:
        names = ", ".join(heartbeat.name for heartbeat in behind[:4]) + (
            " and others" if behind[4:] else ""
        )
        who = f"{names} is the furthest behind, {at}"
    return (
        f"nothing has moved for {duration(seconds)}: {who}; {_REMEDY}, and if this is only slow, "
        "raise parallel.timeout_minutes"
    )


class Watch:
    """Watches this process and the others from its construction until ``close``.

    Args:
        ranks: The processes of the run; all of them make one, together.
        timeout_minutes: Longest time without progress; None watches nothing.
        on_standstill: Function that ends the process. A thread calls it with the message and with
            True if this process is the one of its machine that prints it.
    """

    def __init__(
        self,
        ranks: Ranks,
        timeout_minutes: float | None,
        on_standstill: Callable[[str, bool], None],
    ) -> None:
        self._ranks, self._on_standstill = ranks, on_standstill
        self._host = socket.gethostname()
        self._count, self._pulse, self._patient = 0, 0, 0
        self._doing, self._role = "starting", ""
        self._left: str | None = None
        self._closed = threading.Event()
        self._heartbeats: list[Heartbeat] = []
        self._read_at = time.monotonic()
        self.timeout_s = None if timeout_minutes is None else 60 * timeout_minutes
        if self.timeout_s is None:
            return
        self._interval_s = min(5.0, self.timeout_s / 10)
        # Two connections, so that writing does not wait for a read that gets no answer.
        self._read_from = _open_store(ranks)
        self._write_to = _open_store(ranks) if ranks.size > 1 else self._read_from
        self._writing = threading.Lock()
        self._write()
        ranks.barrier()  # each rank has written once, so that reading waits for nobody
        for work in (self._exchange, self._diagnose):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def tick(self, doing: str) -> None:
        """Counts something as done and tells the others at once that ``doing`` comes next.

        Telling is part of the call: a process may be stopped right after it, and its last heartbeat
        must name what it did.
        """
        self._doing, self._role = doing, ""
        self._count += 1
        if self.timeout_s is not None and not self._closed.is_set():
            self._try(self._write)

    @contextmanager
    def patient(self, doing: str) -> Iterator[None]:
        """Inside, the process may be at one thing for ``PATIENCE`` times as long."""
        self._patient += 1
        self.tick(doing)
        try:
            yield
        finally:
            self._patient -= 1
            self.tick(doing)

    def follow(self, networks: Mapping[str, nn.Module]) -> None:
        """Counts each forward pass of these networks as something done."""
        for role, network in networks.items():
            network.register_forward_pre_hook(lambda *_, role=role: self._enter(role))

    def _enter(self, role: str) -> None:
        self._role = f", in the {role}"
        self._count += 1

    def leave(self, reason: str) -> None:
        """Tells the others that this process leaves the run, and why."""
        if self.timeout_s is not None and not self._closed.is_set():
            self._left = reason
            self._try(self._write)

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def explain(self, error: Exception) -> Exception:
        """Finds the process whose loss caused a collective's error; returns ``error`` if none.

        Takes a few seconds, in which the processes that live write heartbeats.
        """
        if self.timeout_s is None or self._ranks.size == 1:
            return error
        before = {heartbeat.rank: heartbeat.pulse for heartbeat in self._heartbeats}
        until = time.monotonic() + 3 * self._interval_s + 1
        while time.monotonic() < until and not any(
            heartbeat.left for heartbeat in self._heartbeats
        ):
            time.sleep(self._interval_s / 4)
        for heartbeat in self._heartbeats:
            if heartbeat.left is not None and heartbeat.rank != self._ranks.rank:
                return RunError(f"{heartbeat.name} failed: {heartbeat.left}; {_REMEDY}")
        if time.monotonic() - self._read_at > 2 * self._interval_s:
            return RunError(self._no_answer())
        gone = [
            heartbeat
            for heartbeat in self._heartbeats
            if before.get(heartbeat.rank) == heartbeat.pulse
        ]
        if not gone:
            return error
        return RunError(
            "; ".join(
                f"{heartbeat.name} is gone, it was last at {heartbeat.doing}" for heartbeat in gone
            )
            + f"; {_REMEDY}"
        )

    def _heartbeat(self) -> Heartbeat:
        doing, patient = f"{self._doing}{self._role}", self._patient > 0
        rank, host = self._ranks.rank, self._host
        return Heartbeat(rank, host, self._pulse, self._count, doing, patient, self._left)

    def _write(self) -> None:
        with self._writing:  # so that no thread overwrites a newer heartbeat with an older one
            self._pulse += 1
            self._write_to.set(str(self._ranks.rank), json.dumps(asdict(self._heartbeat())))

    def _read(self) -> None:
        texts = self._read_from.multi_get([str(rank) for rank in range(self._ranks.size)])
        self._heartbeats = [Heartbeat(**json.loads(text)) for text in texts]
        self._read_at = time.monotonic()

    def _try(self, action: Callable[[], None]) -> None:
        """Ignores a store that does not answer: ``_diagnose`` notices its silence."""
        with suppress(RuntimeError):
            action()

    def _exchange(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._try(self._write)
            self._try(self._read)

    def _diagnose(self) -> None:
        assert self.timeout_s is not None
        silence_s = min(self.timeout_s, _SILENCE_S)
        checked = time.monotonic()
        detector = HangDetector(self.timeout_s, self._interval_s, checked)
        while not self._closed.wait(self._interval_s):
            now = time.monotonic()
            if now - checked > silence_s / 2 + self._interval_s:  # we were stopped ourselves
                self._read_at = now
            checked, unread_s = now, now - self._read_at
            diagnosis: Diagnosis | None = None
            if unread_s >= silence_s:
                diagnosis = Diagnosis(frozenset(), self._no_answer())
            elif unread_s <= 2 * self._interval_s:  # old heartbeats would blame the wrong ranks
                diagnosis = detector.check(self._heartbeats, now)
            if diagnosis is not None:
                # The first process to end breaks the others' collectives: let them finish first.
                if not self._closed.wait(2 * self._interval_s):
                    self._on_standstill(diagnosis.message, self._prints(diagnosis))
                return

    def _prints(self, diagnosis: Diagnosis) -> bool:
        here = [heartbeat.rank for heartbeat in self._heartbeats if heartbeat.host == self._host]
        able = [rank for rank in here if rank not in diagnosis.ranks]
        return self._ranks.rank == min(able or here, default=self._ranks.rank)

    def _no_answer(self) -> str:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return (
            f"no answer from {address}, where the ranks meet: the network is cut, or rank 0 or its "
            f"machine is gone; this rank was at {self._doing}; {_REMEDY}"
        )


def _open_store(ranks: Ranks) -> Any:
    """Opens a connection of our own to the store through which the processes joined.

    The process group's connection may be busy with a wait of the main thread.
    """
    if ranks.size == 1:
        return dist.HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
    return dist.PrefixStore("lightx2v-sgmd/watch", store)
