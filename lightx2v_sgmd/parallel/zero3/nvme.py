"""Optimizer state in files: a check of the disk, a folder for each process, checked I/O.

DeepSpeed reads and writes the files, past the page cache and asynchronously (Linux' libaio).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightx2v_sgmd.system.compilers import libaio_problem
from lightx2v_sgmd.system.errors import RunError, UserError

SUB_GROUP = 100_000_000
"""Number of a rank's weights that are in memory at once for an update; no tensor is split."""
BUFFERS = 4
"""Number of float32 buffers for such a group: masters, gradient and Adam's two moments."""
BLOCK = 1024**2
"""Size of a read or write in bytes. Groups of fewer bytes stay in memory."""

_PREFIX = "lightx2v-sgmd-"
_SECTOR, _PAGE = 512, 4096
_UNREAD = 0x7FC5_A5A5
"""The bits of a NaN that no arithmetic gives."""


def check_offload_dir(directory: Path, built: bool, device: torch.device) -> None:
    """Checks that files in ``directory`` can hold the optimizer state.

    Args:
        directory: The folder; it is made if it does not exist.
        built: True if DeepSpeed was installed with its I/O operations compiled.
        device: The device of this process.

    Raises:
        UserError: the folder cannot hold it, or nothing here can do asynchronous I/O.
    """
    if not built:
        if problem := libaio_problem():
            raise UserError(f"parallel.offload: nvme cannot run: {problem}")
        if device.type == "cuda":
            from torch.utils.cpp_extension import CUDA_HOME

            if CUDA_HOME is None:
                raise UserError(
                    "parallel.offload: nvme on a GPU needs the CUDA toolkit, because DeepSpeed "
                    "builds its I/O with it, but it is not installed; install it, set CUDA_HOME, "
                    "or use offload: all"
                )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=_PREFIX) as file:
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        raise UserError(
            f"parallel.offload_dir: {directory} cannot be read and written past the page cache "
            f"({error.strerror}); name a folder on a local disk"
        ) from error


class SwapFolder:
    """This process's own folder in ``directory``, removed at ``close`` or with the process.

    Folders that killed processes left there are removed too: a living process holds a lock.

    Args:
        directory: The parent folder, which several runs and ranks may share.

    Attributes:
        path: The folder.
    """

    def __init__(self, directory: Path) -> None:
        with _locked(directory):
            for left in sorted(directory.glob(f"{_PREFIX}*/")):
                _remove_abandoned(left)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
            held = os.open(self.path, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
        self.close = weakref.finalize(self, _remove, self.path, held)


class CheckedFiles:
    """DeepSpeed's I/O handle, which raises an error when a read or write fails.

    DeepSpeed 0.19 does not report a read or write that the kernel refuses: the memory or the file
    is as it was before, and training would go on with it. The kernel refuses memory that does not
    begin at a disk sector, which a weight's gradient inside its group's buffer often does not.

    Args:
        handle: The handle, from ``deepspeed.ops.aio``.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._reads: list[tuple[str, Tensor, Tensor]] = []
        self._writes: list[tuple[str, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        """Starts to read a file into a float32 tensor."""
        target = buffer if _is_aligned(buffer) else torch.empty_like(buffer)
        for mark in _marks(target):
            mark.fill_(_UNREAD)
        self._reads.append((path, buffer, target))
        return int(self._handle.async_pread(target, path, offset))

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        """Starts to write a float32 tensor to a file."""
        source = buffer if _is_aligned(buffer) else buffer.clone()
        self._writes.append((path, source))
        return int(self._handle.async_pwrite(source, path, offset))

    def wait(self) -> int:
        """Waits for all reads and writes and returns their number.

        Raises:
            RunError: one of them has failed.
        """
        done = int(self._handle.wait())
        reads, self._reads = self._reads, []
        writes, self._writes = self._writes, []
        for path, buffer, target in reads:
            if any(bool((mark == _UNREAD).any()) for mark in _marks(target)):
                raise RunError(f"parallel.offload_dir: reading {path} failed; check the disk")
            if target is not buffer:
                buffer.copy_(target)
        for path, source in writes:
            check_written(Path(path), source.nbytes)
        return done


def check_written(path: Path, size: int) -> None:
    """Checks that a file has as many bytes as were to be written.

    Raises:
        RunError: the file has another size.
    """
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
        raise RunError(
            f"parallel.offload_dir: {path} has {found} bytes, not {size}; free some space on the "
            "disk, or name a folder on another one"
        )


def check_swapping(swapper: Any) -> None:
    """Lets DeepSpeed's optimizer swapper report failures, and checks its first writes."""
    for info in swapper.swap_params_info.values():
        size = 4 * swapper._io_aligned_numel(info.numel())
        for path in info.get_swap_paths():
            check_written(Path(path), size)
    swapper.aio_handle = CheckedFiles(swapper.aio_handle)
    swapper.gradient_swapper.aio_handle = swapper.aio_handle


def _is_aligned(numbers: Tensor) -> bool:
    return numbers.data_ptr() % _SECTOR == 0


def _marks(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Views one number of each page, and the last number."""
    bits = numbers.view(torch.int32)
    return bits[:: _PAGE // 4], bits[-1:]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return
    _remove(folder, descriptor)


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
