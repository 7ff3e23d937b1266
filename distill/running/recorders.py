"""Records a run: metrics, sample videos, and a description of machine and packages."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data import Batches
from distill.observed import Stopped
from distill.running.run_folder import METRICS, repair_log
from distill.updates import Iteration
from lightx2v_sgmd.families.wan import WanModel, decode_latents
from lightx2v_sgmd.files.checkpoint import disk_problem
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.parallel import STUDENT, Ranks, Strategy
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import reinstall

SAMPLE_VIDEOS = 4

_PACKAGES = ("lightx2v-sgmd", "torch", "diffusers", "transformers", "safetensors", "deepspeed")


class Recorder:
    """Writes ``metrics.jsonl`` and ``tensorboard/``.

    Lines of steps that a resumed run will do again are moved away first (``run_folder``).

    Args:
        run: The run folder.
        step: Number of iterations done.
        quiet: Show nothing.
    """

    def __init__(self, run: Path, step: int, quiet: bool = False) -> None:
        self.path = run / METRICS
        try:
            repair_log(run, step)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = _tensorboard(run / "tensorboard", step, quiet)
        except OSError as error:
            raise UserError(disk_problem(error, self.path)) from error

    def record(self, line: Mapping[str, Any]) -> None:
        """Appends an iteration's line.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(disk_problem(error, self.path)) from error
        for name, value in line.items() if self._board is not None else ():
            scalars = value if isinstance(value, dict) else {"": value}
            for part, scalar in scalars.items():
                self._board.add_scalar(f"{name}/{part}".rstrip("/"), scalar, line["step"])

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


@torch.no_grad()
def write_samples(
    job: Job,
    model: WanModel,
    strategy: Strategy,
    batches: Batches,
    step: int,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Writes a few videos of the student, or of its EMA weights, under ``samples/``.

    Prompts and noise are the same throughout a run. All ranks call it; the first one writes. Once
    ``stop`` returns True on any rank, the remaining videos are left out.
    """
    count = min(SAMPLE_VIDEOS, len(batches.rows))
    text, _ = batches.texts(range(count))
    noise = batches.sample_noise(count)
    latents = []

    def check_stop(step: int = 0, x_t: Tensor | None = None) -> None:
        if strategy.ranks.any(stop()):
            raise Stopped

    with contextlib.suppress(Stopped), strategy.averaged_student():
        check_stop()
        for i in range(count):
            student = partial(strategy.velocity, STUDENT, text=text[i : i + 1])
            made = rollout(
                student,
                noise[i : i + 1],
                job.schedule,
                on_step=check_stop,
                interpolant=strategy.interpolant,
                fresh_noise=batches.sample_fresh_noise(i),
            )
            latents.append(made)
    if len(latents) < count:
        return

    def write() -> None:
        vae = model.load_vae(device=noise.device)
        written = WrittenFiles(job.output.dir)
        for index, latent in enumerate(latents):
            if stop():
                return
            frames = decode_latents(vae, latent)[0].cpu().numpy()
            try:
                with written.appearing(f"samples/step_{step:06d}/{index:02d}.mp4") as path:
                    write_video(frames, path, model.fps)
            except (UserError, OSError) as error:  # training goes on
                note(f"a sample video was not written: {error}")

    strategy.ranks.once(write)


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
