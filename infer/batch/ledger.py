"""The files of a call: which videos are there, which wait, which failed."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer.batch.outputs import check_own
from infer.batch.provenance import Provenance
from infer.batch.requests import Request
from infer.batch.sheet import write_sheet
from infer.batch.sidecars import is_there, publish, sidecar
from infer.checks import Checked
from infer.options import GenerateOptions
from lightx2v_sgmd.files.video import IMAGE_SUFFIX
from lightx2v_sgmd.outputs import OutputLock
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import first_line


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        files: The videos that are whole, in the order of the prompts.
        skipped: The number of them that were there before.
        failed: Name and reason of each one that could not be made.
        timings: Wall time in seconds by stage: ``load``, ``text``, ``denoise``, ``decode``, and
            ``write``, which counts only what decoding did not overlap. Empty for a cluster.
        memory_mode: The options that the memory plan settled on.
    """

    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    memory_mode: str = ""


@dataclass(frozen=True)
class GenerateCall:
    """The checked request of a call of ``generate``.

    Attributes:
        weights: As they were given.
        checked: The weights, of which only headers were read.
        requests: The videos, with their sizes.
        files: The file of each of them.
        out: The file or folder that was given.
        options: All options.
    """

    weights: str | Path
    checked: Checked
    requests: Sequence[Request]
    files: Sequence[Path]
    out: Path
    options: GenerateOptions

    @property
    def largest(self) -> tuple[int, int, int]:
        """Height, width and frames of the video with the most pixels."""
        sizes = (request.size for request in self.requests)
        return max(sizes, key=lambda size: size[0] * size[1] * size[2])


class Ledger:
    """The videos of a call: those that are there, those that wait, those that failed.

    Args:
        call: The checked request.
        provenance: Makes the text of sidecars.
        ranks: The processes; the first one looks at the files, for all.
        lock: The output's lock; None in the other processes.
        quiet: Say nothing.
    """

    def __init__(
        self,
        call: GenerateCall,
        provenance: Provenance,
        ranks: Ranks,
        lock: OutputLock | None,
        quiet: bool,
    ) -> None:
        self._call, self._provenance, self._lock, self._quiet = call, provenance, lock, quiet
        self._first = ranks.first
        self.fps = provenance.fps(call.options.fps)
        self.outcome = Outcome()
        pairs = zip(call.requests, call.files, strict=True)
        self._files = {request.name: file for request, file in pairs}
        there = ranks.once(self._whole)
        self._done = {self._files[name] for name in there}
        self.waiting = [request for request in call.requests if request.name not in there]
        self.outcome.skipped = len(there)
        if there:
            note(f"{len(there)} of {len(call.requests)} videos are there already", quiet)

    def _whole(self) -> set[str]:
        """The names of the videos that were made before, from the same."""
        check_own(list(self._files.values()))
        return {
            request.name
            for request in self._call.requests
            if sidecar(file := self._files[request.name]).exists()
            and is_there(file, self.provenance(request))
        }

    def provenance(self, request: Request) -> dict[str, Any]:
        """The sidecar of a video: the weights and options that it was made from."""
        return self._provenance.of(request, self.fps)

    def start(self) -> None:
        """Begins what sidecars need beside other work."""
        if self._first:
            self._provenance.start()

    def file(self, request: Request) -> Path:
        """The file of a video."""
        return self._files[request.name]

    def appear(self, request: Request, temporary: Path) -> None:
        """Gives a finished video its name, and writes its sidecar.

        Args:
            request: The video.
            temporary: The finished file, under another name.
        """
        assert self._lock is not None, "the first process has the lock"
        self._lock.check()
        provenance = self.provenance(request)
        # In a folder somebody may make this very file as a single one: it has its own lock.
        file = self.file(request)
        with self._lock.also(file):
            publish(temporary, file, provenance)

    def done(self, request: Request) -> None:
        """Notes that a video is there."""
        self._done.add(self.file(request))

    def failed(self, request: Request, error: Exception) -> None:
        """Notes a failure; a full disk ends the run, since the rest would fail as well.

        Raises:
            UserError: the disk is full.
        """
        if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise error
        reason = first_line(error)
        self.outcome.failed.append((request.name, reason))
        note(f"{request.name} failed: {reason}", self._quiet)

    def finish(self) -> Outcome:
        """Writes the contact sheet of a folder of new images; returns what came out."""
        files = [file for file in self._call.files if file in self._done]
        images = files and files[0].suffix == IMAGE_SUFFIX
        if images and len(files) > 1 and self.waiting and self._first:
            write_sheet(files, self._call.out, self._quiet)
        self.outcome.files = files
        return self.outcome
