"""The one writer of files and folders: they appear complete or not at all.

A temporary lies beside the output that it will become. Its name is
``.NAME.PID-START-NAMESPACE-N.KIND``, in which PID, START and NAMESPACE identify its writer (see
``owner``). The next process that holds the output's lock removes the temporaries of dead processes
and keeps those of living ones.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from lightx2v_sgmd.outputs.owner import Life, Owner, here
from lightx2v_sgmd.system.errors import UserError

ELSEWHERE_S: Final = 3600.0
"""Seconds without a change after which a temporary of another machine counts as abandoned."""

_LONGEST: Final = 255
"""Bytes of a file name that every usual file system accepts."""
_NAME: Final = re.compile(
    r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<start>\d+)-(?P<namespace>[0-9a-f]{12})-\d+"
    r"\.(?P<kind>new|old)(?:\.\w+)?",
    re.DOTALL,
)
_numbers = itertools.count()
_NOREPLACE: Final = 1
_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def temporary_path(path: Path, kind: str = "new", suffix: str = "") -> Path:
    """Returns a new path beside ``path`` whose name identifies this process.

    Args:
        path: The output that the temporary will become.
        kind: ``new``, or ``old`` for an output that is being replaced.
        suffix: The end of the name, for programs that go by it.
    """
    owner = here()
    end = f".{owner.pid}-{owner.start}-{owner.namespace}-{next(_numbers)}.{kind}{suffix}"
    return path.with_name(f".{short_name(path.name)}{end}")


def short_name(name: str) -> str:
    """Cuts a name so that the rest of a temporary's or a lock's name fits behind it."""
    most = _LONGEST - 130
    encoded = os.fsencode(name)
    if len(encoded) <= most:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return encoded[: most - 17].decode(errors="ignore") + "-" + digest


def temporaries(folder: Path, name: str | None = None) -> Iterator[tuple[Path, str, Owner]]:
    """Lists the temporaries in a folder, of one name or of all, with their kind and owner."""
    try:
        entries = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        match = _NAME.fullmatch(entry)
        if match and (name is None or match["name"] == short_name(name)):
            owner = Owner("", match["namespace"], int(match["pid"]), int(match["start"]))
            yield folder / entry, match["kind"], owner


def server_time(path: Path) -> float:
    """Returns the time by the clock that stamps files in a path's folder."""
    probe = temporary_path(path)
    try:
        with probe.open("wb") as opened:
            opened.write(b"x")
            opened.flush()
            os.fsync(opened.fileno())
            return os.fstat(opened.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def is_abandoned(path: Path, owner: Owner) -> bool:
    """Returns True if the process that wrote a temporary is gone."""
    life = owner.life()
    if life is not Life.unknown:
        return life is Life.dead
    try:
        newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:  # it is removed meanwhile
        return False
    return server_time(path) - newest > ELSEWHERE_S


def clean_temporaries(folder: Path, name: str | None = None) -> list[Path]:
    """Removes the temporaries that dead processes left in a folder.

    Args:
        folder: The folder; folders in it are not searched.
        name: The output whose temporaries are removed; None for every output.

    Returns:
        The paths that were removed.
    """
    removed = []
    for path, kind, owner in temporaries(folder, name):
        if kind == "new" and is_abandoned(path, owner):
            _remove(path)
            removed.append(path)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def appearing(
    path: Path,
    *,
    replace: bool = True,
    suffix: str = "",
    publish: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Yields a temporary path to write a file to, which becomes ``path`` when the block ends.

    The file is on the disk before it gets its name. After an exception nothing of it is left.

    Args:
        path: The file; missing folders are created.
        replace: True if a file of that name may be replaced. The caller must have made sure that
            the file is its own.
        suffix: The end of the temporary name.
        publish: A function that gives the finished file its name in another way.

    Raises:
        FileExistsError: the name is taken, and ``replace`` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path, suffix=suffix)
    try:
        yield temporary
        sync_file(temporary)
        if publish is not None:
            publish(temporary)
        elif replace:
            os.replace(temporary, path)
        else:
            rename_new(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Writes a text file that appears complete or not at all; see ``appearing``."""
    with appearing(path, replace=replace) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_file(path: Path) -> None:
    """Puts a file's content on the disk."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def sync_folder(folder: Path) -> None:
    """Puts a folder's names on the disk, where the file system lets us."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems know no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Puts everything in a folder on the disk, so that a rename then means complete."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)


def open_log(path: Path) -> BinaryIO:
    """Opens a log of this program's to write it anew.

    Raises:
        UserError: the path is a link: what it leads to may be anybody's.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        return os.fdopen(os.open(path, flags, 0o666), "wb")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: is a link, which no log is; move it away") from error


def append(path: Path, content: bytes) -> None:
    """Adds bytes to the end of a file, on the disk when this returns."""
    with path.open("ab") as file:
        file.write(content)
    sync_file(path)


def move(source: Path, target: Path) -> None:
    """Renames a file, and replaces a file that has the new name; the caller must own both."""
    os.rename(source, target)


def set_aside(path: Path, name: Callable[[int], str]) -> Path:
    """Renames a file or a folder to the first name in its folder that is free.

    Args:
        path: The file or folder.
        name: Returns the first name to try for 1, the second one for 2, and so on.

    Returns:
        The new path.
    """
    for number in itertools.count(1):
        target = path.with_name(name(number))
        if not os.path.lexists(target):
            with suppress(FileExistsError):
                rename_new(path, target)
                return target
    raise AssertionError("the numbers do not end")


def rename_new(source: Path, target: Path) -> None:
    """Renames a file or a folder to a free name, or to the name of an empty folder.

    Raises:
        FileExistsError: the name is taken.
        OSError: another failure; ENOTEMPTY if a folder of that name holds something.
    """
    if source.is_dir() and not source.is_symlink():
        # rename() replaces an empty folder and refuses any other.
        os.rename(source, target)
        return
    if _renameat2(source, target, _NOREPLACE):
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace our own
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(source, target)
    else:
        source.unlink()


def exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; returns False if the system or the file system cannot."""
    return _renameat2(first, second, _EXCHANGE)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Calls the kernel's ``renameat2``; returns False if there is no such call.

    Raises:
        OSError: the rename failed.
    """
    call = _renameat2_function()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _renameat2_function() -> Callable[..., int] | None:
    try:
        function: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    ]
    call: Callable[..., int] = function
    return call


def remove_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Removes the named files of a folder, then the folder, unless something else is in it.

    Args:
        folder: The folder, which must not be a link.
        names: Paths below it.

    Returns:
        The paths that are left because they were not named; then the folder is left as well.
    """
    real = folder.resolve()
    for name in names:
        path = folder / name
        if path.parent.resolve().is_relative_to(real):  # not through a link, nor by ".."
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
    for root, folders, _ in os.walk(folder, topdown=False):
        for child in folders:
            with suppress(OSError):  # not empty, or a link
                os.rmdir(os.path.join(root, child))
    with suppress(OSError):
        folder.rmdir()
    if not folder.is_dir():
        return []
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
