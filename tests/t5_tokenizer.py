"""A small T5 tokenizer that SentencePiece trains, in the files in which T5's are published."""

from __future__ import annotations

import io
import json
import random
import string
import tempfile
from functools import cache
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

WORDS = ["a", "red", "blue", "circle", "square", "moving", "left", "right", "slowly", "and"]
_EXTRA = [f"<extra_id_{i}>" for i in range(4)]
_SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@cache
def trained_model() -> bytes:
    """The ``spiece.model`` of a vocabulary that has ``WORDS`` whole and spells others."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=6)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *string.ascii_lowercase]),
        model_writer=model,
        vocab_size=50,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_t5_tokenizer(folder: Path, max_length: int, tokenizer_json: bool) -> Path:
    """Writes the files of a published T5 tokenizer, over those of another one.

    Args:
        folder: The tokenizer's folder.
        max_length: Tokens of a prompt.
        tokenizer_json: True adds a ``tokenizer.json``, as SD3 and Wan have it; CogVideoX has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    model = trained_model()
    (folder / "spiece.model").write_bytes(model)
    first = len(sentencepiece.SentencePieceProcessor(model_proto=model))
    numbers = {token: first + i for i, token in enumerate(reversed(_EXTRA))}
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "additional_special_tokens": _EXTRA,
        "clean_up_tokenization_spaces": True,
        "extra_ids": len(_EXTRA),
        "legacy": True,
        "model_max_length": max_length,
        "sp_model_kwargs": {},
        **_SPECIAL,
    }
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": _EXTRA, **_SPECIAL})
    _write(folder / "added_tokens.json", numbers)
    if tokenizer_json:
        T5Tokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_t5_tokenizer(max_length: int) -> T5Tokenizer:
    """The tokenizer itself, as transformers reads it."""
    with tempfile.TemporaryDirectory() as folder:
        return T5Tokenizer.from_pretrained(write_t5_tokenizer(Path(folder), max_length, False))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
