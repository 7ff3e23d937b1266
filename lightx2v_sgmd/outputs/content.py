"""Content hashes of files (sha256), with a cache for files that do not change.

The cache's key is a file's device, inode, size, modification time and change time; a file that is
written to or replaced differs in at least one of them. A file that changed within the last two
seconds is not cached, because a later change could have the same times.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from lightx2v_sgmd.system.caches import cache_folder
from lightx2v_sgmd.untrusted.reading import open_file

_SETTLED_NS: Final = 2 * 10**9
_SMALL: Final = 1 << 20
"""Files up to this size are read rather than cached."""


def content_hash(path: Path) -> str:
    """Returns the sha256 of a file's content in hexadecimal, from the cache if it is there."""
    before = path.stat()
    remembered = None if before.st_size <= _SMALL else _remembered(before)
    if remembered is not None and remembered.is_file():
        with suppress(OSError, UnicodeDecodeError):
            saved = remembered.read_text(encoding="ascii").strip()
            if len(saved) == 64 and not set(saved) - set("0123456789abcdef"):
                return saved
    with open_file(path) as file:
        digest = _digest(file)
        after = os.fstat(file.fileno())
    settled = time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > _SETTLED_NS
    if remembered is not None and settled and _remembered(after) == remembered:
        _remember(remembered, digest)
    return digest


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """Returns the ``content_hash`` of several files, read in parallel."""
    return _in_parallel(content_hash, paths)


def sha256_file(path: Path) -> str:
    """Reads a file and returns its sha256, in hexadecimal."""
    with open_file(path) as file:
        return _digest(file)


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Returns the ``sha256_file`` of several files, read in parallel."""
    return _in_parallel(sha256_file, paths)


def _digest(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _in_parallel(hash_of: Callable[[Path], str], paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(hash_of, paths))


def _remembered(about: os.stat_result) -> Path | None:
    """Returns the cache file for the hash of a file with these properties."""
    key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    name = hashlib.sha256(repr(key).encode()).hexdigest()
    folder = cache_folder("hashes")
    return None if folder is None else folder / name[:2] / name


def _remember(file: Path, digest: str) -> None:
    from lightx2v_sgmd.outputs.writer import write_text

    with suppress(OSError):  # a cache that cannot be written is no reason to fail
        write_text(file, digest + "\n")
