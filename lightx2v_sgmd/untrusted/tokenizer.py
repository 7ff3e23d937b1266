"""Loads tokenizers from strangers: the files are checked, copied, and loaded from the copy.

``AutoTokenizer`` would take the name of a class, files and code from the folder. Here the class is
one of a few of transformers' own, only checked files are copied, and only known keys of
``tokenizer_config.json`` are copied.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError, first_line, with_remedy
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from lightx2v_sgmd.untrusted.configs import refuse_code
from lightx2v_sgmd.untrusted.fields import (
    Choice,
    Either,
    Field,
    Flag,
    Null,
    Real,
    Text,
    Whole,
    first_problem,
    optional,
    shown,
)
from lightx2v_sgmd.untrusted.json_text import Limits, parse_json, read_bytes, read_json_object
from lightx2v_sgmd.untrusted.sentencepiece_model import check_packages, check_sentencepiece
from lightx2v_sgmd.untrusted.tokenizer_json import check_tokenizer_json

_CLASSES: Final = {
    "CLIPTokenizer": "PreTrainedTokenizerFast",
    "CLIPTokenizerFast": "PreTrainedTokenizerFast",
    "T5Tokenizer": "T5Tokenizer",
    "T5TokenizerFast": "T5Tokenizer",
    "PreTrainedTokenizerFast": "PreTrainedTokenizerFast",
    "TokenizersBackend": "PreTrainedTokenizerFast",
}
_VOCABULARY: Final = Limits(size=48_000_000, values=3_000_000, unique=True)
"""Limits of ``tokenizer.json``: umT5's has 16.8 MB and 770,000 values. No key may be there twice,
since Python takes the last one, and Rust may take another."""
_SENTENCEPIECE: Final = Limits(size=8_000_000, values=0)  # no JSON; umT5's has 4.5 MB
_MERGES_BYTES: Final = 16_000_000  # CLIP's has 0.5 MB
_CLIP_FILES: Final = ("vocab.json", "merges.txt")
_T5_FILE: Final = "spiece.model"
_TOKEN_NAMES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_TOKENS_MOST: Final = 10_000
_REMEDY: Final = "copy the tokenizer again"


class _Token:
    """A token: its text, or its text with the rules for matching it."""

    wanted = "a token of at most 200 characters"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, dict):
            return Text(200).allows(value)
        flags = {key: inner for key, inner in value.items() if key not in ("content", "__type")}
        known = {"single_word", "lstrip", "rstrip", "normalized", "special"}
        return (
            Text(200).allows(value.get("content"))
            and value.get("__type", "AddedToken") == "AddedToken"
            and flags.keys() <= known
            and all(type(flag) is bool for flag in flags.values())
        )


class _Tokens:
    """A list of tokens, or tokens by number or by name."""

    wanted = f"at most {_TOKENS_MOST} tokens of at most 200 characters"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, list | dict) or len(value) > _TOKENS_MOST:
            return False
        inner = value.values() if isinstance(value, dict) else value
        return all(map(_Token().allows, inner))


_TOKENS_BY_NAME: Final = {f"{name}_token": optional(_Token()) for name in _TOKEN_NAMES}
_CONFIG: Final[Mapping[str, Field]] = {
    **_TOKENS_BY_NAME,
    "additional_special_tokens": optional(_Tokens()),
    "extra_special_tokens": optional(_Tokens()),
    "added_tokens_decoder": _Tokens(),
    "add_bos_token": Flag(),
    "add_eos_token": Flag(),
    "add_prefix_space": Either((Flag(), Null())),
    "backend": Choice(("tokenizers",)),
    "clean_up_tokenization_spaces": Either((Flag(), Null())),
    "extra_ids": Whole(0, 1000),
    "legacy": Either((Flag(), Null())),
    "model_max_length": optional(Real(1, 1e31)),
    "padding_side": Choice(("left", "right")),
    "spaces_between_special_tokens": Flag(),
    "split_special_tokens": Flag(),
    "truncation_side": Choice(("left", "right")),
}


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a folder; runs no code of the folder, and fetches nothing.

    Raises:
        UserError: the tokenizer's class is not known, or it is damaged or beyond the limits.
    """
    name, config = _config(folder)
    if not (folder / "tokenizer.json").is_file():
        name = _class_by_files(folder) or name
    with tempfile.TemporaryDirectory(prefix="lightx2v-sgmd-") as temporary:
        copy = Path(temporary)
        _copy_vocabulary(folder, copy)
        _copy_tokens(folder, copy)
        (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            return _loaded(name, copy)
        except Exception as error:  # a damaged vocabulary can raise anything
            raise _unusable(folder, error) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the tokenizers library's Rust
                raise
            raise _unusable(folder, error) from error


def _class_by_files(folder: Path) -> str | None:
    """The class that reads a vocabulary in its first published form, or None."""
    if (folder / _CLIP_FILES[0]).is_file():
        return "CLIPTokenizer"
    return "T5Tokenizer" if (folder / _T5_FILE).is_file() else None


def _loaded(name: str, folder: Path) -> Any:
    prepare_libraries()
    import transformers

    kind = getattr(transformers, name)
    loaded = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    loaded(["a red circle", ""], padding="longest")  # some mistakes show only now
    return loaded


def _unusable(folder: Path, error: BaseException) -> UserError:
    return UserError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}; {_REMEDY}")


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns the name of the class, and the values of ``tokenizer_config.json`` that it gets."""
    path = folder / "tokenizer_config.json"
    saved = read_json_object(path, remedy=_REMEDY)
    named = saved.get("tokenizer_class")
    try:
        refuse_code(saved)
        if not isinstance(named, str) or named not in _CLASSES:
            known_classes = ", ".join(_CLASSES)
            raise UserError(
                f"tokenizer_class is {shown(named)}, not one of {known_classes}; {_REMEDY}"
            )
        known = {key: value for key, value in saved.items() if key in _CONFIG}
        problem = first_problem(known, _CONFIG)
        if problem is not None:
            raise UserError(problem)
    except UserError as error:
        raise UserError(f"{path}: {with_remedy(str(error), _REMEDY)}") from error
    return _CLASSES[named], known


def _copy_vocabulary(folder: Path, copy: Path) -> None:
    path = folder / "tokenizer.json"
    if path.is_file():
        text = read_bytes(path, _VOCABULARY, _REMEDY)
        try:
            check_tokenizer_json(parse_json(text, _VOCABULARY))
        except ValueError as error:
            raise UserError(f"{path}: {error}; {_REMEDY}") from error
        (copy / path.name).write_bytes(text)  # so that what is loaded is what was looked at
        return
    if (folder / _CLIP_FILES[0]).is_file():
        _copy_clip_vocabulary(folder, copy)
        return
    path = folder / _T5_FILE
    if not path.is_file():
        raise UserError(f"{folder}: has no tokenizer.json; {_REMEDY}")
    content = read_bytes(path, _SENTENCEPIECE, _REMEDY)
    check_packages()
    try:
        check_sentencepiece(content)
    except UserError as error:
        raise UserError(f"{path}: {error}; {_REMEDY}") from error
    (copy / path.name).write_bytes(content)


def _copy_clip_vocabulary(folder: Path, copy: Path) -> None:
    """Copies the two files in which CLIP's tokenizers were published: tokens, and their merges."""
    vocabulary, merges = (folder / name for name in _CLIP_FILES)
    text = read_bytes(vocabulary, _VOCABULARY, _REMEDY)
    try:
        tokens = parse_json(text, _VOCABULARY)
    except ValueError as error:
        raise UserError(f"{vocabulary}: {error}; {_REMEDY}") from error
    number = Whole(0, 2**20)
    if not isinstance(tokens, dict) or not all(map(number.allows, tokens.values())):
        raise UserError(f"{vocabulary}: is not an object of tokens and numbers; {_REMEDY}")
    if not merges.is_file() or merges.stat().st_size > _MERGES_BYTES:
        raise UserError(f"{merges}: is missing or above {_MERGES_BYTES:,} bytes; {_REMEDY}")
    (copy / vocabulary.name).write_bytes(text)
    shutil.copyfile(merges, copy / merges.name)


def _copy_tokens(folder: Path, copy: Path) -> None:
    """Copies the small files in which older versions store special and added tokens."""
    for name, known, kind in (
        ("special_tokens_map.json", {*_TOKENS_BY_NAME, "additional_special_tokens"}, None),
        ("added_tokens.json", None, Whole(0, 2**20)),
    ):
        path = folder / name
        if not path.is_file():
            continue
        saved = read_json_object(path, remedy=_REMEDY)
        fields = _CONFIG if kind is None else dict.fromkeys(saved, kind)
        problem = first_problem(saved, fields)
        if problem is None and len(saved) > _TOKENS_MOST:
            problem = f"has {len(saved)} tokens, more than {_TOKENS_MOST}"
        if problem is not None:
            raise UserError(f"{path}: {problem}; {_REMEDY}")
        content = saved if known is None else {k: v for k, v in saved.items() if k in known}
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
