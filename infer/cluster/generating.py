"""Makes the videos of a prompt file on the machines of a Ray cluster.

The waiting videos are cut into shares of whole batches. Each share is a Ray task, which loads the
student and gives its videos away as they are finished. Ray decides when and where a task runs, and
runs it again when its process or machine dies; what it had given away by then is not taken twice.
Files and sidecars are written where the command runs, and nowhere else.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infer.cluster.joining import (
    engine_count,
    everywhere,
    joined,
    options_everywhere,
    share_of_machine,
)
from infer.options import GenerateOptions
from infer.result import Cancelled
from infer.stopping import Cancel
from lightx2v_sgmd.files.video import write_content
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import RunError, UserError, first_line, named_line

if TYPE_CHECKING:
    import torch

    from infer.batch.ledger import GenerateCall, Ledger, Outcome
    from infer.batch.provenance import Provenance
    from infer.batch.requests import Request
    from infer.checks import Checked
    from infer.engine_plan import EnginePlan

_TASKS_EACH: Final = 2
"""Tasks for each engine that the cluster has room for: slower machines then make fewer videos."""
_MOST_IN_TASK: Final = 64
"""Most videos of a task: so many at most are made again when its machine dies."""
_TRIES_AGAIN: Final = 2
"""The most times that a task is run again after its process or machine died."""
_POLL_S: Final = 0.5


@dataclass(frozen=True)
class ShareOrder:
    """The videos that a task is to make, with their weights and options.

    Attributes:
        weights: The weights, as every machine finds them.
        options: The options, as every machine finds their files.
        requests: The videos.
        largest: Height, width and frames of the largest video of the whole call, which memory is
            planned for, so that all tasks plan alike.
        batch_size: Videos of one size that are made together.
        fps: Frames per second of the files.
    """

    weights: Path
    options: GenerateOptions
    requests: tuple[Request, ...]
    largest: tuple[int, int, int]
    batch_size: int
    fps: float


@dataclass(frozen=True)
class MachinePlan:
    """The choices that a machine of the cluster makes for the options."""

    dtype: torch.dtype
    text_dtype: torch.dtype
    memory_mode: str
    fitted: bool


@dataclass(frozen=True)
class MadeFile:
    """A video: its file's content, what it was made from, and the machine that made it."""

    name: str
    content: bytes
    provenance: dict[str, Any]
    machine: str


@dataclass(frozen=True)
class NotMade:
    """A video that cannot be made; no name stands for the rest of its task."""

    name: str | None
    reason: str


@dataclass(frozen=True)
class ShareRefused:
    """The weights or options cannot be used on a machine; the message is for the user."""

    message: str


ShareEvent = MadeFile | NotMade | ShareRefused


def generate_on_machines(call: GenerateCall, cancel: Cancel | None, quiet: bool) -> Outcome:
    """Makes the videos of a call on a cluster, as ``generate_files`` does on this machine.

    Args:
        call: The checked request.
        cancel: Asked twice a second whether to stop.
        quiet: Show no progress bar.

    Raises:
        UserError: the cluster cannot be joined, or weights or options cannot be used there.
        Cancelled: ``cancel`` said so; what was finished stays.
    """
    from infer.batch.ledger import Ledger
    from infer.batch.outputs import output_lock
    from infer.batch.provenance import Provenance
    from lightx2v_sgmd.parallel.ranks import Ranks

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--ray: starts its processes itself; run the command without torchrun")
    options = options_everywhere(call.options)
    weights, ranks = everywhere(Path(call.weights)), Ranks()
    with joined("--ray", options.ray) as ray:
        share = share_of_machine(ray, options.device)
        plan = _planned_there(ray, share, weights, options, call.largest)
        provenance = Provenance(call.checked, call.options, plan.dtype, plan.text_dtype)
        with output_lock(call.files, call.out, ranks, quiet) as lock:
            ledger = Ledger(call, provenance, ranks, lock, quiet)
            ledger.outcome.memory_mode = plan.memory_mode
            if ledger.waiting:
                if plan.fitted:
                    note(f"to fit into the memory: {plan.memory_mode}", quiet)
                orders = _orders(call, ledger, weights, options, engine_count(ray, share))
                task = ray.remote(num_returns="streaming", max_retries=_TRIES_AGAIN, **share)(make)
                streams = {task.remote(order): order.requests for order in orders}
                _Collecting(ray, ledger, cancel).collect(streams, len(call.requests), quiet)
            return ledger.finish()


def _planned_there(
    ray: Any,
    share: dict[str, float],
    weights: Path,
    options: GenerateOptions,
    largest: tuple[int, int, int],
) -> MachinePlan:
    """Asks one of the machines for its plan.

    Raises:
        UserError: the weights or options cannot be used there.
        RunError: the machine cannot run this package.
    """
    try:
        plan = ray.get(ray.remote(**share)(plan_here).remote(weights, options, largest))
    except Exception as error:
        raise RunError(
            f"--ray: a machine of the cluster cannot run this package ({first_line(error)}); "
            "install the same lightx2v-sgmd there"
        ) from error
    if isinstance(plan, str):
        raise UserError(plan)
    assert isinstance(plan, MachinePlan), "plan_here gives a plan or a refusal"
    return plan


def _orders(
    call: GenerateCall, ledger: Ledger, weights: Path, options: GenerateOptions, engines: int
) -> list[ShareOrder]:
    """The tasks: shares of the same batches as on one machine, so that the files are the same."""
    from infer.engine import videos_together

    shapes = [call.checked.model.latent_shape(*request.size) for request in ledger.waiting]
    limit = options.batch_size or min(map(videos_together, shapes))
    waiting = [
        replace(request, image=request.image and request.image.absolute())
        for request in ledger.waiting
    ]
    return [
        ShareOrder(weights, options, tuple(share), call.largest, limit, ledger.fps)
        for share in shares(waiting, limit, _TASKS_EACH * engines)
    ]


def shares(requests: Sequence[Request], limit: int, count: int) -> list[list[Request]]:
    """Cuts videos into shares of whole batches of ``limit``.

    Args:
        requests: The videos.
        limit: Videos of one size that are made together.
        count: The number of shares; there are more if one would have more than 64 videos.
    """
    from infer.batch.requests import batches

    groups = batches(requests, limit)
    each = min(math.ceil(len(groups) / count), max(1, _MOST_IN_TASK // limit))
    return [
        [request for group in groups[start : start + each] for request in group]
        for start in range(0, len(groups), each)
    ]


class _Collecting:
    """Takes the videos of tasks as they come."""

    def __init__(self, ray: Any, ledger: Ledger, cancel: Cancel | None) -> None:
        self._ray, self._ledger, self._cancel = ray, ledger, cancel
        self._missing: dict[str, Request] = {}

    def collect(self, streams: dict[Any, tuple[Request, ...]], total: int, quiet: bool) -> None:
        """Takes all videos.

        Args:
            streams: The tasks, and what each makes.
            total: The number of videos with those that are there, for the progress bar.
            quiet: No progress bar.
        """
        self._missing = {request.name: request for request in self._ledger.waiting}
        self._ledger.start()
        there = self._ledger.outcome.skipped
        with progress(total, "generating", quiet, done=there) as bar:
            while streams:
                if self._cancel is not None and self._cancel():
                    raise Cancelled
                ready, _ = self._ray.wait(
                    list(streams), num_returns=1, timeout=_POLL_S, fetch_local=False
                )
                for stream in ready:
                    before = len(self._missing)
                    if not self._take(stream, streams[stream]):
                        del streams[stream]
                    bar.advance(before - len(self._missing))

    def _take(self, stream: Any, requests: Sequence[Request]) -> bool:
        """Takes the next event of a task; False if there is none any more."""
        try:
            event = self._ray.get(next(stream))
        except StopIteration:
            self._fail(requests, "its task ended without it")
            return False
        except Exception as error:  # Ray has run it again as often as it may
            reason = f"the process that makes it died {_TRIES_AGAIN + 1} times"
            self._fail(requests, f"{reason} ({first_line(error)})")
            return False
        if isinstance(event, ShareRefused):
            raise UserError(event.message)
        if isinstance(event, NotMade):
            named = [request for request in requests if event.name in (request.name, None)]
            self._fail(named, event.reason)
        elif (request := self._missing.pop(event.name, None)) is not None:
            try:
                self._write(request, event)
            except Exception as error:
                self._ledger.failed(request, error)
        return True

    def _fail(self, requests: Sequence[Request], reason: str) -> None:
        for request in requests:
            if self._missing.pop(request.name, None) is not None:
                self._ledger.failed(request, RuntimeError(reason))

    def _write(self, request: Request, made: MadeFile) -> None:
        """Writes a video and its sidecar.

        Raises:
            UserError: the machine has other weights, or the file cannot be written.
        """
        provenance = self._ledger.provenance(request)
        if made.provenance != provenance:
            other = next(k for k in provenance if made.provenance.get(k) != provenance[k])
            raise UserError(
                f"{made.machine}: {other} of its video differ from this machine's; install the "
                "same package there, and give it the same weights"
            )
        appear = partial(self._ledger.appear, request)
        write_content(self._ledger.file(request), made.content, appear)
        self._ledger.done(request)


# What follows runs on the machines of the cluster.


def plan_here(
    weights: Path, options: GenerateOptions, largest: tuple[int, int, int]
) -> MachinePlan | str:
    """Plans the options for a machine; returns why they are refused if they are."""
    try:
        _, plan = _planned(weights, options, largest)
    except UserError as error:
        return str(error)
    return MachinePlan(plan.dtype, plan.text_dtype, plan.memory_mode.flags(), plan.fitted)


def make(order: ShareOrder) -> Iterator[ShareEvent]:
    """Makes the videos of a task, and gives each away as it is finished."""
    events: queue.Queue[ShareEvent | None] = queue.Queue(_MOST_IN_TASK)
    threading.Thread(target=_make, args=(order, events), daemon=True).start()
    while (event := events.get()) is not None:
        yield event


def _make(order: ShareOrder, events: queue.Queue[ShareEvent | None]) -> None:
    from infer.batch.making import Making
    from infer.batch.provenance import Provenance
    from infer.engine import Student
    from lightx2v_sgmd.parallel.ranks import Ranks

    try:
        checked, plan = _planned(order.weights, order.options, order.largest)
        provenance = Provenance(checked, order.options, plan.dtype, plan.text_dtype)
        with tempfile.TemporaryDirectory() as folder:
            suffix = checked.model.size_rules.suffix
            passing = _Passing(Path(folder), suffix, provenance, order.fps, events)
            making = Making(order.fps, passing, Ranks(device=plan.device))
            making.go(lambda: Student(checked, plan), order.requests, order.batch_size)
    except UserError as error:
        events.put(ShareRefused(f"{socket.gethostname()}: {error}"))
    except Exception as error:
        events.put(NotMade(None, named_line(error)))
    finally:
        events.put(None)


def _planned(
    weights: Path, options: GenerateOptions, largest: tuple[int, int, int]
) -> tuple[Checked, EnginePlan]:
    from infer.checks import check_student
    from infer.engine_plan import make_plan

    checked = check_student(
        weights,
        options.assume_schedule,
        options.loras,
        options.base,
        options.skip_image_layers,
        quiet=True,
    )
    return checked, make_plan(
        checked.model,
        options,
        largest,
        options.batch_size or 1,
        teacher_dtype=checked.teacher_dtype,
    )


@dataclass(frozen=True)
class _Passing:
    """Takes finished videos and passes them on, see ``infer.batch.making.Takes``."""

    folder: Path
    suffix: str
    provenance: Provenance
    fps: float
    events: queue.Queue[ShareEvent | None]

    def start(self) -> None:
        """Begins to hash the weights."""
        self.provenance.start()

    def file(self, request: Request) -> Path:
        """A file that the video never gets; its suffix tells what is written."""
        return self.folder / f"{request.name}{self.suffix}"

    def appear(self, request: Request, temporary: Path) -> None:
        """Passes a video on."""
        about = self.provenance.of(request, self.fps)
        content = temporary.read_bytes()
        self.events.put(MadeFile(request.name, content, about, socket.gethostname()))

    def done(self, request: Request) -> None:
        """Does nothing: the video was passed on."""

    def failed(self, request: Request, error: Exception) -> None:
        """Passes a failure on."""
        self.events.put(NotMade(request.name, first_line(error)))
