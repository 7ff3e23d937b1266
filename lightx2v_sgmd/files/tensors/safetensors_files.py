"""Safetensors files from strangers: what a file claims is checked before anything is loaded.

Only the header is read, so a 28 GB folder is checked in milliseconds. Pickles are refused: loading
one can run any code. (``torch_files`` opens those of the original release, with care.)
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from lightx2v_sgmd.files.tensors.dtypes import BITS
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError, shortened, unreadable
from lightx2v_sgmd.untrusted.json_text import INDEX, METADATA, Limits, parse_json
from lightx2v_sgmd.untrusted.reading import open_file, read_file

METADATA_KEY: Final = "lightx2v_sgmd"
"""The key of safetensors metadata under which the schedule travels, as JSON text."""

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_STARTS: Final = (b"PK\x03\x04", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_HEADER: Final = Limits(size=16_000_000, values=1_000_000, depth=4, unique=True)
_MOST_TENSORS: Final = 50_000
"""Most tensors of one file: Wan2.1-14B has 1,095, an adapter with both experts 4,000."""
_MAX_LENGTH: Final = 2**48  # of an axis: beyond any file, and products stay small integers
_SHOWN: Final = 6
SHARD: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
"""The name of one of several files of a network: its stem, its number and how many there are."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header of its file describes it; ``start`` is its first byte's place."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Header:
    """The tensors and the metadata of one safetensors file, or of all shards of one network."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def refuse_pickle(path: Path) -> None:
    """Raises if ``path`` looks like a pickle, by name or by its first bytes.

    Raises:
        UserError: it does.
    """
    with open_file(path) as file:
        start = file.read(9)
    # A safetensors header may begin with the same bytes (its length), but then "{" is the ninth.
    looks_pickled = start.startswith(_PICKLE_STARTS) and start[8:9] != b"{"
    if path.suffix in PICKLE_SUFFIXES or looks_pickled:
        raise UserError(
            f"{path}: is a pickle (torch.save), and loading one can run any code; "
            "give safetensors weights"
        )


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file, without its tensors.

    Raises:
        UserError: the file is missing, is a pickle, is cut short, or describes itself wrongly.
    """
    try:
        refuse_pickle(path)
        size = path.stat().st_size
        with open_file(path) as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= size - 8:
                raise _broken(path, f"its {size} bytes have no safetensors header")
            if length > _HEADER.size:
                raise _too_large(path, f"a header of {length:,} bytes", f"{_HEADER.size:,}")
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    count = text.count(b'"data_offsets"')
    if count > _MOST_TENSORS:
        raise _too_large(path, f"{count:,} tensors", f"{_MOST_TENSORS:,}")
    try:
        content = parse_json(text, _HEADER)
        metadata = content.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata is not all text")
        spans = {name: _tensor(path, name, entry) for name, entry in content.items()}
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _broken(path, "its header is not readable") from error
    _check_spans(path, [span for _, span in spans.values()], size - 8 - length)
    data = 8 + length
    tensors = {name: replace(info, start=data + span[0]) for name, (info, span) in spans.items()}
    return Header(tensors, metadata)


def _tensor(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """One entry of a header: what it describes, and its first and last byte."""
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or any(type(n) is not int for n in (*shape, begin, end)):
        raise TypeError("a shape or an offset is not a list of integers")
    refuse_odd_name(path, name)
    if dtype not in BITS:
        raise _broken(path, f"{shortened(name)} has the unknown type {shortened(str(dtype))}")
    if (
        any(not 0 <= n < _MAX_LENGTH for n in shape)
        or (end - begin) * 8 != math.prod(shape) * BITS[dtype]
    ):
        described = shortened(str(shape))
        raise _broken(
            path, f"{shortened(name)} of shape {described} cannot have {end - begin} bytes"
        )
    return TensorInfo(dtype, tuple(shape), path), (begin, end)


def refuse_odd_name(path: Path, name: str) -> None:
    """Raises if a file's entry is named like a way out of a folder, or cannot be printed.

    Raises:
        UserError: it does; programs that unpack tensors to files of that name would be led astray.
    """
    parts = re.split(r"[/\\]", name)
    if not name.isprintable() or ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise UserError(
            f"{path}: names an entry {shortened(ascii(name))}, which no network has; "
            "the file is damaged or malicious, use another one"
        )


def _check_spans(path: Path, spans: Iterable[tuple[int, int]], available: int) -> None:
    """Tensors must fill the file from end to end: no hole, no overlap, nothing missing."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _broken(path, "its tensors overlap or leave holes")
        position = end
    if position > available:
        raise _broken(path, f"it is cut short: {position - available} bytes are missing")
    if position < available:
        raise _broken(path, f"it has {available - position} bytes that no tensor owns")


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; the file is damaged, copy or export it again")


def _too_large(path: Path, has: str, most: str) -> UserError:
    return UserError(
        f"{path}: has {has}, and at most {most} are read; use another file, or save it in several"
    )


def weight_files(folder: Path, stem: str, by_name: bool = False) -> list[Path]:
    """The safetensors files of one network: one file, or the shards that an index names.

    Args:
        folder: The folder that holds them.
        stem: ``"diffusion_pytorch_model"`` for diffusers, ``"model"`` for transformers.
        by_name: True for folders of other programs: without ``STEM.safetensors`` and its index,
            shards are found by their names, and a variant (``STEM.fp16.safetensors``) or the
            folder's only file counts as the network's.

    Raises:
        UserError: there are none, only pickles, some shards are missing, or the index or a link
            points out of the folder or at files that are not there.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file() or single.is_file():
        files = _indexed_files(index) if index.is_file() else [single]
        refuse_outside_links(folder, [index, *files])
        return files
    files = _files_by_name(folder, stem) if by_name else []
    if files:
        refuse_outside_links(folder, files)
        return files
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: is a pickle (torch.save), and loading one can run any code; "
            "give safetensors weights"
        )
    raise UserError(f"{single}: is missing; copy the folder again, with its weights")


def _files_by_name(folder: Path, stem: str) -> list[Path]:
    """Shards without an index, a variant, or the only file there is; empty if there is none."""
    groups: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = SHARD.fullmatch(path.name)
        name, number = (f"{match[1]}-of-{match[3]}", int(match[2])) if match else (path.name, 0)
        groups.setdefault(name, {})[number] = path
    ours = {name: files for name, files in groups.items() if name.startswith(stem)}
    groups = ours or groups
    if len(groups) > 1:
        names = ", ".join(shortened(name) for name in sorted(groups)[:4])
        raise UserError(
            f"{folder}: holds several variants of weights ({names}) and no {stem}.safetensors; "
            "leave one in the folder"
        )
    for files in groups.values():
        match = SHARD.fullmatch(next(iter(files.values())).name)
        count = int(match[3]) if match else 1
        if match and sorted(files) != list(range(1, count + 1)):
            raise UserError(
                f"{folder}: holds {len(files)} of the {count} shards of {shortened(match[1])}; "
                "copy the others too"
            )
        return [files[number] for number in sorted(files)]
    return []


def refuse_outside_links(root: Path, paths: Iterable[Path]) -> None:
    """Raises if a path, or anything below one that is a folder, is a link that leads out.

    The hub's own cache is built of links, to ``blobs/`` beside ``snapshots/``: those are inside.

    Args:
        root: The folder that the paths may not leave.
        paths: Files and folders in it; what is not there is passed over.

    Raises:
        UserError: names the link.
    """
    inside = [root.resolve()]
    for folder in (root.absolute(), *root.absolute().parents):
        if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
            inside.append((folder.parent.parent / "blobs").resolve())
    for top in paths:
        for path in (top, *(top.rglob("*") if top.is_dir() else ())):
            try:
                target = path.resolve()
            except (OSError, RuntimeError) as error:
                raise UserError(f"{path}: is a link that leads nowhere; copy the file") from error
            if not any(target.is_relative_to(folder) for folder in inside):
                raise UserError(
                    f"{path}: is a link out of {root}, which is refused; copy what it points to, "
                    f"{target}, into the folder"
                )


def _indexed_files(index: Path) -> list[Path]:
    try:
        if index.stat().st_size > INDEX.size:
            raise _broken(index, "it is too large for an index of shards")
        weight_map = parse_json(read_file(index, INDEX.size), INDEX)["weight_map"]
        names = sorted(set(weight_map.values()))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(index, "it is not a readable index of shards") from error
    for name in names:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or Path(name).name != name
            or "\\" in name
            or not name.endswith(".safetensors")
        ):
            raise UserError(
                f"{index}: names the shard {shortened(ascii(name))}, which is no .safetensors file "
                "beside it; use another index"
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index.parent / name}: is missing, but {index.name} names it; copy it too"
            )
    if not names:
        raise _broken(index, "it names no shards")
    return [index.parent / name for name in names]


def read_headers(files: Iterable[Path]) -> Header:
    """The headers of all shards of one network as one.

    Raises:
        UserError: a shard is damaged, two shards hold the same tensor, or carry other metadata.
    """
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for path in files:
        header = read_header(path)
        twice = sorted(tensors.keys() & header.tensors.keys())
        if twice:
            raise UserError(
                f"{path}: {shortened(twice[0])} is also in {tensors[twice[0]].file.name}; remove "
                "the one that is too many"
            )
        tensors |= header.tensors
        if metadata.get(METADATA_KEY, header.metadata.get(METADATA_KEY)) != header.metadata.get(
            METADATA_KEY
        ):
            raise UserError(
                f"{path}: its schedule is not that of the shards beside it; copy the export again"
            )
        metadata |= header.metadata
    return Header(tensors, metadata)


def open_tensors(path: Path) -> Any:
    """Opens a safetensors file with the library, after a check of its header.

    Raises:
        UserError: the header is refused, as by ``read_header``.
        SafetensorError: the library refuses the file.
    """
    read_header(path)
    return safe_open(path, framework="pt")


def check_keys(header: Header, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises unless the header has exactly the expected tensors, in the expected shapes.

    Raises:
        UserError: names what is missing, what is unexpected and what has another shape.
    """
    stored = {name: info.shape for name, info in header.tensors.items()}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in stored]
    unexpected = [f"{name} {list(shape)}" for name, shape in stored.items() if name not in expected]
    shapes = [
        f"{name} {list(stored[name])} for {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name] != tuple(shape)
    ]
    problems = [
        f"{len(names)} {label}: {', '.join(map(shortened, names[:_SHOWN]))}"
        f"{', ...' if len(names) > _SHOWN else ''}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{what}: the weights do not fit the config: {', '.join(problems)}; give the "
            "config.json that came with them"
        )


def schedule_metadata(schedule: Schedule) -> dict[str, str]:
    """The metadata that a safetensors file of a student carries."""
    return {"format": "pt", METADATA_KEY: json.dumps({"schedule": schedule.to_dict()})}


def schedule_of(metadata: Mapping[str, str]) -> Schedule | None:
    """The schedule in a file's metadata, or None if it has none.

    Raises:
        UserError: there is one and it cannot be read or contradicts itself.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        saved = parse_json(metadata[METADATA_KEY], METADATA)["schedule"]
        return Schedule.from_dict(saved)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"safetensors metadata {METADATA_KEY!r}: holds no readable schedule; export the "
            "weights again"
        ) from error
