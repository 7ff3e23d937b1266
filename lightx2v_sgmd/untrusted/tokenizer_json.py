"""Checks a ``tokenizer.json``: known steps, known patterns, and texts that stay small.

The file is a program for the ``tokenizers`` library: it could name a regular expression that never
ends, or replacements that double a text thirty times.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.fields import Text, shown

_PATTERNS: Final = frozenset(
    {
        r"\s+",
        r" {2,}",
        r"\n",
        r" +",
        r"\s",
        r" {1,}",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
        r"[^\s\p{L}\p{N}]+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    }
)
"""The expressions of published tokenizers; any other one could take too long."""

_STEPS: Final[Mapping[str, frozenset[str]]] = {
    "normalizer": frozenset(
        "Sequence NFC NFD NFKC NFKD Lowercase Strip StripAccents Nmt Precompiled Prepend Replace "
        "BertNormalizer ByteLevel".split()
    ),
    "pre_tokenizer": frozenset(
        "Sequence Metaspace WhitespaceSplit Whitespace ByteLevel BertPreTokenizer Punctuation "
        "Digits Split UnicodeScripts CharDelimiterSplit".split()
    ),
    "post_processor": frozenset(
        "Sequence TemplateProcessing BertProcessing RobertaProcessing ByteLevel".split()
    ),
    "decoder": frozenset(
        "Sequence Metaspace ByteLevel ByteFallback Fuse Replace Strip WordPiece BPEDecoder "
        "CTC".split()
    ),
}
_MODELS: Final = ("Unigram", "BPE", "WordPiece", "WordLevel")
_STEPS_MOST: Final = 16
_REPLACEMENTS_MOST: Final = 4
_REPLACEMENT_LENGTH: Final = 8
_TEMPLATE_MOST: Final = 16
_LENGTH_MOST: Final = 100_000
TOKENS_MOST: Final = 2**20
ADDED_MOST: Final = 10_000
"""Limits of a vocabulary's tokens, and of those that are special or added by hand."""
_CHARSMAP_BYTES: Final = 4_000_000  # umT5's has 0.3 MB
_CHARSMAP_TEXT: Final = 256


def check_tokenizer_json(content: Any) -> None:
    """Refuses a file with anything that no published tokenizer has.

    Raises:
        UserError: the file is refused; the message names the reason.
    """
    if not isinstance(content, dict):
        raise UserError("is not a JSON object")
    _check_model(content.get("model"))
    for part, known in _STEPS.items():
        steps = list(_steps(part, content.get(part)))
        if len(steps) > _STEPS_MOST:
            raise UserError(f"its {part} has more than {_STEPS_MOST} steps")
        for step in steps:
            if not isinstance(step.get("type"), str) or step["type"] not in known:
                raise UserError(f"its {part} is of the unknown type {shown(step.get('type'))}")
            _check_step(part, step)
        if sum(step["type"] == "Replace" for step in steps) > _REPLACEMENTS_MOST:
            raise UserError(f"its {part} replaces text more than {_REPLACEMENTS_MOST} times")
    _check_lengths(content)
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > ADDED_MOST:
        raise UserError(f"its added_tokens are not a list of at most {ADDED_MOST:,}")
    for token in added:
        good = isinstance(token, dict) and Text(200).allows(token.get("content"))
        number = token.get("id") if good else None
        if type(number) is not int or not 0 <= number < TOKENS_MOST:
            raise UserError(f"its added token {shown(token)} is not a token")


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        raise UserError("has no model")
    if model.get("type") not in _MODELS:
        raise UserError(f"its model is {shown(model.get('type'))}, not {' or '.join(_MODELS)}")
    if model.get("dropout"):
        raise UserError("its model drops tokens at random, which gives another video each time")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, list | dict) or not 0 < len(vocabulary) <= TOKENS_MOST:
        raise UserError(f"its vocabulary has not 1 to {TOKENS_MOST} tokens")
    if isinstance(vocabulary, dict):
        valid = all(type(n) is int and 0 <= n < TOKENS_MOST for n in vocabulary.values())
    else:
        valid = all(
            isinstance(row, list)
            and len(row) == 2
            and isinstance(row[0], str)
            and type(row[1]) in (int, float)
            and -1e9 <= row[1] <= 1e9
            for row in vocabulary
        )
    if not valid:
        raise UserError("its vocabulary has an entry that is not a token")
    unknown = model.get("unk_id")
    if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(vocabulary)):
        raise UserError(f"its unk_id is {shown(unknown)}, which is not a token of the vocabulary")


def _steps(part: str, step: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yields a step and, if it is a sequence, the steps in it."""
    if step is None:
        return
    if not isinstance(step, dict) or depth > 4:
        raise UserError(f"its {part} is {shown(step)}, which is not a step")
    yield step
    if step.get("type") != "Sequence":
        return
    inner = next(
        (
            step[key]
            for key in ("normalizers", "pretokenizers", "processors", "decoders")
            if key in step
        ),
        None,
    )
    if not isinstance(inner, list) or len(inner) > _STEPS_MOST:
        raise UserError(f"its {part} is not a sequence of at most {_STEPS_MOST} steps")
    for one in inner:
        yield from _steps(part, one, depth + 1)


def _check_step(part: str, step: Mapping[str, Any]) -> None:
    pattern = step.get("pattern")
    if pattern is not None:
        expression = pattern.get("Regex") if isinstance(pattern, dict) else pattern
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        if plain is not None:
            if not Text(100).allows(plain) or not plain:
                raise UserError(f"its {part} has the pattern {shown(plain)}")
        elif not isinstance(expression, str) or expression not in _PATTERNS:
            raise UserError(
                f"its {part} has the regular expression {shown(expression)}, which no published "
                "tokenizer has"
            )
    for key in ("content", "prepend", "replacement", "prefix", "suffix", "delimiter"):
        if key in step and not Text(_REPLACEMENT_LENGTH).allows(step[key]):
            raise UserError(f"its {part} puts in {shown(step[key])}")
    if step["type"] == "Precompiled":
        check_charsmap(_decoded(step.get("precompiled_charsmap")))
    if step["type"] == "TemplateProcessing":
        _check_template(step)


def _decoded(text: Any) -> bytes:
    """A table of replacements, which the file has as base64."""
    if text is None or text == "":
        return b""
    if not Text(_CHARSMAP_BYTES).allows(text):
        raise UserError("its precompiled_charsmap is too large")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("its precompiled_charsmap is not base64") from None


def check_charsmap(content: bytes) -> None:
    """Checks a SentencePiece model's replacements: a trie, then texts that end with a zero byte.

    Raises:
        UserError: they are cut short or too large.
    """
    if not content:
        return
    if len(content) > _CHARSMAP_BYTES:
        raise UserError("its precompiled_charsmap is too large")
    size = struct.unpack("<I", content[:4])[0] if len(content) >= 4 else -1
    if size < 0 or size % 4 or 4 + size > len(content):
        raise UserError("its precompiled_charsmap is cut short")
    if max(map(len, content[4 + size :].split(b"\0"))) > _CHARSMAP_TEXT:
        raise UserError(f"its precompiled_charsmap replaces by over {_CHARSMAP_TEXT} bytes")


def _check_template(step: Mapping[str, Any]) -> None:
    special = step.get("special_tokens", {})
    sizes = [len(step[key]) for key in ("single", "pair") if isinstance(step.get(key), list)]
    if not isinstance(special, dict) or len(special) > _TEMPLATE_MOST:
        raise UserError("its template has no valid special_tokens")
    for token in special.values():
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list):
            raise UserError("its template has a special token without ids")
        if any(type(n) is not int or not 0 <= n < TOKENS_MOST for n in ids):
            raise UserError("its template has a special token whose ids are no tokens")
        sizes.append(len(ids))
    if max(sizes, default=0) > _TEMPLATE_MOST:
        raise UserError(f"its template adds more than {_TEMPLATE_MOST} tokens")


def _check_lengths(content: Mapping[str, Any]) -> None:
    for key in ("truncation", "padding"):
        setting = content.get(key)
        if setting is None:
            continue
        if not isinstance(setting, dict):
            raise UserError(f"its {key} is {shown(setting)}")
        numbers = [
            *setting.values(),
            *(x for v in setting.values() if isinstance(v, dict) for x in v.values()),
        ]
        for number in numbers:
            if type(number) in (int, float) and not 0 <= number <= _LENGTH_MOST:
                raise UserError(f"its {key} is to {shown(number)} tokens, above {_LENGTH_MOST}")
