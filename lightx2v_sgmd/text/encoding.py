"""Encodes the prompts of a job, on all ranks, with or without a cache of embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.encoders import PromptEncoder
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import clean_temporaries
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.console import Bar, note, progress
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.cache import ABOUT_FILE, EmbeddingCache, is_embedding, prompt_key
from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity, encoder_kind
from lightx2v_sgmd.text.loading import load_encoder
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json
from lightx2v_sgmd.untrusted.reading import read_file

CHUNK = 16
"""Number of prompts in a chunk; the ranks divide the work by chunks."""
SHARD_ROWS = 256
"""Number of embeddings in a shard; a killed process loses at most that many."""


def encode_prompts(
    model: Model,
    prompts: Sequence[str],
    ranks: Ranks,
    dtype: torch.dtype,
    cache: Path | None,
    quiet: bool = True,
) -> Sequence[Embedding]:
    """Embeddings of the prompts, on the CPU; the encoder is freed afterwards.

    The ranks share the work. With a cache that has all prompts no encoder is loaded, and rows are
    read when asked for.

    Args:
        model: The model whose encoder is used.
        prompts: The prompts of the training.
        ranks: The processes of the run.
        dtype: The encoder's precision, from ``Model.text_dtype``.
        cache: A folder for the embeddings that all ranks see; None to store nothing.
        quiet: True to show no progress.

    Raises:
        UserError: the cache lacks prompts and the encoder is missing.
    """
    if cache is None:
        chunks = _chunks(list(dict.fromkeys(prompts)))
        with _bar(sum(map(len, chunks)), 0, quiet or not ranks.first) as bar:
            own = range(ranks.rank, len(chunks), ranks.size)
            mine = dict(_encoded(model, dtype, ranks.device, chunks, own, bar, ranks.size, quiet))
        every = {index: rows for part in ranks.gather(mine) for index, rows in part.items()}
        by_prompt: dict[str, Embedding] = {}
        for index, chunk in enumerate(chunks):
            by_prompt |= zip(chunk, every[index], strict=True)
        return [by_prompt[prompt] for prompt in prompts]
    name = ranks.once(lambda: _folder_name(model, dtype, cache, prompts, quiet))
    store = EmbeddingCache(cache / name)
    # One rank looks for all of them, so that a shard that appears meanwhile cannot divide them.
    if ranks.once(lambda: len(store.missing(prompts))):
        ranks.each(lambda: fill(store, model, prompts, dtype, ranks, quiet))
    return ranks.each(lambda: EmbeddingCache(cache / name).rows(prompts))[ranks.rank]


def check_fillable(model: Model, prompts: Sequence[str], dtype: torch.dtype, cache: Path) -> None:
    """Refuses a cache that lacks prompts and cannot be written.

    Raises:
        UserError: it is such a cache.
    """
    if all(map(_is_writable, (cache, *(file.parent for file in cache.glob(f"*/{ABOUT_FILE}"))))):
        return
    folder = cache / _folder_name(model, dtype, cache, prompts, quiet=True)
    missing = EmbeddingCache(folder).missing(prompts)
    if missing and not _is_writable(folder):
        raise UserError(
            f"data.embeddings: {cache} lacks {len(missing)} of {len(prompts)} prompts and cannot "
            "be written; run `embed` where it can, or name another folder"
        )


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(folder, folder=True)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Filled:
    """The result of ``embed``.

    Attributes:
        folder: The folder of the encoder in the cache.
        prompts: Number of different prompts of the job, with the negative prompt.
        encoded: Number of prompts that this process encoded; the others were in the cache.
    """

    folder: Path
    prompts: int
    encoded: int


def embed(
    model: Model,
    prompts: Sequence[str],
    ranks: Ranks,
    dtype: torch.dtype,
    cache: Path,
    quiet: bool = False,
) -> Filled:
    """Completes a cache; each rank encodes its part of the prompts without the others.

    Raises:
        UserError: the encoder is needed but missing.
    """
    prompts = list(dict.fromkeys(prompts))
    store = EmbeddingCache(cache / _folder_name(model, dtype, cache, prompts, quiet))
    encoded = fill(store, model, prompts, dtype, ranks, quiet)
    return Filled(store.folder, len(prompts), encoded)


def fill(
    store: EmbeddingCache,
    model: Model,
    prompts: Sequence[str],
    dtype: torch.dtype,
    ranks: Ranks,
    quiet: bool,
) -> int:
    """Encodes this rank's share of what a cache lacks; returns how many prompts it encoded.

    The chunks are those of the whole list, so that the ranks agree on them.
    """
    missing = set(store.missing(prompts))
    chunks = _chunks(prompts)
    clean_temporaries(store.folder)
    missing -= _copy_entries(store, model, dtype, chunks[ranks.rank :: ranks.size], missing)
    own = [
        index
        for index in range(ranks.rank, len(chunks), ranks.size)
        if not missing.isdisjoint(chunks[index])
    ]
    if not own:
        return 0
    count = 0
    waiting: dict[str, Embedding] = {}
    store.describe(model, dtype)
    done = sum(map(len, chunks[ranks.rank :: ranks.size])) - sum(len(chunks[i]) for i in own)
    try:
        with _bar(len(prompts), done * ranks.size, quiet or not ranks.first) as bar:
            made = _encoded(model, dtype, ranks.device, chunks, own, bar, ranks.size, quiet)
            for index, rows in made:
                found = zip(chunks[index], rows, strict=True)
                waiting |= {prompt_key(prompt): row for prompt, row in found if prompt in missing}
                if len(waiting) >= SHARD_ROWS:
                    count += store.write(waiting)
                    waiting = {}
    finally:  # also when interrupted
        count += store.write(waiting)
    return count


def _copy_entries(
    store: EmbeddingCache,
    model: Model,
    dtype: torch.dtype,
    chunks: Sequence[Sequence[str]],
    missing: set[str],
) -> set[str]:
    """Copies what ``generate`` wrote of the missing prompts into shards; returns these prompts."""
    copied: set[str] = set()
    for start in range(0, len(chunks), SHARD_ROWS // CHUNK):
        rows = {}
        for prompt in (p for chunk in chunks[start : start + SHARD_ROWS // CHUNK] for p in chunk):
            saved = store.read(prompt) if prompt in missing else None
            if saved is not None and is_embedding(model, saved[0], dtype):
                rows[prompt_key(prompt)] = saved[0]
                copied.add(prompt)
        if rows:
            store.describe(model, dtype)
            store.write(rows)
    return copied


def _chunks(prompts: Sequence[str]) -> list[Sequence[str]]:
    return [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]


def _bar(total: int, done: int, quiet: bool) -> Any:
    return progress(total, "embedding prompts", quiet, done=done)


def _encoded(
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    chunks: Sequence[Sequence[str]],
    own: Sequence[int],
    bar: Bar,
    ranks: int,
    quiet: bool = True,
) -> Iterator[tuple[int, list[Embedding]]]:
    """Encodes the chunks ``own``; the bar moves for all ranks, which are about as fast."""
    if not own:
        return
    encoder = load_encoder(model, dtype, device, quiet=quiet)
    left = sum(map(len, chunks))
    for index in own:
        rows = list(encode_each(encoder, chunks[index]))
        step = min(left, ranks * len(rows))
        left -= step
        bar.advance(step)
        yield index, rows


def encode_each(encoder: PromptEncoder, prompts: Sequence[str]) -> Iterator[Embedding]:
    """Each prompt's embedding on the CPU, as soon as it is computed."""
    count = encoder.prompts_at_once
    for start in range(0, len(prompts), count):
        for embedding in encoder.encode(prompts[start : start + count]):
            yield embedding.to("cpu")


def _folder_name(
    model: Model, dtype: torch.dtype, cache: Path, prompts: Sequence[str], quiet: bool
) -> str:
    """The encoder's folder in the cache; without its weights, the folder that has all prompts.

    Raises:
        UserError: the encoder's weights are missing, and several folders of the cache match.
    """
    if model.source.has("text_encoder"):
        return encoder_identity(model, dtype)
    kind, root = encoder_kind(model, dtype), model.source.root
    found = {}
    for file in sorted(cache.glob(f"*/{ABOUT_FILE}")):
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
