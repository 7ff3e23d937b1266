"""Ways to damage a good model folder, and contents that run code or take much when read."""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put(file: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON object; a key of ``None`` stays as null."""

    def damage(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **changes}))

    return damage


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def deeply(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    """Changes a value below keys of a JSON object."""

    def damage(folder: Path) -> None:
        path = folder / file
        content = inner = json.loads(path.read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        path.write_text(json.dumps(content))

    return damage


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    """Several changes."""

    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def header(file: str, content: bytes | dict[str, Any], data: bytes = b"") -> Any:
    """Writes a safetensors file with that header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return write(file, struct.pack("<Q", len(text)) + text + data)


def many_tensors(file: str, count: int) -> Any:
    """Writes a header of so many empty tensors."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(f'"t{i}":{entry}' for i in range(count)) + "}"
    return header(file, text.encode())


def with_metadata(file: str, key: str, text: str) -> Callable[[Path], None]:
    """Puts a text into the metadata of a safetensors file."""

    def damage(folder: Path) -> None:
        path = folder / file
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        content = json.loads(raw[8 : 8 + length])
        content["__metadata__"] = {**content.get("__metadata__", {}), key: text}
        new = json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return damage


def described(file: str, ending: str, **changes: Any) -> Callable[[Path], None]:
    """Changes what the header of a safetensors file says of the first tensor of such a name."""

    def damage(folder: Path) -> None:
        path = folder / file
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        content = json.loads(raw[8 : 8 + length])
        name = next(name for name in content if name.endswith(ending))
        content[name].update(changes)
        new = json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return damage


def shortened(file: str, count: int) -> Callable[[Path], None]:
    """Leaves the first ``count`` bytes of a file."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:count])

    return damage


def instead(old: str, new: str, content: bytes) -> Callable[[Path], None]:
    """Puts a file in another one's place."""

    def damage(folder: Path) -> None:
        (folder / old).unlink()
        (folder / new).write_bytes(content)

    return damage


def link(file: str, target: str) -> Callable[[Path], None]:
    """Puts a link in a file's place."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.unlink(missing_ok=True)
        os.symlink(target, path)

    return damage


class RunsCode:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def torch_archive(
    compress: int = zipfile.ZIP_STORED, size: int = 0, pickled: bytes | None = None
) -> bytes:
    """A file as ``torch.save`` writes it, whose pickle runs a program, or is another one."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled or pickle.dumps({"a": RunsCode()}))
        archive.writestr("archive/version", "3\n")
        if size:
            archive.writestr("archive/data/0", b"\0" * size)
    return buffer.getvalue()


TOKENIZER, TOKENS = "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"


def step(part: str, **content: Any) -> Callable[[Path], None]:
    """Puts a step into a tokenizer."""
    return deeply(TOKENIZER, part, value=content)


def charsmap(content: bytes) -> Callable[[Path], None]:
    """Puts a table of replacements into a tokenizer."""
    text = base64.b64encode(content).decode()
    return step("normalizer", type="Precompiled", precompiled_charsmap=text)
