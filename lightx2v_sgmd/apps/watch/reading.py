"""Reads the folder of a run that may be running; nothing here writes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.watch.curves import curves
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError, unreadable
from lightx2v_sgmd.untrusted.json_text import LINE, LOG_BYTES, LOG_LINES, log_lines, parse_json
from lightx2v_sgmd.untrusted.reading import open_file

TEACHER: Final = "teacher"
_STEP: Final = re.compile(r"step_([0-9]{1,12})")
_VIDEO: Final = re.compile(r"[0-9]{2,4}\.(mp4|png)")
_RECENT: Final = 20
"""Iterations whose mean duration is the speed."""
_MOST_WARNINGS: Final = 50
_MOST_SECONDS: Final = 1e9


@dataclass
class WatchedRun:
    """A run's folder, of which the page shows what is there now.

    Attributes:
        folder: The folder.
        job: The run's job.
        prompts: The prompts of the samples, as far as they are known.
    """

    folder: Path
    job: Job
    prompts: list[str] = field(default_factory=list)
    _seen: tuple[int, int] = (0, 0)
    _lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> WatchedRun:
        """Opens a run's folder.

        Raises:
            UserError: it is none.
        """
        if not (folder / "job.yaml").is_file():
            raise UserError(
                f"{folder}: is not a training run, it has no job.yaml; name the output.dir of a job"
            )
        job = load_job(folder / "job.yaml")
        return cls(folder, job, _prompts(job))

    def state(self) -> dict[str, Any]:
        """The state that the page shows: progress, speed, curves, samples and warnings."""
        lines = self.lines()
        step = lines[-1]["step"] if lines else 0
        total = self.job.train.iterations
        seconds = _durations(lines[-_RECENT:])
        speed = sum(seconds) / len(seconds) if seconds else None
        folders = self.sample_folders()
        return {
            "name": self.folder.resolve().name,
            "method": self.job.method.name,
            "teacher": self.job.teacher.path,
            "step": step,
            "iterations": total,
            "finished": step >= total,
            "seconds_per_iteration": speed,
            "seconds_left": None if speed is None else speed * (total - step),
            "seconds_since": self._age(),
            "warnings": [
                {"step": line["step"], **warning}
                for line in lines
                for warning in _warnings(line.get("warnings"))
            ][-_MOST_WARNINGS:],
            "curves": [asdict(curve) for curve in curves(lines)],
            "prompts": self.prompts,
            "samples": [
                {"folder": name, "videos": videos, "changed": self._changed(name)}
                for name, videos in folders.items()
            ],
        }

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``, in the order of their steps.

        Raises:
            UserError: the log is too large to be shown.
        """
        path = self.folder / METRICS
        try:
            about = path.stat()
            seen = (about.st_size, about.st_mtime_ns)
            if seen != self._seen:
                self._lines, self._seen = _read(path), seen
        except FileNotFoundError:
            self._lines = []
        except OSError as error:
            raise unreadable(path, error) from error
        return self._lines

    def sample_folders(self) -> dict[str, list[str]]:
        """The videos of each sample step, the teacher's first and then the newest first.

        Images count as videos; links do not, since what they lead to may be outside the run.
        """
        root = self.folder / "samples"
        found: dict[int, tuple[str, list[str]]] = {}
        try:
            for place in root.iterdir():
                match = _STEP.fullmatch(place.name)
                if (match or place.name == TEACHER) and place.is_dir():
                    names = sorted(file.name for file in place.iterdir())
                    videos = [name for name in names if self.video(place.name, name) is not None]
                    if videos:
                        found[int(match[1]) if match else -1] = (place.name, videos)
        except OSError:
            pass
        order = sorted(found, key=lambda step: (step >= 0, -step))
        return dict(found[step] for step in order)

    def video(self, folder: str, name: str) -> Path | None:
        """The file of a video that ``sample_folders`` names; None for anything else."""
        if not (folder == TEACHER or _STEP.fullmatch(folder)) or not _VIDEO.fullmatch(name):
            return None
        path = self.folder / "samples" / folder / name
        parts = (path, path.parent, path.parent.parent)
        return path if path.is_file() and not any(part.is_symlink() for part in parts) else None

    def _changed(self, folder: str) -> float:
        """The time at which a folder of samples last got a file: an older video has another one."""
        try:
            return (self.folder / "samples" / folder).stat().st_mtime
        except OSError:  # it is gone
            return 0.0

    def _age(self) -> float | None:
        """Seconds since the log was last written."""
        return None if not self._seen[1] else max(0.0, time.time() - self._seen[1] / 1e9)


def _read(path: Path) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    size = 0
    with open_file(path) as file:
        for line, whole in log_lines(file):
            size += len(line)
            if size > LOG_BYTES or len(by_step) == LOG_LINES:
                raise UserError(
                    f"{path}: is too large to be shown; use `tensorboard --logdir {path.parent}`"
                )
            try:
                row = parse_json(line, LINE) if whole and line.endswith(b"\n") else None
            except ValueError:  # a crash has cut it off
                continue
            if isinstance(row, dict) and type(row.get("step")) is int:
                by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _warnings(found: Any) -> list[dict[str, str]]:
    """The warnings of a line, each with its name and text."""
    return [
        {"name": str(name)[:80], "text": str(text)[:500]}
        for name, text in (found.items() if isinstance(found, dict) else ())
    ]


def _prompts(job: Job) -> list[str]:
    from distill.data import load_prompts

    try:
        return load_prompts(job)[: job.train.sample_videos]
    except (UserError, OSError):  # the run's prompts are not on this machine
        return []


def _durations(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The seconds of iterations; a log may hold anything, and what is no duration is left out."""
    found = [line.get("seconds") for line in lines]
    return [float(s) for s in found if isinstance(s, int | float) and 0 <= s < _MOST_SECONDS]
