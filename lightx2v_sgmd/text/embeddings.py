"""Text embeddings of a job's prompts, and the folder that keeps them between runs.

    CACHE/<encoder>/encoder.json
    CACHE/<encoder>/rows_<digest>.safetensors    tensors ``[S, D]`` under the prompts' sha256

A row is found by its encoder (weights, tokenizer, precision) and its prompt, so an altered one
never gets another's. Shards appear by rename and belong to nobody: what a killed run had written
counts, several processes may write at once, and several jobs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.families.wan import WanModel
from lightx2v_sgmd.files.safetensors_files import open_tensors
from lightx2v_sgmd.outputs import appearing, clean_temporaries, write_text
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.console import Bar, note, progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.quiet import no_library_bars
from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity, encoder_kind
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json
from lightx2v_sgmd.untrusted.reading import read_file

# S text tokens, D text width

CHUNK = 16
"""Prompts of a chunk, which is what the ranks share out."""
SHARD_ROWS = 256
"""Rows of a shard, which is what a killed process loses at most."""
_ABOUT = "encoder.json"


def encode_prompts(
    model: WanModel,
    prompts: Sequence[str],
    ranks: Ranks,
    dtype: torch.dtype,
    cache: Path | None,
    quiet: bool = True,
) -> Sequence[Tensor]:
    """Text embeddings ``[S_i, D]`` of the prompts, on the CPU; the encoder is let go of.

    The ranks share the work. With a cache that has all prompts no encoder is loaded, and rows are
    read when asked for.

    Args:
        model: Whose encoder to use.
        prompts: As they are trained on.
        ranks: The processes of the run.
        dtype: The encoder's precision, from ``text_dtype``.
        cache: A folder that keeps the embeddings, one that all ranks see.
        quiet: Show nothing.

    Raises:
        UserError: neither the cache nor the encoder has what is needed.
    """
    if cache is None:
        chunks = _chunks(list(dict.fromkeys(prompts)))
        with _bar(sum(map(len, chunks)), 0, quiet or not ranks.first) as bar:
            own = range(ranks.rank, len(chunks), ranks.size)
            mine = dict(_encoded(model, dtype, ranks.device, chunks, own, bar, ranks.size))
        every = {index: rows for part in ranks.gather(mine) for index, rows in part.items()}
        by_prompt: dict[str, Tensor] = {}
        for index, chunk in enumerate(chunks):
            by_prompt |= zip(chunk, every[index], strict=True)
        return [by_prompt[prompt] for prompt in prompts]
    name = ranks.once(lambda: _folder_name(model, dtype, cache, prompts, quiet))
    store = EmbeddingCache(cache / name)
    # One rank looks, for all: a shard that appears meanwhile must not send them separate ways.
    if ranks.once(lambda: len(store.missing(prompts))):
        ranks.each(lambda: fill(store, model, prompts, dtype, ranks, quiet))
    return ranks.each(lambda: EmbeddingCache(cache / name).rows(prompts))[ranks.rank]


@dataclass(frozen=True)
class Filled:
    """What ``embed`` did.

    Attributes:
        folder: The encoder's, in the cache.
        prompts: Of the job, the negative one included.
        encoded: By this process; the others were there.
    """

    folder: Path
    prompts: int
    encoded: int


def embed(
    model: WanModel,
    prompts: Sequence[str],
    ranks: Ranks,
    dtype: torch.dtype,
    cache: Path,
    quiet: bool = False,
) -> Filled:
    """Completes a cache. The ranks need not know of each other: each does its part of the prompts.

    Raises:
        UserError: the encoder is needed and not there.
    """
    prompts = list(dict.fromkeys(prompts))
    store = EmbeddingCache(cache / _folder_name(model, dtype, cache, prompts, quiet))
    encoded = fill(store, model, prompts, dtype, ranks, quiet)
    return Filled(store.folder, len(prompts), encoded)


def fill(
    store: EmbeddingCache,
    model: WanModel,
    prompts: Sequence[str],
    dtype: torch.dtype,
    ranks: Ranks,
    quiet: bool,
) -> int:
    """Encodes this rank's share of what a cache lacks; returns how many rows it wrote.

    The chunks are those of the whole list, so that the ranks agree on them.
    """
    missing = set(store.missing(prompts))
    chunks = _chunks(prompts)
    own = [
        index
        for index in range(ranks.rank, len(chunks), ranks.size)
        if not missing.isdisjoint(chunks[index])
    ]
    clean_temporaries(store.folder)
    if not own:
        return 0
    count = 0
    waiting: dict[str, Tensor] = {}
    store.describe(model, dtype)
    done = sum(map(len, chunks[ranks.rank :: ranks.size])) - sum(len(chunks[i]) for i in own)
    try:
        with _bar(len(prompts), done * ranks.size, quiet or not ranks.first) as bar:
            for index, rows in _encoded(model, dtype, ranks.device, chunks, own, bar, ranks.size):
                found = zip(chunks[index], rows, strict=True)
                waiting |= {prompt_key(prompt): row for prompt, row in found if prompt in missing}
                if len(waiting) >= SHARD_ROWS:
                    count += store.write(waiting)
                    waiting = {}
    finally:  # also when interrupted
        count += store.write(waiting)
    return count


def _chunks(prompts: Sequence[str]) -> list[Sequence[str]]:
    return [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]


def _bar(total: int, done: int, quiet: bool) -> Any:
    return progress(total, "embedding prompts", quiet, done=done)


def _encoded(
    model: WanModel,
    dtype: torch.dtype,
    device: torch.device,
    chunks: Sequence[Sequence[str]],
    own: Sequence[int],
    bar: Bar,
    ranks: int,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Encodes the chunks ``own``; the bar moves for all ranks, which are about as fast."""
    if not own:
        return
    with no_library_bars():
        encoder = model.load_text_encoder(dtype, device)
    left = sum(map(len, chunks))
    for index in own:
        rows = [row.cpu() for row in encoder.encode(chunks[index])]
        step = min(left, ranks * len(rows))
        left -= step
        bar.advance(step)
        yield index, rows


def _folder_name(
    model: WanModel, dtype: torch.dtype, cache: Path, prompts: Sequence[str], quiet: bool
) -> str:
    """The encoder's folder; without its weights, the one in the cache that has all prompts.

    Raises:
        UserError: the weights are not here, and the cache has several encoders of that kind.
    """
    if model.source.has("text_encoder"):
        return encoder_identity(model, dtype)
    kind, root = encoder_kind(model, dtype), model.source.root
    found = {}
    for file in sorted(cache.glob(f"*/{_ABOUT}")):
        about = _read_about(file)
        if about.get("kind") == kind and not EmbeddingCache(file.parent).missing(prompts):
            found[file.parent.name] = str(about.get("model"))
    same = [name for name, made in found.items() if made == root]
    chosen = same if len(same) == 1 else list(found)
    if len(chosen) > 1:
        raise UserError(
            f"data.embeddings: {cache} has the prompts as {len(chosen)} encoders give them, and "
            f"the text encoder of {model.path}, which would tell which to take, is not here; get "
            "it, or keep one encoder's folder"
        )
    if not chosen:  # downloads it, or says what is missing
        return encoder_identity(model, dtype)
    note(
        f"the text encoder of {model.path} is not here; taking the embeddings that the one of "
        f"{found[chosen[0]]} made",
        quiet,
    )
    return chosen[0]


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about = parse_json(read_file(file, RECORD.size), RECORD)
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def prompt_key(prompt: str) -> str:
    """A prompt's name in a shard."""
    return hashlib.sha256(prompt.encode()).hexdigest()


class EmbeddingCache:
    """One encoder's rows in a cache, as they are when it is made. A damaged shard is as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, Path] = {}
        for file in sorted(folder.glob("rows_*.safetensors")):
            try:
                with open_tensors(file) as shard:
                    self._places |= dict.fromkeys(shard.keys(), file)
            except (OSError, SafetensorError, UserError):
                continue

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those that it has no rows of."""
        return [prompt for prompt in prompts if prompt_key(prompt) not in self._places]

    def rows(self, prompts: Sequence[str]) -> CachedRows:
        """Their rows, read when asked for.

        Raises:
            UserError: some are missing.
        """
        if missing := self.missing(prompts):
            raise UserError(
                f"data.embeddings: {self.folder} lacks {len(missing)} of {len(prompts)} prompts "
                "that were just written; the folder must be one that all processes see"
            )
        keys = [prompt_key(prompt) for prompt in prompts]
        return CachedRows(keys, {key: self._places[key] for key in keys})

    def describe(self, model: WanModel, dtype: torch.dtype) -> None:
        """Notes whose rows these are, for machines that have no encoder."""
        about = {
            "model": model.source.root,
            "dtype": str(dtype),
            "kind": encoder_kind(model, dtype),
        }
        write_text(self.folder / _ABOUT, json.dumps(about, indent=2) + "\n")

    def write(self, rows: dict[str, Tensor]) -> int:
        """Writes a shard whole or not at all; returns how many rows it has."""
        if not rows:
            return 0
        digest = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:24]
        file = self.folder / f"rows_{digest}.safetensors"
        with appearing(file, suffix=".safetensors") as temporary:
            save_file({key: row.contiguous() for key, row in rows.items()}, temporary)
        return len(rows)


class CachedRows(Sequence[Tensor]):
    """Rows of a cache, in the order of the prompts; nothing is read before it is asked for."""

    def __init__(self, keys: Sequence[str], places: dict[str, Path]) -> None:
        self._keys, self._places = keys, places
        self._open: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # handles do not travel between processes

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> CachedRows: ...

    def __getitem__(self, index: int | slice) -> Tensor | CachedRows:
        if isinstance(index, slice):
            return CachedRows(self._keys[index], self._places)
        key = self._keys[index]
        row: Tensor = self._shard(key).get_tensor(key)
        return row

    def longest(self) -> int:
        """Text tokens of the longest; reads no rows."""
        return max(int(self._shard(key).get_slice(key).get_shape()[0]) for key in self._keys)

    def _shard(self, key: str) -> Any:
        file = self._places[key]
        if file not in self._open:
            self._open[file] = open_tensors(file)
        return self._open[file]


def longest(rows: Sequence[Tensor]) -> int:
    """Text tokens of the longest row."""
    return rows.longest() if isinstance(rows, CachedRows) else max(map(len, rows))
