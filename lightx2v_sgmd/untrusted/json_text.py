"""JSON from strangers: bounded in bytes, in depth, in values and in digits before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from lightx2v_sgmd.system.errors import UserError, unreadable
from lightx2v_sgmd.untrusted.reading import open_file, read_file

MAX_DIGITS: Final = 40
"""The most digits of a number; a float in full precision has 25 characters."""


@dataclass(frozen=True)
class Limits:
    """The limits of a JSON text.

    Attributes:
        size: The most bytes.
        values: The most objects, lists, keys and values together.
        depth: The most objects and lists within one another.
        unique: True if no object may have a key twice.
    """

    size: int
    values: int
    depth: int = 24
    unique: bool = False


CONFIG: Final = Limits(size=1_000_000, values=100_000)
"""Limits of a model's configuration: a few kilobytes, or 1,000 labels."""
LINE: Final = Limits(size=200_000, values=1_000, depth=8)
"""Limits of a line of a prompt file or a log."""
METADATA: Final = Limits(size=1_000_000, values=50_000)
"""Limits of the metadata in the header of a weights file."""
INDEX: Final = Limits(size=16_000_000, values=200_000, depth=4, unique=True)
"""Limits of the index that says which shard has which tensor."""
RECORD: Final = Limits(size=16_000_000, values=500_000)
"""Limits of a file that this program wrote, such as a manifest."""
MEASURED: Final = Limits(size=1_000_000_000, values=50_000_000)
"""Limits of values that were measured on each of many videos."""
LOG_BYTES: Final = 100_000_000
"""The most bytes of a log that is read as a whole: the lines of about 150,000 iterations."""
LOG_LINES: Final = 500_000
"""The most lines of a log that is read as a whole."""


def parse_json(text: bytes | str, limits: Limits) -> Any:
    """Parses a JSON text.

    Raises:
        ValueError: the text is not JSON, not UTF-8, or beyond the limits; the message is a reason.
    """
    if len(text) > limits.size:
        raise ValueError(f"it has more than the {limits.size:,} bytes that are read")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start} is not UTF-8 text") from None
    # Brackets and commas within text count as well: there is room for them.
    opened = text.count("[") + text.count("{")
    count = text.count(",") + opened
    if count > limits.values:
        raise ValueError(f"it has {count:,} values, and at most {limits.values:,} are read")
    decoder = _STRICT if limits.unique else _PLAIN
    try:
        content = decoder.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {limits.depth} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}") from None
    if opened > limits.depth and deeper_than(content, limits.depth):
        raise ValueError(f"it is nested more than {limits.depth} deep")
    return content


def read_json_file(path: Path, limits: Limits = CONFIG, remedy: str = "copy it again") -> Any:
    """Reads and parses a JSON file.

    Raises:
        UserError: the file is missing, unreadable or not such JSON; the message has a remedy.
    """
    text = read_bytes(path, limits, remedy)
    try:
        return parse_json(text, limits)
    except ValueError as error:
        raise UserError(f"{path}: is not readable JSON: {error}; {remedy}") from error


def read_record(path: Path, limits: Limits = RECORD) -> Any:
    """Reads a JSON file that this program wrote itself.

    Raises:
        UserError: the path is a pipe or a device.
        OSError: the file cannot be read.
        ValueError: the file is not such JSON.
    """
    return parse_json(read_file(path, limits.size), limits)


@contextmanager
def own_record(path: Path, remedy: str) -> Iterator[None]:
    """Makes what fails while a record of this program's is read and taken apart one line.

    Args:
        path: The file, for the message.
        remedy: The advice for a file that says something else than it should.

    Raises:
        UserError: the file cannot be read, or is not as it was written.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: is not as it was written; {remedy}") from error


def log_lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yields a log's lines with their ends, each with True if it is whole.

    A line of more than ``LINE.size`` bytes comes in pieces. The last line may lack its end.
    """
    begins = True
    while line := file.readline(LINE.size):
        ends = line.endswith(b"\n")
        yield line, begins and (ends or len(line) < LINE.size)
        begins = ends


def read_log(path: Path, keys: Collection[str]) -> list[dict[str, Any]]:
    """Reads these keys of a file of this program's that has a JSON object in each line.

    Raises:
        UserError: the file cannot be read, is larger than ``LOG_BYTES`` or ``LOG_LINES``, or a
            line is not such JSON.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    try:
        with open_file(path) as file:
            for line, whole in log_lines(file):
                size += len(line)
                if size > LOG_BYTES or len(rows) == LOG_LINES:
                    raise UserError(
                        f"{path}: has more than the {LOG_BYTES:,} bytes or {LOG_LINES:,} lines "
                        "that are read; move it away"
                    )
                row = _line_of_log(line) if whole else None
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}: line {len(rows) + 1} is not a JSON object; run the same "
                        "training again, which mends the log, or copy it again"
                    )
                rows.append({key: row[key] for key in keys if key in row})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name another one") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return rows


def _line_of_log(line: bytes) -> Any:
    try:
        return parse_json(line, LINE)
    except ValueError:
        return None


def read_bytes(path: Path, limits: Limits, remedy: str) -> bytes:
    """Reads a file within a limit; raises as ``read_json_file`` if it cannot."""
    try:
        text = read_file(path, limits.size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error
    if len(text) > limits.size:
        raise UserError(f"{path}: is larger than the {limits.size:,} bytes that are read; {remedy}")
    return text


def read_json_object(
    path: Path, limits: Limits = CONFIG, remedy: str = "copy it again"
) -> dict[str, Any]:
    """Reads a JSON file that holds an object; raises as ``read_json_file`` if it does not."""
    content = read_json_file(path, limits, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object; {remedy}")
    return content


def deeper_than(content: Any, depth: int) -> bool:
    """Returns True if lists and dicts are nested more than ``depth`` deep."""
    level = [content]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, and at most {MAX_DIGITS} are read")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is there twice")
    return content


def _decoder(pairs: Callable[[list[tuple[str, Any]]], Any] | None) -> json.JSONDecoder:
    return json.JSONDecoder(parse_int=_whole, object_pairs_hook=pairs)


_PLAIN: Final = _decoder(None)
_STRICT: Final = _decoder(_unique)
