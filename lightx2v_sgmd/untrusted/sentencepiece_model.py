"""Checks a ``spiece.model``, the file in which SentencePiece publishes a vocabulary.

transformers makes a tokenizer of its pieces and of its table of replacements, as it does of a
``tokenizer.json``, so the limits are the same. What else the file holds has no effect.
"""

from __future__ import annotations

from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.optional_packages import required
from lightx2v_sgmd.untrusted.tokenizer_json import ADDED_MOST, TOKENS_MOST, check_charsmap

_UNIGRAM: Final = 1
_NORMAL, _UNKNOWN = 1, 2
"""The kinds of pieces that a text is cut into; others are special, or added by hand."""


def check_packages() -> None:
    """Checks that the packages are there with which transformers and this module read the file.

    Raises:
        UserError: one is missing or broken; names the command that installs it again.
    """
    for package in ("sentencepiece", "google.protobuf"):
        required(package)


def check_sentencepiece(content: bytes) -> None:
    """Refuses a file with anything that no published vocabulary of T5's has.

    Raises:
        UserError: the file is refused; the message names the reason.
    """
    model = _parsed(content)
    kind = model.trainer_spec.model_type
    if kind != _UNIGRAM:
        raise UserError(f"its model is of type {kind}, not {_UNIGRAM} (Unigram)")
    if not 0 < len(model.pieces) <= TOKENS_MOST:
        raise UserError(f"has {len(model.pieces)} pieces, not 1 to {TOKENS_MOST}")
    added = sum(piece.type not in (_NORMAL, _UNKNOWN) for piece in model.pieces)
    if added > ADDED_MOST:
        raise UserError(f"has {added:,} special pieces, more than {ADDED_MOST:,}")
    if not all(-1e9 <= piece.score <= 1e9 for piece in model.pieces):
        raise UserError("has a piece whose score is not between -1e9 and 1e9")
    check_charsmap(model.normalizer_spec.precompiled_charsmap)


def _parsed(content: bytes) -> Any:
    """The file's message, read by protobuf."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError, whose place differs between releases
        raise UserError(f"is not a SentencePiece model ({first_line(error)})") from error
    return model
