"""Publishes an export by rename, and replaces nothing but an unchanged export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from lightx2v_sgmd.files.manifest import FILE_NAME, changed_files, read_manifest
from lightx2v_sgmd.outputs import (
    OutputLock,
    exchange,
    remove_files,
    rename_new,
    set_aside,
    sync_folder,
    temporary_path,
)
from lightx2v_sgmd.outputs.writer import is_abandoned, temporaries
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, first_line
from weights.verify import ExportError

Listing = dict[str, tuple[int, int, int]]
"""Files of a folder with their size, modification time and inode, and its empty folders."""


class DiffersError(Exception):
    """Raised when the written files differ from what they should hold."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems[:8]))


def replaceable(out: Path, overwrite: bool) -> Listing | None:
    """The files that an export may replace in ``out``; None if nothing is there.

    Args:
        out: The output.
        overwrite: True if an export may be replaced at all.

    Raises:
        UserError: something is there that is not an export of ours, whole and unchanged, or
            ``overwrite`` is not given.
    """
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file, not a folder; choose another output")
    there = listing(out)
    if not there:
        return None
    if not (out / FILE_NAME).is_file():
        raise UserError(
            f"{out}: holds {_some(sorted(there))} and was not written by export; move that away or "
            "choose another folder"
        )
    if not overwrite:
        raise UserError(f"{out}: is not empty; choose another folder, or add --overwrite")
    _check_own(out, there)
    return there


def _check_own(folder: Path, there: Listing) -> None:
    """Raises unless a folder is an export as it was written, and nothing else."""
    manifest = read_manifest(folder)
    assert manifest is not None, folder
    known = manifest.sha256.keys() | {FILE_NAME}
    foreign = sorted(n for n in there if n not in known or (folder / n).is_symlink())
    if foreign:
        raise UserError(
            f"{folder}: holds {_some(foreign)}, which export did not write; move that away, then "
            "--overwrite replaces the rest"
        )
    changed = changed_files(folder, manifest.sha256)
    if changed:
        raise UserError(
            f"{folder}: {changed[0]}, so it may hold your own work; remove it yourself or "
            "choose another folder"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def listing(folder: Path) -> Listing:
    """The names of everything in a folder, without reading the files."""
    files: Listing = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder or not any(path.iterdir()):
            name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
            files[name] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return files


@contextmanager
def appearing_export(
    out: Path, source: Path, before: Listing | None, lock: OutputLock
) -> Iterator[Path]:
    """A context with a new folder beside ``out``, which becomes ``out`` if all goes well.

    If it was written but differs from its source it stays, as ``OUT.failed``, so that one can see
    why; if it was not written to the end it is removed.

    Args:
        out: The path at which the export appears.
        source: The folder that is read.
        before: The result of ``replaceable``.
        lock: The lock on ``out``.

    Raises:
        ExportError: the block raised ``DiffersError``.
        UserError: something could not be written, or appeared in ``out`` meanwhile.
    """
    temporary = temporary_path(out)
    try:
        temporary.mkdir()
        yield temporary
        lock.check()
        _publish(temporary, out, before)
    except DiffersError as error:
        failed = set_aside(temporary, lambda n: f"{out.name}.failed{n if n > 1 else ''}")
        raise ExportError(
            f"{out}: not exported, what was written differs: {error}; it is kept in {failed}"
        ) from error
    except (OSError, SafetensorError) as error:
        if not source.exists():
            raise UserError(
                f"{source}: was removed during the export, as a training does with its oldest "
                "checkpoints (train.keep_checkpoints); run the same command again"
            ) from error
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{out}: cannot be written: {reason}; make room or choose another folder"
        ) from error
    finally:
        _remove_own(temporary)


def _remove_own(temporary: Path) -> None:
    """Removes a folder that this process has made, and all that it has written there."""
    with suppress(OSError):
        remove_files(temporary, [p.relative_to(temporary).as_posix() for p in _files(temporary)])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _publish(temporary: Path, out: Path, before: Listing | None) -> None:
    if before is None:
        try:
            rename_new(temporary, out)
        except OSError as error:
            if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
                raise
            raise _appeared(out, None) from error
        sync_folder(out.parent)
        return
    # The old export gets another name first, and is removed only if all of it is ours.
    replaced = temporary_path(out, "old")
    if listing(out) != before:
        raise _appeared(out, before)
    rename_new(temporary, replaced)
    try:
        swapped = exchange(replaced, out)
    except OSError:
        rename_new(replaced, temporary)
        raise
    if not swapped:
        rename_new(replaced, temporary)
        rename_new(out, replaced)
    if listing(replaced) != before:
        if swapped:
            exchange(replaced, out)
            rename_new(replaced, temporary)
        else:
            rename_new(replaced, out)
        raise _appeared(out, before)
    if not swapped:
        try:
            rename_new(temporary, out)
        except OSError:
            rename_new(replaced, out)
            raise
    sync_folder(out.parent)
    left = remove_files(replaced, [name for name in before if not name.endswith("/")])
    if left:
        note(f"{replaced}: holds {_some(left)}, which appeared during the export; it is kept")


def _appeared(out: Path, before: Listing | None) -> UserError:
    now = listing(out) if out.is_dir() else {}
    names = sorted(name for name, about in now.items() if (before or {}).get(name) != about)
    what = _some(names) if names else "something else"
    return UserError(
        f"{out}: {what} appeared or changed there during the export, which is not written; move "
        "it away or choose another folder"
    )


def finish_replacing(out: Path) -> None:
    """Ends what a process began that died while it replaced an export.

    What it replaced goes if a whole export has its place, and goes back if nothing has. Anything
    that is not as export wrote it stays.
    """
    for path, kind, owner in temporaries(out.parent, out.name):
        if kind != "old" or not is_abandoned(path, owner):
            continue
        if not os.path.lexists(out):
            rename_new(path, out)
            continue
        try:
            there = listing(path)
            _check_own(path, there)
        except (UserError, AssertionError):
            note(f"{path}: was left by an interrupted export and holds other files too; it is kept")
            continue
        remove_files(path, [name for name in there if not name.endswith("/")])
