"""Checks of an output's path before any work: its name, and its overlap with what is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.paths import path_problem


def resolved(out: str | Path, label: str = "--out") -> Path:
    """Returns an output's real path: absolute, without links and without ``..``.

    Args:
        out: The output, which need not exist.
        label: The name of the option, for messages.

    Raises:
        UserError: no file system accepts such a path.
    """
    if problem := path_problem(out, spare=0):
        raise UserError(f"{label}: {problem}; choose another name")
    try:
        return Path(out).resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{label}: {out} cannot be followed ({error}); choose another") from error


def check_new_folder(out: Path, label: str = "--out") -> None:
    """Refuses a folder that cannot be made to appear by rename.

    Args:
        out: The output, from ``resolved``.
        label: The name of the option, for messages.

    Raises:
        UserError: the output is the current folder, a disk's root, or a mount point.
    """
    if out == Path.cwd():
        raise UserError(f"{label}: {out} is the folder that this command runs in; name a new one")
    if out == out.parent or os.path.ismount(out):
        raise UserError(f"{label}: {out} is the root of a disk; name a folder below it")


def refuse_overlap(out: Path, sources: Mapping[str, Path | None], label: str = "--out") -> None:
    """Refuses an output that is, holds or lies in a source.

    Links, ``..``, another spelling on a disk that ignores case and a second mount of the same disk
    make no difference: paths are compared by their inodes as well.

    Args:
        out: The output, from ``resolved``.
        sources: The paths that are read, by the names that a message uses; None and paths that do
            not exist are left out.
        label: The name of the output's option, for messages.

    Raises:
        UserError: the output overlaps a source, which the message names.
    """
    for name, source in sources.items():
        if source is None or not os.path.lexists(source):
            continue
        real = source.resolve()
        relation = _relation(out, real)
        if relation is not None:
            raise UserError(
                f"{label}: {out} {relation} {name} {source}; nothing was written, choose an output "
                "outside of it"
            )


def _relation(out: Path, source: Path) -> str | None:
    if out == source or _same(out, source):
        return "is"
    if source.is_dir() and (source in out.parents or _among(source, out.parents)):
        return "lies in"
    if out in source.parents or _among(out, source.parents):
        return "holds"
    return None


def _among(path: Path, others: Iterable[Path]) -> bool:
    return any(_same(path, other) for other in others)


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
