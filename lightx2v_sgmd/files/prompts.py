"""Prompt files: ``.txt`` (one a line), ``.jsonl`` (key ``prompt``), ``.csv`` (column ``prompt``).

Lines of ``.jsonl`` may also name an image that the video starts from, as ``image``.
Text is UTF-8. Blank lines are skipped; in ``.txt`` so are lines that begin with ``#``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, joined, short_line
from lightx2v_sgmd.untrusted.json_text import LINE, Limits, parse_json
from lightx2v_sgmd.untrusted.paths import path_problem, text_problem
from lightx2v_sgmd.untrusted.reading import decode_text, read_limited

MOST_CHARACTERS: Final = 20_000
"""Longest prompt; the text encoder reads 512 tokens, some 2,500 characters."""
MOST_BYTES: Final = 100_000_000
"""Largest prompt file: half a million long prompts."""
MOST_LINES: Final = 2_000_000
"""Most lines of a prompt file; the largest published collection has 1.7 million."""
_CHUNK_LINES: Final = 2_000
"""Lines of a ``.jsonl`` file that are parsed together."""
_CHUNK: Final = Limits(size=1_000_000, values=1_000_000, depth=1_000_000)
"""Limits of them together; how deep JSON may be nested is limited by Python's parser as well."""
_READ: Final = ("prompt", "image")
"""The keys of ``.jsonl`` that ``read_prompts`` and ``read_images`` read."""
_SHOWN_KEYS: Final = 5
_SIMPLE: Final = re.compile(r'\{"prompt": ?"([^"\\\x00-\x1f]*)"\}\n?')
_SIMPLE_LINES: Final = re.compile(
    r'^\{"prompt": ?"'
    r'([^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*)'
    r'"\}$',
    re.MULTILINE,
)
"""Lines with a prompt alone, whose text may have JSON's escapes."""
MOST_ODD: Final = 250_000
"""Most other lines of a ``.jsonl`` file: they take ten times as long."""


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, in order, duplicates kept.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or of another kind, or a line of it has no
            prompt; the message names file and line.
    """
    path = Path(path)
    readers = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        has = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        raise UserError(f"{path}: {has}; give a file that ends in {', '.join(readers)}")
    prompts = list(reader(path))
    if not prompts:
        raise UserError(f"{path}: holds no prompts; write at least one")
    return prompts


def note_unread(
    path: str | Path, quiet: bool = False, keys: bool = True, images: bool = True
) -> None:
    """Says what of a file of prompts is left out: comments of ``.txt``, keys of ``.jsonl``.

    Args:
        path: The file; or the name of a shipped model, of whose prompts nothing is left out.
        quiet: Say nothing.
        keys: False where other keys than ``prompt`` and ``image`` mean something.
        images: False where ``image`` means nothing.

    Raises:
        UserError: the file is missing, too large, unreadable or not UTF-8.
    """
    path = Path(path)
    if quiet:
        return
    if path.suffix.lower() == ".jsonl" and keys:
        _note_keys(path, _READ if images else ("prompt",))
    if path.suffix.lower() != ".txt":
        return
    count = sum(_is_comment(line.strip()) for _, line in _text_lines(path))
    if count == 1:
        note(f"{path}: 1 line begins with # and is a comment, not a prompt")
    elif count:
        note(f"{path}: {count:,} lines begin with # and are comments, not prompts")


def _note_keys(path: Path, read: Sequence[str]) -> None:
    """Names the keys of a ``.jsonl`` file that nothing is made of, which are all but those read."""
    if _plain_prompts(read_limited(path, MOST_BYTES)) is not None:
        return
    rows = (row for _, row in jsonl_rows(path) if not isinstance(row, UserError))
    unread = list(dict.fromkeys(key for row in rows for key in row if key not in read))
    if unread:
        shown = ", ".join(short_line(key, 40) for key in unread[:_SHOWN_KEYS])
        more = ", ..." if len(unread) > _SHOWN_KEYS else ""
        said = f"{' and '.join(read)} {'are' if len(read) > 1 else 'is'}"
        note(f"{path}: only {said} read of its lines, not {shown}{more}")


def read_images(path: str | Path) -> list[Path | None]:
    """The image that each prompt of ``read_prompts`` starts from; an empty list if none has one.

    Only lines of a ``.jsonl`` file name one, as ``image``: a path below the file's own folder.

    Raises:
        UserError: as ``read_prompts``, or a path leaves the folder.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl" or b'"image"' not in read_limited(path, MOST_BYTES):
        return []
    images = []
    for number, row in jsonl_rows(path):
        try:
            if isinstance(row, UserError):
                raise row
            images.append(image_beside(path, row.get("image")))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return images if any(images) else []


def image_beside(path: Path, named: object) -> Path | None:
    """The image that a line of a file of prompts names, or None.

    Args:
        path: The file of prompts.
        named: The value of the line's ``image``.

    Raises:
        UserError: it is no path below the file's folder.
    """
    if named is None:
        return None
    if not isinstance(named, str) or path_problem(named):
        raise UserError("image: is not a path; write the path of a PNG, JPEG or WebP file")
    relative = Path(named)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(
            f"image: {short_line(named, 120)} leads out of the folder of the prompts; put images "
            "below it and name them from there"
        )
    image = path.parent / relative
    if not image.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(
            f"image: {short_line(named, 120)} is a link out of the folder of the prompts; copy the "
            "image there"
        )
    return image


def _text_lines(
    path: Path, most: int = MOST_LINES, newline: str = "\n"
) -> Iterator[tuple[int, str]]:
    """The numbered lines of a prompt file (from 1), one in memory at a time.

    Only a line feed ends a line, since U+2028 and the like may be in a prompt.

    Args:
        path: The file.
        most: Lines that it may have.
        newline: ``""`` for CSV, which reads carriage returns itself.

    Raises:
        UserError: it is missing, too large, unreadable or not UTF-8.
    """
    content = read_limited(path, MOST_BYTES)
    if content.count(b"\n") + (0 if newline else content.count(b"\r")) > most:
        raise UserError(f"{path}: has more than the {most:,} lines that are read; split it")
    try:
        file = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=newline)
        yield from enumerate(file, start=1)
    except UnicodeDecodeError:
        decode_text(content, path)  # says in which line
        raise


def jsonl_rows(
    path: Path, most: int = MOST_LINES
) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """The numbered lines of a ``.jsonl`` file that are not blank, parsed.

    A line is an object with a checked and stripped ``prompt``, and whatever other keys it has. For
    a line that is not, the error is given, not raised, so that the caller can name several.

    Args:
        path: The file.
        most: Lines that it may have.

    Raises:
        UserError: it is missing, too large, unreadable or not UTF-8.
    """
    for number, line in _text_lines(path, most):
        if line.strip():
            try:
                yield number, _parse_line(line)
            except UserError as error:
                yield number, error


def _parse_line(line: str) -> dict[str, Any]:
    # Most lines are so simple, and a million of them take four seconds by way of a parser.
    if (simple := _SIMPLE.fullmatch(line)) and len(line) <= LINE.size:
        parsed: Any = {"prompt": simple[1]}
    else:
        try:
            parsed = parse_json(line, LINE)
        except ValueError as error:
            raise UserError(f'is not JSON ({error}); write {{"prompt": "..."}}') from None
    row: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    return row | {"prompt": _checked(row.get("prompt"), 'write {"prompt": "..."}')}


def prompt_problem(prompt: str) -> str | None:
    """The reason why a prompt's text cannot be embedded; None if it can."""
    return text_problem(prompt, MOST_CHARACTERS)


def _txt(path: Path) -> Iterator[str]:
    for number, line in _text_lines(path):
        prompt = line.strip()
        if prompt and not _is_comment(prompt):
            yield _located(prompt, path, number, "write one a line")


def _is_comment(line: str) -> bool:
    """True for a stripped line of a ``.txt`` file that is no prompt."""
    return line.startswith("#")


def _jsonl(path: Path) -> Iterator[str]:
    # Millions of lines take seconds one by one.
    if (prompts := _plain_prompts(read_limited(path, MOST_BYTES))) is not None:
        yield from prompts
        return
    lines, odd = _text_lines(path), 0
    while chunk := list(islice(lines, _CHUNK_LINES)):
        rows = [row for _, line in chunk if (row := line.strip())]
        texts = _SIMPLE_LINES.findall("\n".join(rows))
        odd += len(rows) - len(texts)
        if odd > MOST_ODD:
            raise UserError(
                f"{path}: has more than {MOST_ODD:,} lines with other keys than prompt; leave "
                "them out or split the file"
            )
        if (prompts := _prompts_of(rows, texts)) is not None:
            yield from prompts
            continue
        for number, line in chunk:
            if line.strip():
                yield _prompt_of(line, path, number)


def _plain_prompts(content: bytes) -> list[str] | None:
    """The prompts of a file whose every line is ``{"prompt": "..."}``, without an escape."""
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if b"\\" in content or lines > MOST_LINES:
        return None
    try:
        prompts = [prompt.strip() for prompt in _SIMPLE_LINES.findall(content.decode("utf-8-sig"))]
    except UnicodeDecodeError:
        return None
    whole = len(prompts) == lines and all(prompts) and len(max(prompts, key=len)) < 10_000
    return prompts if whole else None


def _prompts_of(rows: Sequence[str], texts: Sequence[str]) -> list[str] | None:
    """The prompts of lines, which are parsed together.

    Args:
        rows: The lines.
        texts: The prompts of those with a prompt alone, as they are written there.

    Returns:
        None if the lines are to be read one by one: one of them has a mistake, which is then named,
        or they are long.
    """
    try:
        if len(texts) == len(rows):  # what is escaped is text all the same, and no quote is bare
            prompts = [text.strip() for text in parse_json('["' + '","'.join(texts) + '"]', _CHUNK)]
        else:
            if not all(row[0] == "{" and row[-1] == "}" for row in rows):
                return None
            content = parse_json(f"[{','.join(rows)}]", _CHUNK)
            prompts = [row["prompt"].strip() for row in content]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    longest = max(map(len, prompts), default=0)
    if len(prompts) != len(rows) or not all(prompts) or longest > MOST_CHARACTERS:
        return None
    return None if text_problem("".join(prompts), MOST_BYTES) else prompts


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        prompt: str = _parse_line(line)["prompt"]
    except UserError as error:
        raise UserError(f"{path}:{number}: {error}") from None
    return prompt


def _csv(path: Path) -> Iterator[str]:
    rows = csv.reader((line for _, line in _text_lines(path, newline="")), strict=True)
    line = 1  # where the row begins; quoted text may run over several
    try:
        names = next(rows, None)
        if names is None:
            return
        if "prompt" not in names:
            raise UserError(
                f"{path}:1: no column is called prompt (there are {joined(names)}); "
                "name one so in the first line"
            )
        column = names.index("prompt")
        line = rows.line_num + 1
        for row in rows:
            if row:
                prompt = row[column] if column < len(row) else None
                yield _located(prompt, path, line, "fill the column prompt")
            line = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: is not CSV ({error}); quote the text") from None


def _located(prompt: str | None, path: Path, line: int, remedy: str) -> str:
    try:
        return _checked(prompt, remedy)
    except UserError as error:
        raise UserError(f"{path}:{line}: {error}") from None


def _checked(prompt: object, remedy: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"has no prompt; {remedy}")
    if problem := prompt_problem(prompt):
        raise UserError(f"the prompt {problem}; shorten or correct it")
    return prompt.strip()
