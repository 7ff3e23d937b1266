"""The cache of text embeddings that training, ``embed`` and ``generate`` share.

    CACHE/<encoder>/encoder.json
    CACHE/<encoder>/rows_<digest>.safetensors    many prompts; written by ``embed`` and training
    CACHE/<encoder>/<key>.safetensors            one prompt; written by ``generate``

The rows ``[S, D]`` of a prompt are stored under its sha256 in both kinds of files; whatever else a
family's embedding has (a pooled vector, say) is beside them as ``<sha256>.<name>``. The folder's
name is a fingerprint of the encoder: weights, tokenizer and precision. So a changed encoder or
prompt never gets the embedding of another one. Prompts themselves are not written.

Files appear by rename and belong to nobody: what a killed process had written counts, several
processes may write at once, and several jobs may share a folder. ``prune_entries`` removes entries
only. Training therefore copies the entries that it needs into a shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, overload

import torch
from safetensors import SafetensorError
from torch import Tensor

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import TEXT, Embedding
from lightx2v_sgmd.files.tensors.safetensors_files import open_tensors
from lightx2v_sgmd.files.tensors.safetensors_writer import write_tensors
from lightx2v_sgmd.outputs import appearing, write_text
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.encoder_fingerprint import encoder_kind

ABOUT_FILE: Final = "encoder.json"
"""The file that describes the encoder of a folder."""
_ENTRY: Final = re.compile(r"[0-9a-f]{24}/[0-9a-f]{64}\.safetensors")


def prompt_key(prompt: str) -> str:
    """The name of a prompt in the cache: its sha256."""
    return hashlib.sha256(prompt.encode()).hexdigest()


class EmbeddingCache:
    """The embeddings of one encoder; the shards are listed once, when the object is made.

    A damaged file counts as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("rows_*.safetensors")):
            try:
                with open_tensors(file) as shard:
                    self._files |= dict.fromkeys(_stored_names(shard.keys()), file)
            except (OSError, SafetensorError, UserError):
                continue

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that no shard has an embedding of."""
        return [prompt for prompt in prompts if prompt_key(prompt) not in self._files]

    def rows(self, prompts: Sequence[str]) -> CachedRows:
        """The embeddings of the prompts, each read when it is asked for.

        Raises:
            UserError: embeddings are missing.
        """
        if missing := self.missing(prompts):
            raise UserError(
                f"data.embeddings: {self.folder} lacks {len(missing)} of {len(prompts)} prompts "
                "that were just written; name a folder that all processes see"
            )
        keys = [prompt_key(prompt) for prompt in prompts]
        return CachedRows(keys, {key: self._files[key] for key in keys})

    def describe(self, model: Model, dtype: torch.dtype) -> None:
        """Writes which encoder made the embeddings, for machines that have no encoder."""
        about = {
            "model": model.source.root,
            "dtype": str(dtype),
            "kind": encoder_kind(model, dtype),
        }
        write_text(self.folder / ABOUT_FILE, json.dumps(about, indent=2) + "\n")

    def write(self, rows: Mapping[str, Embedding]) -> int:
        """Writes a shard of embeddings, by key; returns how many it has."""
        if not rows:
            return 0
        digest = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:24]
        file = self.folder / f"rows_{digest}.safetensors"
        with appearing(file, suffix=".safetensors") as temporary:
            write_tensors(temporary, _stored(rows), {})
        return len(rows)

    def read(self, prompt: str) -> tuple[Embedding, dict[str, str]] | None:
        """The embedding of one prompt, and the metadata of its file; None if there is none."""
        key = prompt_key(prompt)
        entry = self.entry_file(prompt)
        for file in (entry, self._files.get(key)):
            if file is None or not file.is_file():
                continue
            try:
                with open_tensors(file) as saved:
                    row = _read(saved, _stored_names(saved.keys())[key])
                    metadata = dict(saved.metadata() or {})
            except (KeyError, SafetensorError, OSError, UserError):
                continue
            if file == entry:
                with contextlib.suppress(OSError):
                    os.utime(file)  # entries used longest ago are removed first
            return row, metadata
        return None

    def entry_file(self, prompt: str) -> Path:
        """The file that has one prompt's embedding alone."""
        return self.folder / f"{prompt_key(prompt)}.safetensors"

    def write_entry(self, prompt: str, row: Embedding, metadata: dict[str, str]) -> None:
        """Writes the embedding of one prompt to a file of its own."""
        with appearing(self.entry_file(prompt), suffix=".safetensors") as temporary:
            write_tensors(temporary, _stored({prompt_key(prompt): row}), metadata)


def _stored(rows: Mapping[str, Embedding]) -> dict[str, Tensor]:
    """The tensors of embeddings, by key, under the names that files have."""
    return {
        key if name == TEXT else f"{key}.{name}": tensor
        for key, row in rows.items()
        for name, tensor in row.items()
    }


def _stored_names(stored: Iterable[str]) -> dict[str, dict[str, str]]:
    """The entries of each embedding in a file: by key, their names here and in the file."""
    names: dict[str, dict[str, str]] = {}
    for each in stored:
        key, _, name = each.partition(".")
        names.setdefault(key, {})[name or TEXT] = each
    return names


def _read(saved: Any, names: Mapping[str, str]) -> Embedding:
    """An embedding in an open file, from ``_stored_names``."""
    return Embedding({name: saved.get_tensor(stored) for name, stored in names.items()})


class CachedRows(Sequence[Embedding]):
    """Cached embeddings in the order of the prompts; each is read when it is asked for."""

    def __init__(self, keys: Sequence[str], files: dict[str, Path]) -> None:
        self._keys, self._files = keys, files
        self._open: dict[Path, Any] = {}
        self._names: dict[Path, dict[str, dict[str, str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # handles do not travel between processes

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Embedding: ...

    @overload
    def __getitem__(self, index: slice) -> CachedRows: ...

    def __getitem__(self, index: int | slice) -> Embedding | CachedRows:
        if isinstance(index, slice):
            return CachedRows(self._keys[index], self._files)
        key = self._keys[index]
        file = self._files[key]
        if file not in self._names:
            self._names[file] = _stored_names(self._shard(key).keys())
        return _read(self._shard(key), self._names[file][key])

    def longest(self) -> int:
        """The number of text tokens of the longest embedding; reads only headers."""
        return max(int(self._shard(key).get_slice(key).get_shape()[0]) for key in self._keys)

    def _shard(self, key: str) -> Any:
        file = self._files[key]
        if file not in self._open:
            self._open[file] = open_tensors(file)
        return self._open[file]


def is_embedding(model: Model, row: Embedding, dtype: torch.dtype) -> bool:
    """True if a prompt's embedding has the shapes and the precision that this model needs."""
    shapes = model.embedding_shapes
    return (
        row.keys() == shapes.keys()
        and row.text.dtype == dtype
        and all(_has_shape(row[name], shape) for name, shape in shapes.items())
    )


def _has_shape(tensor: Tensor, shape: Sequence[int | None]) -> bool:
    return tensor.ndim == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )


def longest(rows: Sequence[Embedding]) -> int:
    """The number of text tokens of the longest embedding."""
    return rows.longest() if isinstance(rows, CachedRows) else max(len(row.text) for row in rows)


def prune_entries(folder: Path, limit: int) -> None:
    """Removes the entries used longest ago until they have at most ``limit`` bytes together.

    Shards and other files in the same folder stay.
    """
    entries = []
    for file in folder.glob("*/*.safetensors"):
        if not _ENTRY.fullmatch(f"{file.parent.name}/{file.name}"):
            continue
        with contextlib.suppress(OSError):  # another process may be pruning, too
            stat = file.stat()
            entries.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size
