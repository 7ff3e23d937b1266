"""Records a run: metrics, TensorBoard, and a description of machine and packages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distill.running.run_folder import repair_log
from distill.running.trackers import Tracker
from distill.running.warnings import RunWarnings
from distill.updates import Iteration
from lightx2v_sgmd.files.checkpoint import disk_problem
from lightx2v_sgmd.files.run_files import METRICS
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import reinstall

_LINE_END = b"}\n"
_PACKAGES = ("lightx2v-sgmd", "torch", "diffusers", "transformers", "safetensors", "deepspeed")


class Recorder:
    """Writes ``metrics.jsonl`` and ``tensorboard/``, and feeds the other trackers.

    Lines of steps that a resumed run will do again are moved away first (``run_folder``).

    Args:
        run: The run folder.
        step: Number of iterations done.
        quiet: Show nothing.
        trackers: Other programs that get the same, already started.
        board: Write ``tensorboard/``.
        warnings: Looks at each line; its warnings are recorded too.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        quiet: bool = False,
        trackers: Sequence[Tracker] = (),
        board: bool = True,
        warnings: RunWarnings | None = None,
    ) -> None:
        self.path, self.trackers, self.warnings = run / METRICS, trackers, warnings
        try:
            repair_log(run, step)
            if warnings is not None and step:
                warnings.replay(self.path)
            # Not for appending: the last line may get more values.
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            self._file.seek(0, os.SEEK_END)
            self._board = _tensorboard(run / "tensorboard", step, quiet) if board else None
        except OSError as error:
            raise UserError(disk_problem(error, self.path)) from error

    def record(self, line: Mapping[str, Any], more: bool = False) -> None:
        """Appends an iteration's line.

        Args:
            line: The line.
            more: ``extend`` follows, and brings the line's warnings too.

        Raises:
            UserError: the file cannot be written.
        """
        if self.warnings is not None:
            found = self.warnings.losses(line, later=more)
            line = {**line, "warnings": found} if found else line
        self._write(json.dumps(line) + "\n")
        self._add_scalars(line, line["step"])

    def extend(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds values to the last line, which ``record`` wrote.

        A process that dies meanwhile leaves the line as it was, or a last line that is cut off.

        Args:
            step: The step of the last line.
            values: The values by name.

        Raises:
            UserError: the file cannot be written.
        """
        if self.warnings is not None:
            found = self.warnings.samples(values)
            values = {**values, "warnings": found} if found else values
        if not values:
            return
        self._file.seek(-len(_LINE_END), os.SEEK_END)
        self._write(", " + json.dumps(values).removeprefix("{") + "\n")
        self._add_scalars(values, step)

    def add_videos(self, step: int, gifs: Sequence[bytes], files: Sequence[Path] = ()) -> None:
        """Shows videos: small GIFs on TensorBoard's page of images, mp4 files in the others."""
        for tracker in self.trackers if files else ():
            tracker.log_videos(step, files)
        if self._board is None:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        for index, gif in enumerate(gifs):
            width, height = Image.open(io.BytesIO(gif)).size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=gif
            )
            value = Summary.Value(tag=f"samples/video_{index:02d}", image=image)
            self._board.file_writer.add_summary(Summary(value=[value]), step)

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(disk_problem(error, self.path)) from error

    def _add_scalars(self, values: Mapping[str, Any], step: int) -> None:
        for tracker in self.trackers:
            tracker.log({key: value for key, value in values.items() if key != "step"}, step)
        if self._board is None:
            return
        for name, value in values.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for part, scalar in scalars.items():
                if isinstance(scalar, int | float):
                    self._board.add_scalar(f"{name}/{part}".rstrip("/"), scalar, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        with contextlib.suppress(OSError):
            if self._board is not None:
                self._board.close()


def _tensorboard(folder: Path, step: int, quiet: bool) -> Any:
    """Opens a writer of TensorBoard files; prints a note and returns None if that fails."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # a broken package fails in any way
        note(
            f"{folder} is not written: TensorBoard does not import: {first_line(error)}; install "
            f"it again ({reinstall('tensorboard')}); metrics.jsonl has the same values",
            quiet,
        )
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def metrics_line(
    result: Iteration, seconds: float, cost: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Makes an iteration's line of ``metrics.jsonl``, with each loss term under its own name."""
    return {
        "step": result.step,
        **result.losses,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "exit_step": result.exit_step,
        "seconds": round(seconds, 4),
        **cost,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
    }


def peak_memory_gib(device: torch.device) -> float:
    """Reads the peak memory of this process on its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def environment(strategy: str, ranks: Ranks) -> dict[str, Any]:
    """Describes the machine, packages and processes of a run."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "strategy": strategy,
        "processes": ranks.size,
        "device": _device_name(ranks.device),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Finds the commit of the checkout that this package runs from; None without a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
