"""Checkpoints on disk: folders that appear by rename, complete or not at all.

    RUN/checkpoints/step_000100/
        manifest.json              size and sha256 of every other file
        trainer.json               step and what a resumed run must agree with
        job.yaml                   the resolved job
        student.safetensors        float32, diffusers' names, the schedule in the metadata: all
                                   weights, or the adapters that were trained, rank and alpha in
                                   the metadata too
        student_ema.safetensors    the moving average, if one is kept
                                   (both in several files if large: see ``student_weights``)
        state/ROLE.RRRRR-of-NNNNN.safetensors    each rank's slices of what else training needs

Frozen weights are not in it. Every file is on the disk before the rename.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lightx2v_sgmd.files.run_files import CHECKPOINTS, TRAINER_STATE
from lightx2v_sgmd.files.tensors.safetensors_writer import TensorFile, float32_parts
from lightx2v_sgmd.outputs import remove_files, rename_new, sha256_file, sync_file, sync_folder
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

MANIFEST: Final = "manifest.json"
FORMAT_VERSION: Final = 1
_NAME: Final = re.compile(r"step_(\d{6,})")
_FILE: Final = re.compile(
    r"(manifest|trainer|failure)\.json|job\.yaml|student(_ema)?[-\w]*\.safetensors(\.index\.json)?"
    r"|state/\w+\.\d+-of-\d+\.safetensors"
)
"""Every file of a checkpoint, by its path in the folder."""
_WRONG: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""The errors of reading a file that says something else than it should."""


class DamagedError(UserError):
    """A checkpoint that was read and is not as it was written.

    Anything else that is wrong with one is a plain ``UserError``: it cannot be read just now, or a
    newer version wrote it. Nothing may be concluded from that.
    """


@dataclass(frozen=True)
class Entry:
    """One file as the manifest lists it."""

    size: int
    sha256: str


def checkpoint_name(step: int) -> str:
    """``step_000100``."""
    return f"step_{step:06d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name, or -1."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoint folders, newest first, damaged ones included.

    Raises:
        UserError: the folder that holds them cannot be read just now.
    """
    folder = run / CHECKPOINTS
    try:
        names = os.listdir(folder)
        folders = [folder / name for name in names if step_of(folder / name) >= 0]
        folders = [path for path in folders if _is_folder(path)]
    except FileNotFoundError as error:
        if folder.is_symlink() and not folder.exists():
            raise UserError(
                f"{folder}: leads to {os.readlink(folder)}, which is not there; mount the "
                "disk that has it (nothing was changed)"
            ) from error
        return []
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from error
    return sorted(folders, key=step_of, reverse=True)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise PermissionError(errno.ENOENT, "its link leads nowhere", str(path)) from None
        return False  # pruned while we looked


def _unreadable(path: Path, error: OSError | MemoryError) -> UserError:
    reason = getattr(error, "strerror", None) or "out of memory"
    return UserError(
        f"{path}: cannot be read just now ({reason}), which does not mean that it is damaged; "
        "run the same command again when it can be read (nothing was changed)"
    )


def find_checkpoint(path: Path, on_damage: Callable[[str], None] | None = None) -> Path:
    """The newest whole checkpoint of a run folder; or ``path`` itself if it is a checkpoint.

    Args:
        path: A run folder or a checkpoint folder.
        on_damage: Called with a message for each damaged checkpoint that is skipped.

    Raises:
        UserError: there is none that is whole, or one cannot be read just now.
    """
    if (path / MANIFEST).is_file() or step_of(path) >= 0:
        verify(path)
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run folder or one of its checkpoints")
    damaged = []
    for folder in checkpoints(path):
        try:
            verify(folder)
        except DamagedError as error:
            if not folder.exists():  # a training that is under way has pruned it
                return find_checkpoint(path, on_damage)
            damaged.append(str(error))
            if on_damage is not None:
                on_damage(str(error))
            continue
        return folder
    if damaged:
        raise UserError(f"{path}: has no whole checkpoint; {damaged[0]}")
    raise UserError(f"{path}: has no checkpoints; train first (lightx2v-sgmd distill JOB.yaml)")


def verify(folder: Path) -> None:
    """Checks a checkpoint against its manifest, several files at a time.

    Raises:
        DamagedError: names a file that is missing or was changed.
        UserError: a file cannot be read just now, or a newer version wrote the checkpoint.
    """
    entries = read_manifest(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:
        for problem in pool.map(lambda item: _problem(folder / item[0], item[1]), entries.items()):
            if problem is not None:
                raise DamagedError(f"{problem}; the checkpoint is damaged, use another one")


def _problem(path: Path, entry: Entry) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"{path}: has {size} bytes, not the {entry.size} that were written"
        digest = sha256_file(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except NotADirectoryError:
        return f"{path}: is missing, since a file is in place of its folder"
    except IsADirectoryError:
        return f"{path}: is a folder, not the file that was written"
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest != entry.sha256:
        return f"{path}: its sha256 is not the one that was written"
    return None


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The files that a checkpoint's manifest lists.

    Raises:
        DamagedError: there is none, or it is not one.
        UserError: it cannot be read just now, or a newer version wrote it.
    """
    path = folder / MANIFEST
    try:
        content = read_record(path)
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(
                f"{path}: a newer lightx2v-sgmd wrote it (format_version {version}, this version "
                f"reads {FORMAT_VERSION}); nothing was changed, update lightx2v-sgmd"
            )
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r}")
        return {
            _below(str(name)): Entry(int(entry["size"]), str(entry["sha256"]))
            for name, entry in content["files"].items()
        }
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(
            f"{path}: is missing; the checkpoint is not whole, use another one"
        ) from error
    except UserError:
        raise
    except _WRONG as error:
        raise DamagedError(
            f"{path}: is not as it was written; the checkpoint is damaged, use another one"
        ) from error
    except (OSError, MemoryError) as error:
        raise _unreadable(path, error) from error


def _below(name: str) -> str:
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name} is not a file of a checkpoint")
    return name


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """The content of ``trainer.json``.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / TRAINER_STATE
    try:
        state: dict[str, Any] = read_record(path)
        if not 0 <= int(state["step"]) < 2**53:
            raise ValueError("the step is none")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: does not say the step; use another checkpoint") from error
    return state


class PendingCheckpoint:
    """A checkpoint that is being written, beside the place at which it will appear.

    Args:
        final: The path at which the checkpoint will appear.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.folder = final.with_name(f".{final.name}.partial")

    def begin(self) -> None:
        """Makes the folder, empty."""
        self.discard()
        (self.folder / "state").mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Removes whatever was written."""
        remove_own(self.folder)

    def write_text(self, name: str, text: str) -> dict[str, Entry]:
        """Writes a small file."""
        content, path = text.encode(), self.folder / name
        path.write_bytes(content)
        sync_file(path)
        return {name: Entry(len(content), hashlib.sha256(content).hexdigest())}

    def write_tensors(
        self,
        name: str,
        shapes: Mapping[str, Sequence[int]],
        tensors: Iterable[tuple[str, Tensor]],
        metadata: Mapping[str, str],
    ) -> dict[str, Entry]:
        """Writes float32 tensors as they come, in the order of ``shapes``."""
        parts = float32_parts(shapes)
        with closing(TensorFile(self.folder / name, parts, metadata, sequential=True)) as file:
            for part, tensor in tensors:
                file.write(part, tensor)
            return {name: Entry(file.size, file.sha256)}

    def publish(self, entries: Mapping[str, Entry]) -> None:
        """Writes the manifest and makes the checkpoint appear, in place of one of that name."""
        content = {
            "format_version": FORMAT_VERSION,
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in sorted(entries.items())
            },
        }
        self.write_text(MANIFEST, json.dumps(content, indent=2) + "\n")
        sync_folder(self.folder / "state")
        sync_folder(self.folder)
        replaced = self.final.with_name(f".{self.final.name}.replaced")
        if self.final.exists():
            rename_new(self.final, replaced)
        rename_new(self.folder, self.final)
        sync_folder(self.final.parent)
        remove_own(replaced)


def remove_own(folder: Path) -> list[str]:
    """Removes a checkpoint, whole or half-written, and says which files are not of one and stay."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return remove_files(folder, [name for name in files if _FILE.fullmatch(name)])


def remove_leftovers(run: Path) -> list[str]:
    """Removes what a process that was killed while saving left behind; says what is not ours."""
    folder = run / CHECKPOINTS
    for leftover in folder.glob(".step_*.replaced"):
        whole = folder / leftover.name.removeprefix(".").removesuffix(".replaced")
        if not whole.exists():  # killed between the two renames
            rename_new(leftover, whole)
    left = []
    for pattern in (".step_*.partial", ".step_*.replaced"):
        for leftover in folder.glob(pattern):
            left += [f"{leftover}/{name}" for name in remove_own(leftover)]
    return left


def prune(run: Path, keep: int) -> list[Path]:
    """Removes all but the newest ``keep`` checkpoints.

    Returns:
        Those that stay because they hold files that are not of a checkpoint, or are links.
    """
    kept = []
    for folder in checkpoints(run)[keep:]:
        if folder.is_symlink() or _foreign(folder):
            kept.append(folder)
            continue
        doomed = folder.with_name(f".{folder.name}.partial")
        rename_new(folder, doomed)  # so that a half-removed one is never taken for a checkpoint
        remove_own(doomed)
    return kept


def _foreign(folder: Path) -> bool:
    """True if something in a checkpoint's folder is not of a checkpoint."""
    return any(
        path.is_symlink() or not (path.is_dir() or _FILE.fullmatch(str(path.relative_to(folder))))
        for path in folder.rglob("*")
    )


def disk_problem(error: OSError, path: Path) -> str:
    """A clause that says what went wrong while writing, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; free some space, then run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: may not be written; change its permissions or choose another output.dir"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{path}: cannot be written ({reason}); check its disk, then run the same command again"
