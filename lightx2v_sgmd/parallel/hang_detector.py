"""Noticing that the processes of a run have come to a standstill, and which of them is to blame.

Collectives wait for ever for a process that is stopped, lost its machine or hangs in a driver. So
each process counts what it does, a thread tells the others the count through a store, and a second
thread judges what it hears: the first may itself be stuck in a network that is gone.
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
"""How many times the timeout loading, sampling and saving may take without a sign of progress."""
_SILENCE_S: Final = 120.0
"""After this long, or the timeout if that is shorter, a process that tells nothing is gone: its
thread tells even while the process works on something long."""
_REMEDY: Final = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Heartbeat:
    """What a process tells of itself.

    Attributes:
        rank: Of the run.
        host: Its machine.
        pulse: How often it has told.
        count: How much it has done; all processes count alike.
        doing: What it does now.
        patient: Whether that may take long.
        left: Why it has left the run, if it has.
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
        """For messages."""
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Diagnosis:
    """Who is to blame, and what to tell the user."""

    ranks: frozenset[int]
    message: str


class HangDetector:
    """Decides from what is heard over time; has no clock and no threads of its own.

    Args:
        timeout_s: Without progress.
        interval_s: Between two looks.
        now: The time.
    """

    def __init__(self, timeout_s: float, interval_s: float, now: float) -> None:
        self._timeout_s, self._interval_s = timeout_s, interval_s
        self._silence_s = min(timeout_s, _SILENCE_S)
        self._looked = self._moved = now
        self._told: dict[int, tuple[int, float]] = {}  # by rank: pulse, and when it changed
        self._counts: list[int] = []

    def look(self, beats: Sequence[Heartbeat], now: float) -> Diagnosis | None:
        """Judges what the processes last told, by rank; None if all is well.

        If the last look is long ago, this process has been stopped itself (or its machine has
        slept) and knows nothing about the others: the clocks start anew.
        """
        if now - self._looked > self._silence_s / 2 + self._interval_s:
            self._told, self._moved = {}, now
        self._looked = now
        for beat in beats:
            if self._told.get(beat.rank, (-1, 0.0))[0] != beat.pulse:
                self._told[beat.rank] = (beat.pulse, now)
        counts = [beat.count for beat in beats]
        if counts != self._counts:
            self._counts, self._moved = counts, now
        silent = [b for b in beats if now - self._told[b.rank][1] >= self._silence_s]
        if silent:
            return Diagnosis(frozenset(b.rank for b in silent), _silent(silent, self._silence_s))
        patience = self._timeout_s * (PATIENCE if any(b.patient for b in beats) else 1)
        if beats and now - self._moved >= patience:
            behind = [b for b in beats if b.count == min(counts)]
            return Diagnosis(frozenset(b.rank for b in behind), _stuck(behind, beats, patience))
        return None


def _silent(silent: Sequence[Heartbeat], seconds: float) -> str:
    last = "; ".join(f"{beat.name} was last at {beat.doing}" for beat in silent[:4])
    names = ", ".join(beat.name for beat in silent[:4]) + (" and others" if silent[4:] else "")
    return (
        f"no sign of {names} for {duration(seconds)}: the process is stopped or dead, or its "
        f"machine is gone; {last}; {_REMEDY}"
    )


def _stuck(behind: Sequence[Heartbeat], beats: Sequence[Heartbeat], seconds: float) -> str:
    at = f"at {behind[0].doing}"
    if len(behind) == len(beats):
        who = f"every rank is {at}" if len(beats) > 1 else f"it hangs {at}"
    else:
        names = ", ".join(beat.name for beat in behind[:4]) + (" and others" if behind[4:] else "")
        who = f"{names} is the furthest behind, {at}"
    return (
        f"nothing has moved for {duration(seconds)}: {who}; {_REMEDY}, and if this is only slow, "
        "raise parallel.timeout_minutes"
    )


class Watch:
    """Watches this process and the others, from its making to ``close``.

    Args:
        ranks: The processes of the run; all of them make one, together.
        timeout_minutes: Without progress; None watches nothing.
        on_standstill: Told the verdict, in a thread, and whether this process is the one of its
            machine that should speak; ends the process.
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
        self._beats: list[Heartbeat] = []
        self._heard = time.monotonic()
        self.timeout_s = None if timeout_minutes is None else 60 * timeout_minutes
        if self.timeout_s is None:
            return
        self._interval_s = min(5.0, self.timeout_s / 10)
        self._store = _open_store(ranks)
        self._tell()
        ranks.barrier()  # everyone has told once, so that reading waits for nobody
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def tick(self, doing: str) -> None:
        """Something has been done; ``doing`` comes next."""
        self._doing, self._role = doing, ""
        self._count += 1

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
        """Tells the others that this process goes, and why."""
        if self.timeout_s is not None and not self._closed.is_set():
            self._left = reason
            self._try(self._tell)

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def explain(self, error: Exception) -> Exception:
        """What is behind an error of a collective: a process that is gone, or nothing known.

        Takes a few seconds, in which those that live tell that they do.
        """
        if self.timeout_s is None or self._ranks.size == 1:
            return error
        before = {beat.rank: beat.pulse for beat in self._beats}
        until = time.monotonic() + 3 * self._interval_s + 1
        while time.monotonic() < until and not any(beat.left for beat in self._beats):
            time.sleep(self._interval_s / 4)
        for beat in self._beats:
            if beat.left is not None and beat.rank != self._ranks.rank:
                return RunError(f"{beat.name} failed: {beat.left}; {_REMEDY}")
        if time.monotonic() - self._heard > 2 * self._interval_s:
            return RunError(self._unheard())
        gone = [beat for beat in self._beats if before.get(beat.rank) == beat.pulse]
        if not gone:
            return error
        return RunError(
            "; ".join(f"{beat.name} is gone, it was last at {beat.doing}" for beat in gone)
            + f"; {_REMEDY}"
        )

    def _beat(self) -> Heartbeat:
        doing, patient = f"{self._doing}{self._role}", self._patient > 0
        rank, host = self._ranks.rank, self._host
        return Heartbeat(rank, host, self._pulse, self._count, doing, patient, self._left)

    def _tell(self) -> None:
        self._pulse += 1
        self._store.set(str(self._ranks.rank), json.dumps(asdict(self._beat())))

    def _listen(self) -> None:
        told = self._store.multi_get([str(rank) for rank in range(self._ranks.size)])
        self._beats = [Heartbeat(**json.loads(text)) for text in told]
        self._heard = time.monotonic()

    def _try(self, action: Callable[[], None]) -> None:
        """A store that does not answer is noticed by its silence."""
        with suppress(RuntimeError):
            action()

    def _exchange(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._try(self._tell)
            self._try(self._listen)

    def _judge(self) -> None:
        assert self.timeout_s is not None
        silence_s = min(self.timeout_s, _SILENCE_S)
        looked = time.monotonic()
        judge = HangDetector(self.timeout_s, self._interval_s, looked)
        while not self._closed.wait(self._interval_s):
            now = time.monotonic()
            if now - looked > silence_s / 2 + self._interval_s:  # we were stopped ourselves
                self._heard = now
            looked, unheard_s = now, now - self._heard
            verdict: Diagnosis | None = None
            if unheard_s >= silence_s:
                verdict = Diagnosis(frozenset(), self._unheard())
            elif unheard_s <= 2 * self._interval_s:  # old news would accuse the wrong ones
                verdict = judge.look(self._beats, now)
            if verdict is not None:
                # The first process to end breaks the others' collectives: they judge before.
                if not self._closed.wait(2 * self._interval_s):
                    self._on_standstill(verdict.message, self._speaks(verdict))
                return

    def _speaks(self, verdict: Diagnosis) -> bool:
        here = [beat.rank for beat in self._beats if beat.host == self._host]
        able = [rank for rank in here if rank not in verdict.ranks]
        return self._ranks.rank == min(able or here, default=self._ranks.rank)

    def _unheard(self) -> str:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return (
            f"no answer from {place}, where the ranks meet: the network is cut, or rank 0 or its "
            f"machine is gone; this rank was at {self._doing}; {_REMEDY}"
        )


def _open_store(ranks: Ranks) -> Any:
    """A connection of our own to the store that the processes met at.

    Theirs may be busy with a wait of the main thread.
    """
    if ranks.size == 1:
        return dist.HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
    return dist.PrefixStore("lightx2v-sgmd/watch", store)
