"""Parts of an evaluation's videos, which machines or processes make side by side.

A range of videos has a folder of its own, such as ``00000-00944``, so that several machines can
work below one output, or each below its own whose folders are then copied together. The seed of a
video is that of the first one plus its index, whoever makes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.outputs import write_text
from lightx2v_sgmd.system.console import progress
from lightx2v_sgmd.system.errors import LINE, RunError, UserError
from lightx2v_sgmd.system.processes import (
    handling,
    last_line,
    process_environment,
    release,
    start_module,
)

_RANGE: Final = re.compile(r"(\d{5,7})-(\d{5,7})")
_NUMBER: Final = re.compile(r"\d+")
_SHARD: Final = re.compile(r"(\d{1,5})/(\d{1,5})")
_WORKER: Final = "lightx2v_sgmd.apps.evaluation.shard_worker"
_POLL_S: Final = 0.2
_COUNT_S: Final = 2.0
ERROR: Final = "error: "
"""The last line of a failed process's log begins with this."""


@dataclass(frozen=True)
class Shard:
    """A part of the videos: ``number`` of ``count``, from 1."""

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Reads ``K/N``.

        Raises:
            UserError: it is no such thing.
        """
        found = _SHARD.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(
                f"--shard: {text[:40]!r} is not K/N with K from 1 to N; use 2/4 for part 2 of 4"
            )
        return Shard(int(found[1]), int(found[2]))

    def range(self, count: int) -> tuple[int, int]:
        """The indices of its videos: from the first one to before the second."""
        return (self.number - 1) * count // self.count, self.number * count // self.count


def folder_of(first: int, end: int) -> str:
    """The name of a range's folder."""
    return f"{first:05d}-{end:05d}"


def started_ranges(folder: Path, count: int | None = None) -> list[tuple[int, int]]:
    """The ranges that have a folder; with ``count``, those of so many videos."""
    started = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (found := _RANGE.fullmatch(path.name)) and path.is_dir():
            first, end = int(found[1]), int(found[2])
            if first < end and (count is None or end <= count):
                started.append((first, end))
    return started


def ranges(folder: Path, count: int, nproc: int = 1) -> list[tuple[int, int]]:
    """The ranges that cover all videos: those started, the newest first, then what they leave out.

    Args:
        folder: The folder of ranges.
        count: The number of videos.
        nproc: The number of processes that just made the videos, if there were several; their
            ranges come before the other started ones.
    """
    split = {Shard(number, nproc).range(count) for number in range(1, nproc + 1) if nproc > 1}
    started = sorted(
        started_ranges(folder, count),
        key=lambda pair: (pair not in split, -_changed_ns(folder / folder_of(*pair)), pair),
    )
    covered = 0
    gaps = []
    for first, end in sorted(started):
        if first > covered:
            gaps.append((covered, first))
        covered = max(covered, end)
    if covered < count:
        gaps.append((covered, count))
    return started + gaps


def _changed_ns(folder: Path) -> int:
    """The time at which the last of a range's videos was made; 0 if there is none."""
    return max((video.stat().st_mtime_ns for video in folder.glob("*.mp4")), default=0)


@dataclass(frozen=True)
class ShardedCall:
    """An evaluation whose videos several processes make; each makes one shard.

    Attributes:
        weights: As for ``evaluate``.
        out: The output folder.
        prompts: The prompt file; None with VBench's prompts.
        against: As for ``evaluate``.
        suite: VBench's list; None without VBench.
        augmented: The texts in place of VBench's.
    """

    weights: str
    out: str
    prompts: str | None = None
    against: str | None = None
    suite: str | None = None
    augmented: str | None = None


CALLS: Final = TypeAdapter(tuple[ShardedCall, EvaluateOptions])
"""Writes and reads the file from which a process knows what to make."""


def make_shards(
    call: ShardedCall, options: EvaluateOptions, count: int, videos: int, quiet: bool
) -> None:
    """Makes all videos in ``count`` processes on this machine, each on a GPU of its own.

    Args:
        call: The videos to make.
        options: The options of the evaluation.
        count: The number of processes.
        videos: The number of videos in all, for the progress bar.
        quiet: Show no progress.

    Raises:
        UserError: a process says that something cannot be.
        RunError: a process failed; the others' videos are there.
        KeyboardInterrupt: it was asked to stop.
    """
    count = min(count, videos)  # more processes would have nothing to make
    shared = process_environment(count)
    gpus = visible_gpus() if options.device != "cpu" else []
    if gpus and len(gpus) < count:
        raise UserError(
            f"--nproc: {count} is more than the {len(gpus)} GPUs that this machine shows; give "
            f"--nproc {len(gpus)}, or --device cpu"
        )
    stopped: list[int] = []
    with tempfile.TemporaryDirectory(prefix="lightx2v-sgmd-") as name, contextlib.ExitStack() as on:
        folder = Path(name)
        write_text(folder / "call.json", CALLS.dump_json((call, options)).decode())
        logs = [on.enter_context((folder / f"{i}.log").open("w+b")) for i in range(count)]
        processes: list[subprocess.Popen[bytes]] = []

        def stop(number: int, frame: object) -> None:
            stopped.append(number)
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM if len(stopped) == 1 else signal.SIGKILL)

        on.enter_context(handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), stop)))
        try:
            for index, log in enumerate(logs):
                own = {"CUDA_VISIBLE_DEVICES": gpus[index]} if gpus else {}
                arguments = [str(folder / "call.json"), f"{index + 1}/{count}"]
                processes.append(start_module(_WORKER, arguments, {**shared, **own}, log))
            _follow(processes, Path(call.out), videos, quiet)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
                release(process)
        if stopped:
            raise KeyboardInterrupt
        _raise_first(processes, logs)


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    They are not asked for anything, so that no context is made on them here.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        # CUDA stops reading at the first one that is none; -1 is how people say "no GPU".
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _follow(
    processes: Sequence[subprocess.Popen[bytes]], out: Path, videos: int, quiet: bool
) -> None:
    """Waits for all processes, or for the first that fails, and shows what is there."""
    done = min(_made(out), videos)
    with progress(videos, f"videos, {len(processes)} processes", quiet, done=done) as bar:
        looked_s = time.monotonic()
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                return
            time.sleep(_POLL_S)
            if time.monotonic() - looked_s > _COUNT_S:
                looked_s = time.monotonic()
                more = min(_made(out), videos) - done
                done += more
                bar.advance(max(0, more))
        bar.advance(max(0, videos - done))


def _made(out: Path) -> int:
    """The number of videos below an output, each counted once wherever it is."""
    files: Iterable[Path] = (out / "videos").glob("**/*.mp4")
    found = set()
    for file in files:
        if named := _NUMBER.match(file.name):
            part = _RANGE.fullmatch(file.parent.name)
            side, first = (file.parent.parent, int(part[1])) if part else (file.parent, 0)
            found.add((side, first + int(named[0])))
    return len(found)


def _raise_first(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Any]) -> None:
    """Raises the error of the first process that failed by itself."""
    failed = [(p.returncode, log) for p, log in zip(processes, logs, strict=True) if p.returncode]
    # Processes that were stopped because another one failed end with SIGTERM or 130. One that the
    # system killed, for want of memory, ends with SIGKILL.
    failed.sort(key=lambda pair: pair[0] in (130, -signal.SIGTERM))
    for code, log in failed:
        line = last_line(log, LINE)
        said = line.removeprefix(ERROR)
        if code == 2:
            raise UserError(said)
        raise RunError(
            f"a process that makes videos ended with exit code {code}: {said}; run the same "
            "command again to make the videos that it did not finish"
        )
