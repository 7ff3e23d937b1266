"""The one writer of safetensors files: checkpoints, exports, latents and embeddings.

Tensors are written one by one, so that a file may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES
from lightx2v_sgmd.outputs import sha256_file, sync_file
from lightx2v_sgmd.system.errors import UserError, shortened

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
        """The tensor's size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def float32_parts(shapes: Mapping[str, Sequence[int]]) -> list[Part]:
    """Describes float32 tensors of these shapes, in this order."""
    return [Part(name, torch.float32, tuple(shape)) for name, shape in shapes.items()]


def safetensors_header(parts: Iterable[Part], metadata: Mapping[str, str]) -> bytes:
    """Returns the first bytes of a safetensors file whose tensors follow in this order."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for part in parts:
        end = position + part.nbytes
        content[part.name] = {
            "dtype": FILE_NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TensorFile:
    """One safetensors file, filled tensor by tensor.

    By default the tensors may come in any order, and are stored as the safetensors library stores
    them: types of more bytes first, then by name. So every tensor is aligned to its type, and equal
    tensors give equal bytes.

    Args:
        path: A file that does not exist yet.
        parts: The tensors that the file will hold.
        metadata: Text that travels in the header.
        sequential: Store the tensors in the order of ``parts``, in which they must then come, and
            hash the file while it is written.
    """

    def __init__(
        self,
        path: Path,
        parts: Iterable[Part],
        metadata: Mapping[str, str],
        *,
        sequential: bool = False,
    ) -> None:
        self.path = path
        ordered = list(parts)
        if not sequential:
            ordered.sort(key=lambda part: (-part.dtype.itemsize, part.name))
        header = safetensors_header(ordered, metadata)
        self._missing: dict[str, tuple[Part, int]] = {}
        self.size = len(header)
        for part in ordered:
            self._missing[part.name] = (part, self.size)
            self.size += part.nbytes
        self._digest = hashlib.sha256(header) if sequential else None
        self._file = path.open("xb")
        self._file.write(header)
        if not self._missing:
            self._finish()

    @property
    def sha256(self) -> str:
        """The hash of a finished file that was written sequentially."""
        assert self._digest is not None and not self._missing, self.path
        return self._digest.hexdigest()

    def write(self, name: str, tensor: Tensor) -> bool:
        """Writes one tensor; the last one finishes the file.

        Returns:
            True if it was the last one.
        """
        in_order = self._digest is None or next(iter(self._missing), None) == name
        part, position = self._missing.get(name, (None, 0))
        fits = part and tensor.dtype == part.dtype and tuple(tensor.shape) == part.shape
        assert fits and in_order, f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not {part}"
        if self._digest is None:
            self._file.seek(position)
        if tensor.numel():
            raw: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
            content = memoryview(raw)
            self._file.write(content)
            if self._digest is not None:
                self._digest.update(content)
        del self._missing[name]
        if not self._missing:
            self._finish()
        return not self._missing

    def _finish(self) -> None:
        self._file.close()
        sync_file(self.path)

    def close(self) -> None:
        """Closes a file that may be unfinished."""
        self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file of tensors in memory, as ``safetensors.torch.save_file`` does.

    Args:
        path: A file that does not exist yet; ``outputs.appearing`` gives its name.
        tensors: The tensors by name.
        metadata: Text that travels in the header.
    """
    parts = [Part(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    file = TensorFile(path, parts, metadata)
    try:
        for name, tensor in tensors.items():
            file.write(name, tensor.cpu())
    finally:
        file.close()


@dataclass(frozen=True)
class Shards:
    """The division of tensors into files.

    Attributes:
        files: The file of each tensor.
        metadata: The metadata of the index; empty where one file holds everything.
    """

    files: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def index(self) -> str | None:
        """The text of ``*.safetensors.index.json``; None if there is only one file."""
        if not self.metadata:
            return None
        content = {"metadata": dict(self.metadata), "weight_map": dict(self.files)}
        return json.dumps(content, indent=2) + "\n"


def split(parts: Sequence[Part], stem: str, max_size: str) -> Shards:
    """Divides tensors into files as the hub's libraries do.

    Args:
        parts: The tensors, in the order in which they fill the files.
        stem: The beginning of the files' names, such as ``diffusion_pytorch_model``.
        max_size: The size of a file at most, such as ``5GB`` or ``500MB``.

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
            f"max_shard_size: {shortened(max_size)!r} is not a size; write it as 5GB or 500MB"
        ) from error
    return Shards(plan.tensor_to_filename, plan.metadata if plan.is_sharded else {})


class ShardWriter:
    """Fills the files of ``split``; a finished file is hashed while the next one is written.

    Args:
        folder: The folder of the files.
        shards: The division of the tensors into files.
        parts: All tensors.
        metadata: Text that travels in the header of each file.
        index: The name of the index, written if there are several files.
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
        """Takes some of the tensors; they are written while the next ones are made."""
        while len(self._pending) >= _AHEAD:
            self._pending.popleft().result()
        for name, tensor in tensors.items():
            file = self._files[self._shards.files[name]]
            self._pending.append(self._worker.submit(self._write, file, name, tensor))

    def _write(self, file: TensorFile, name: str, tensor: Tensor) -> None:
        if file.write(name, tensor):
            self._hashes[file.path] = self._hasher.submit(sha256_file, file.path)

    def finish(self) -> dict[Path, str]:
        """Waits until everything is on the disk; raises the error if writing failed.

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
