"""Trackers: programs that show the curves of many runs, fed through accelerate's trackers.

TensorBoard is written by ``recorders`` itself, since it must forget what a resumed run does again.
A tracker that fails during a run is dropped with a note: training goes on.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import prepare_libraries, why_unusable
from lightx2v_sgmd.untrusted.json_text import read_record

TENSORBOARD: Final = "tensorboard"
PROJECT: Final = "lightx2v-sgmd"
IDS: Final = "trackers.json"
"""The file of a run folder that names the run in each tracker, so that resuming goes on there."""
_REMEDIES: Final = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "trackio": "set TRACKIO_DIR to a folder that can be written",
    "mlflow": "set MLFLOW_TRACKING_URI to a server or database that can be reached",
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose packages cannot be used, before anything is loaded.

    A TensorBoard that does not import is no reason to stop: a run then notes it and goes on.

    Raises:
        UserError: names the first such tracker, and the command that installs it.
    """
    for name in names:
        problem = None if name == TENSORBOARD else why_unusable(name)
        if problem is not None:
            raise UserError(
                f"output.trackers: the package {name} {problem}; pip install "
                f"'lightx2v-sgmd[{name}]', or leave {name} out"
            )


class Tracker:
    """One of accelerate's trackers, for one run.

    Args:
        name: ``wandb``, ``trackio`` or ``mlflow``.
        job: The job.
        run_id: The run's name in the tracker; None starts a new one.
        quiet: Show no notes.

    Raises:
        UserError: the tracker does not start; has a remedy.
    """

    def __init__(self, name: str, job: Job, run_id: str | None, quiet: bool) -> None:
        self.name, self.quiet, self._tracker = name, quiet, None
        try:
            self._tracker = _started(name, job, run_id)
            if run_id is None:
                self._tracker.store_init_configuration(_flat(_settings(job)))
        except Exception as error:  # a package of others fails in any way
            raise UserError(
                f"output.trackers: {name} does not start: {first_line(error)}; "
                f"{_REMEDIES[name]}, or leave {name} out"
            ) from error

    @property
    def run_id(self) -> str:
        """The run's name in the tracker."""
        run: Any = self._tracker.tracker if self._tracker is not None else None
        if self.name == "mlflow":
            return str(run.info.run_id)
        return str(run.id if self.name == "wandb" else run.name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Logs the numbers among the values; those of inner mappings as ``name/part``."""
        numbers = {k: v for k, v in _flat(values).items() if isinstance(v, int | float)}
        self._try("log", numbers, step=step)

    def log_videos(self, step: int, files: Sequence[Path]) -> None:
        """Logs the sample videos of a step, or its images, which are PNG files."""
        if self.name == "mlflow":
            for file in files:
                self._try("log_artifact", str(file), f"samples/step_{step:06d}")
            return
        with suppress(Exception):  # the files are in the run folder all the same
            kinds = importlib.import_module(self.name)
            named = {
                f"samples/video_{i:02d}": (kinds.Image if f.suffix == ".png" else kinds.Video)(
                    str(f)
                )
                for i, f in enumerate(files)
            }
            self._try("log", named, step=step)

    def close(self) -> None:
        """Ends the run in the tracker."""
        self._try("finish")
        self._tracker = None

    def _try(self, method: str, *arguments: Any, **options: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments, **options)
        except Exception as error:
            note(
                f"{self.name} gets nothing more: {first_line(error)}; metrics.jsonl has it all",
                self.quiet,
            )
            self._tracker = None


def open_trackers(job: Job, quiet: bool) -> list[Tracker]:
    """Starts the job's trackers but TensorBoard, and says in one line which there are.

    Raises:
        UserError: one does not start.
    """
    names = [name for name in dict.fromkeys(job.output.trackers) if name != TENSORBOARD]
    if not names:
        return []
    written = WrittenFiles(job.output.dir)
    ids: dict[str, str] = {}
    with suppress(OSError, ValueError):
        ids = dict(read_record(job.output.dir / IDS))
    found: list[Tracker] = []
    try:
        for name in names:
            found.append(Tracker(name, job, ids.get(name), quiet))
            ids[name] = found[-1].run_id
        written.write_text(IDS, json.dumps(ids, indent=1) + "\n")
    except BaseException:
        for tracker in found:
            tracker.close()
        raise
    note(f"trackers: {', '.join(f'{t.name} (run {t.run_id})' for t in found)}", quiet)
    return found


def _started(name: str, job: Job, run_id: str | None) -> Any:
    """The tracker of accelerate, started."""
    prepare_libraries()
    import accelerate.tracking as tracking

    # Its own logger asks for accelerate's process group, which would be a second one.
    tracking.logger = _Logger(logging.getLogger(tracking.__name__), {})
    run = job.output.dir.absolute()
    made = run_id or secrets.token_hex(6)
    tracker: Any
    if name == "wandb":
        tracker = tracking.WandBTracker(
            PROJECT, name=run.name, dir=str(run), id=made, resume="allow"
        )
    elif name == "trackio":
        own = run_id or f"{run.name}-{made}"
        tracker = tracking.TrackioTracker(PROJECT, name=own, resume="allow")
    else:
        files = _keep_mlflow_in(run)
        tracker = tracking.MLflowTracker(PROJECT, files, run_id=run_id, run_name=run.name)
        tracker.main_process_only = False  # only the first process comes here
    start = getattr(tracker, "start", None)  # older versions start when they are made
    if start is not None:
        start()
    return tracker


def _keep_mlflow_in(run: Path) -> str | None:
    """Keeps MLflow's records in the run folder, unless the user named another store.

    Returns:
        The folder of its files; None is what the user's store does.
    """
    if "MLFLOW_TRACKING_URI" in os.environ:
        return None
    mlflow: Any = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{run / 'mlflow.db'}")
    return str(run / "mlruns")


class _Logger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A plain logger with the one method that accelerate adds."""

    def warning_once(self, message: str) -> None:
        """Warns."""
        self.warning(message)


def _settings(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = parse_value(job.to_yaml(), "the job")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by ``name/part``; lists and null as text."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}/")
        else:
            plain = isinstance(value, str | int | float)
            found[f"{prefix}{key}"] = value if plain else str(value)
    return found
