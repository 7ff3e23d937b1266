"""Writes safetensors files tensor by tensor, so that a file may be larger than the memory."""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from lightx2v_sgmd.files.manifest import sha256_file
from lightx2v_sgmd.files.safetensors_files import shown
from lightx2v_sgmd.system.errors import UserError
from weights.io.tensors import FILE_TYPES

_AHEAD: Final = 3
"""Tensors that may wait to be written while the next one is read and converted."""


@dataclass(frozen=True)
class Part:
    """A tensor as a file will hold it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """One safetensors file that is filled in any order.

    Types of more bytes come first, then names in order, as the safetensors library does it: so
    every tensor is aligned to its type, and equal tensors give equal bytes.

    Args:
        path: A file that does not exist yet.
        parts: What it will hold.
        metadata: Text that travels in its header.
    """

    def __init__(self, path: Path, parts: Iterable[Part], metadata: Mapping[str, str]) -> None:
        self.path = path
        content: dict[str, Any] = {"__metadata__": dict(metadata)}
        position = 0
        self._parts: dict[str, tuple[Part, int]] = {}
        for part in sorted(parts, key=lambda part: (-part.dtype.itemsize, part.name)):
            end = position + part.nbytes
            content[part.name] = {
                "dtype": FILE_TYPES[part.dtype],
                "shape": list(part.shape),
                "data_offsets": [position, end],
            }
            self._parts[part.name] = (part, position)
            position = end
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._missing = set(self._parts)
        self._file = path.open("xb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, tensor: Tensor) -> bool:
        """Puts one tensor in its place; the last one finishes the file.

        Returns:
            Whether it was the last one.
        """
        part, position = self._parts[name]
        fits = tensor.dtype == part.dtype and tuple(tensor.shape) == part.shape
        assert fits and name in self._missing, f"{name}: {tensor.dtype} {tuple(tensor.shape)}"
        self._file.seek(self._start + position)
        if tensor.numel():
            raw: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
            self._file.write(memoryview(raw))
        self._missing.remove(name)
        if not self._missing:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return not self._missing

    def close(self) -> None:
        """Closes a file that may be unfinished."""
        self._file.close()


@dataclass(frozen=True)
class Shards:
    """Which file holds which tensor.

    Attributes:
        files: Of each tensor.
        metadata: Of the index; empty where one file holds everything.
    """

    files: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def index(self) -> str | None:
        """The text of ``*.safetensors.index.json``, None where there is one file."""
        if not self.metadata:
            return None
        content = {"metadata": dict(self.metadata), "weight_map": dict(self.files)}
        return json.dumps(content, indent=2) + "\n"


def split(parts: Sequence[Part], stem: str, max_size: str) -> Shards:
    """Spreads tensors over files as the hub's libraries do.

    Args:
        parts: In the order in which they fill the files.
        stem: ``diffusion_pytorch_model``.
        max_size: Such as ``5GB`` or ``500MB``.

    Raises:
        UserError: the size cannot be read.
    """
    try:
        plan = split_state_dict_into_shards_factory(
            {part.name: part for part in parts},
            get_storage_size=lambda part: part.nbytes,
            filename_pattern=stem + "{suffix}.safetensors",
            max_shard_size=max_size,
        )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"max_shard_size: {shown(max_size)!r} is not a size; write it as 5GB or 500MB"
        ) from error
    return Shards(plan.tensor_to_filename, plan.metadata if plan.is_sharded else {})


class ShardWriter:
    """Fills the files of ``split``; a file that is finished is hashed while the next is written.

    Args:
        folder: Where they go.
        shards: Which file holds which tensor.
        parts: All tensors.
        metadata: Of each file.
        index: The name of the index, if there are several files.
    """

    def __init__(
        self,
        folder: Path,
        shards: Shards,
        parts: Sequence[Part],
        metadata: Mapping[str, str],
        index: str,
    ) -> None:
        self._shards = shards
        by_file: dict[str, list[Part]] = {}
        for part in parts:
            by_file.setdefault(shards.files[part.name], []).append(part)
        self._files: dict[str, TensorFile] = {}
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._hasher = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future[None]] = deque()
        self._hashes: dict[Path, Future[str]] = {}
        try:
            for file, held in by_file.items():
                self._files[file] = TensorFile(folder / file, held, metadata)
        except OSError:
            self.close()
            raise
        if shards.index is not None:
            (folder / index).write_text(shards.index, encoding="utf-8")

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Hands over some of the tensors; they are written while the next ones are made."""
        while len(self._pending) >= _AHEAD:
            self._pending.popleft().result()
        for name, tensor in tensors.items():
            file = self._files[self._shards.files[name]]
            self._pending.append(self._worker.submit(self._write, file, name, tensor))

    def _write(self, file: TensorFile, name: str, tensor: Tensor) -> None:
        if file.write(name, tensor):
            self._hashes[file.path] = self._hasher.submit(sha256_file, file.path)

    def finish(self) -> dict[Path, str]:
        """Waits until everything is on the disk; raises what went wrong in writing.

        Returns:
            The sha256 of each file.
        """
        while self._pending:
            self._pending.popleft().result()
        return {path: digest.result() for path, digest in self._hashes.items()}

    def close(self) -> None:
        """Closes every file, finished or not."""
        self._worker.shutdown(cancel_futures=True)
        self._hasher.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
