"""T5's tokenizers as they are published: read as transformers reads them, and checked before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Tokenizer

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted import sentencepiece_model
from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer
from tests.t5_tokenizer import trained_model, write_t5_tokenizer

TEXTS = ["a red circle moving left", "Ze\u0301bra  \ufb01sh <extra_id_0>\n12", ""]


@pytest.mark.parametrize("tokenizer_json", [False, True])
def test_token_ids_are_those_of_transformers(tmp_path: Path, tokenizer_json: bool) -> None:
    """CogVideoX publishes spiece.model alone, SD3 and Wan a tokenizer.json beside it."""
    folder = write_t5_tokenizer(tmp_path / "tokenizer", 226, tokenizer_json)
    ours, stock = load_tokenizer(folder), T5Tokenizer.from_pretrained(folder)
    padded: dict[str, Any] = {"padding": "max_length", "max_length": 32, "truncation": True}
    assert ours(TEXTS, **padded).input_ids == stock(TEXTS, **padded).input_ids
    assert len(ours) == len(stock) and ours.model_max_length == 226
    assert ours(TEXTS[0]).input_ids[-1] == 1 and len(ours(TEXTS[0]).input_ids) == 6


def cut_short(model: Any) -> None:
    model.normalizer_spec.precompiled_charsmap = b"\xff\xff\xff\x7f" + b"a" * 100


def made_of_replacements(model: Any) -> None:
    model.normalizer_spec.precompiled_charsmap = b"\x08\0\0\0" + b"\0" * 8 + b"a" * 10**6


def larger_than_any(model: Any) -> None:
    model.normalizer_spec.precompiled_charsmap = b"\0" * 5_000_000


def by_pairs(model: Any) -> None:
    model.trainer_spec.model_type = 2


def empty(model: Any) -> None:
    del model.pieces[:]


def special(model: Any) -> None:
    for _ in range(10_001):
        model.pieces.add(piece="x", score=0.0, type=4)


def without_a_score(model: Any) -> None:
    model.pieces[5].score = float("nan")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cut_short, "its precompiled_charsmap is cut short"),
        (made_of_replacements, "its precompiled_charsmap replaces by over 256 bytes"),
        (larger_than_any, "its precompiled_charsmap is too large"),
        (by_pairs, r"its model is of type 2, not 1 \(Unigram\)"),
        (empty, "has 0 pieces"),
        (special, "has 10,003 special pieces, more than 10,000"),
        (without_a_score, "has a piece whose score"),
    ],
)
def test_what_no_published_vocabulary_has_is_refused(
    tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    folder = write_t5_tokenizer(tmp_path / "tokenizer", 226, tokenizer_json=False)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained_model())
    change(model)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=f"spiece.model: {says}.*; copy the tokenizer again"):
        load_tokenizer(folder)


def test_a_damaged_file_is_not_taken_for_another_kind(tmp_path: Path) -> None:
    folder = write_t5_tokenizer(tmp_path / "tokenizer", 226, tokenizer_json=False)
    (folder / "spiece.model").write_bytes(trained_model()[:1000])
    with pytest.raises(UserError, match="spiece.model: is not a SentencePiece model") as error:
        load_tokenizer(folder)
    assert "tiktoken" not in str(error.value)


def test_more_pieces_than_a_vocabulary_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_model, "TOKENS_MOST", 10)
    with pytest.raises(UserError, match="pieces, not 1 to 10"):
        sentencepiece_model.check_sentencepiece(trained_model())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_t5_tokenizer(tmp_path / "tokenizer", 226, tokenizer_json=False)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="the package sentencepiece is not installed; install it"):
        load_tokenizer(folder)
