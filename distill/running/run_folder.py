"""A run's folder: its owner, the files that may be replaced, and the repair of its log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from distill.model_checks import job_sources
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.checkpoint import disk_problem
from lightx2v_sgmd.files.run_files import CHECKPOINTS, METRICS
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import (
    OutputLock,
    WrittenFiles,
    appearing,
    append,
    locked_folder,
    refuse_overlap,
    resolved,
    set_aside,
)
from lightx2v_sgmd.outputs import record as records
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, unreadable
from lightx2v_sgmd.untrusted.json_text import LINE, log_lines, parse_json, read_record
from lightx2v_sgmd.untrusted.reading import open_file, read_file

SUPERSEDED: Final = "metrics.superseded.jsonl"
"""Log for lines that a resumed run writes again, and for lines that cannot be read."""
_AT_ONCE: Final = 200
"""Superseded lines that are moved together."""
_OWN: Final = ("job.yaml", "environment.json", METRICS, CHECKPOINTS, "samples", "failed")
_ENVIRONMENT: Final = {"python", "packages", "strategy", "processes"}


def check_output(job: Job, resume: str) -> None:
    """Refuses an output.dir or data.embeddings that would harm the files that a run reads.

    Raises:
        UserError: it is, contains or lies in the teacher, the latents, the vision encoder, or
            another run that is resumed.
    """
    out = resolved(job.output.dir, "output.dir")
    sources = job_sources(job)
    if job.data.embeddings is not None:
        refuse_overlap(resolved(job.data.embeddings, "data.embeddings"), sources, "data.embeddings")
    if resume not in ("auto", "never") and not Path(resume).resolve().is_relative_to(out):
        sources["--resume"] = Path(resume)
    refuse_overlap(out, sources, "output.dir")


@contextmanager
def run_lock(run: Path, ranks: Ranks, quiet: bool) -> Iterator[OutputLock | None]:
    """Locks the run folder on the first rank, for all ranks; the others get None.

    Raises:
        UserError: another run uses that folder; all ranks raise it.
    """
    context = locked_folder(resolved(run, "output.dir"), "distill", quiet, ["samples/*"])
    taken: list[OutputLock] = []

    def take() -> None:
        check_writable(run, folder=True)
        taken.append(context.__enter__())

    ranks.once(take)
    try:
        yield taken[0] if taken else None
    finally:
        if taken:
            context.__exit__(None, None, None)


def check_own(run: Path) -> None:
    """Refuses a folder that is not a run but has files with the names of a run's files.

    Files with other names may be in it: they are not touched.

    Raises:
        UserError: there are such files; the message names them.
    """
    taken = [name for name in _OWN if os.path.lexists(run / name)]
    if not taken or _is_run(run):
        return
    raise UserError(
        f"output.dir: {run} contains {', '.join(taken[:3])}, but it is not a training run; "
        "move these files away or choose another output.dir"
    )


def _is_run(run: Path) -> bool:
    if (run / records.NAME).is_file() or store.checkpoints(run):
        return True
    try:
        found = read_record(run / "environment.json")
    except FileNotFoundError:
        return False
    except (ValueError, RecursionError):
        return False
    except OSError as error:
        raise unreadable(error.filename, error) from error
    return isinstance(found, dict) and found.keys() >= _ENVIRONMENT


def write_about(run: Path, job: Job, environment: dict[str, Any], quiet: bool) -> None:
    """Writes ``job.yaml`` and ``environment.json``; an edited file is renamed, not replaced.

    Raises:
        UserError: something cannot be written.
    """
    try:
        seen = json.dumps(environment, indent=2) + "\n"
        written = WrittenFiles(run)
        for name, text in (("environment.json", seen), ("job.yaml", job.to_yaml())):
            _set_aside(written, name, text, quiet)
            written.write_text(name, text)
        (run / CHECKPOINTS).mkdir(exist_ok=True)  # last: the folder is then already a run
    except OSError as error:
        raise UserError(disk_problem(error, run)) from error


def _set_aside(written: WrittenFiles, name: str, text: str, quiet: bool) -> None:
    """Renames a file that was edited, unless its content is the same."""
    path = written.folder / name
    if not os.path.lexists(path) or written.is_own(name):
        return
    if path.is_file() and read_file(path, len(text) * 4) == text.encode():
        written.adopt(name)
        return
    if name == "environment.json" and written.is_empty():  # from a version that wrote no record
        written.adopt(name)
        return
    edited = set_aside(path, lambda number: f"{path.stem}.edited{number}{path.suffix}")
    note(f"{path}: has been edited; it is now {edited.name}", quiet)


def repair_log(run: Path, step: int) -> None:
    """Moves a log's lines after a step to ``metrics.superseded.jsonl``.

    A last line that was cut off and lines that are not JSON are moved too.

    Args:
        run: The run folder.
        step: Number of iterations done.
    """
    path = run / METRICS

    def lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
        return ((line, whole and _is_before(line, step)) for line, whole in log_lines(file))

    try:
        with open_file(path) as log:
            if all(stays and line.endswith(b"\n") for line, stays in lines(log)):
                return
    except FileNotFoundError:
        return
    # A log may be larger than the memory.
    with open_file(path) as log, appearing(path) as temporary, temporary.open("wb") as current:
        superseded: list[bytes] = []
        for line, stays in lines(log):
            if stays:
                current.write(line.removesuffix(b"\n") + b"\n")
                continue
            superseded.append(line)
            if len(superseded) == _AT_ONCE:
                append(run / SUPERSEDED, b"".join(superseded))
                superseded = []
        if superseded:
            end = b"" if superseded[-1].endswith(b"\n") else b"\n"
            append(run / SUPERSEDED, b"".join(superseded) + end)


def _is_before(line: bytes, step: int) -> bool:
    try:
        return bool(parse_json(line, LINE)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
