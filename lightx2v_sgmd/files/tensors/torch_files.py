"""Weights saved by ``torch.save``, from strangers: read as tensors alone, and only after a look.

Research code publishes state dicts within dicts, such as ``{"generator_ema": {...}, "step": 3}``:
these come out as one, with names such as ``generator_ema.blocks.0...``.

Such a file is a zip archive around a pickle. The pickle is read by torch's restricted unpickler
(``weights_only``), which makes tensors and refuses anything that could run code. What the archive
claims is checked first, so that no file makes more of itself than it is; tensors stay in the file
until they are used.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.dtypes import FILE_NAMES
from lightx2v_sgmd.files.tensors.safetensors_files import Header, TensorInfo, refuse_odd_name
from lightx2v_sgmd.system.errors import UserError, shortened, unreadable
from lightx2v_sgmd.untrusted.reading import open_file

SUFFIXES: Final = (".pth", ".pt")
_DEPTH: Final = 3
"""Dicts around a state dict; an optimizer's state lies deeper, under numbers."""
_MAX_PICKLE_BYTES: Final = 64 * 2**20  # of names and shapes; Wan's 1,095 tensors take 0.2 MB


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote of state dicts, on the CPU, mapped.

    Numbers and texts beside them are passed over.

    Raises:
        UserError: the file is missing or damaged, claims to hold more than it has, asks to run
            code, or holds no named tensors.
    """
    _check_archive(path)
    try:
        with warnings.catch_warnings():  # of old or new pickles; an error says what is wrong
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: does not hold tensors alone, and unpickling anything else can run any code "
            f"({type(error).__name__}); give safetensors weights, or a state dict as torch.save "
            "writes it"
        ) from error
    if not isinstance(content, dict):
        raise _no_state_dict(path, f"holds a {type(content).__name__}")
    size = path.stat().st_size
    claimed, seen = 0, set()
    tensors = dict(_named(content))
    if not tensors:
        raise _no_state_dict(path, "holds no tensors under names")
    for name, tensor in tensors.items():
        refuse_odd_name(path, name)
        if tensor.layout != torch.strided or tensor.dtype not in FILE_NAMES:
            raise _no_state_dict(path, f"{shortened(name)} is a tensor of an unusual kind")
        # Networks that share weights, as EMA copies may, have them in the file once.
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        claimed += 0 if place in seen else tensor.numel() * tensor.itemsize
        seen.add(place)
    if claimed > size:
        raise UserError(
            f"{path}: its tensors claim {claimed} bytes in a file of {size}; the file is damaged "
            "or malicious, use another one"
        )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _named(content: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, those of dicts within included."""
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if type(value) in (Tensor, torch.nn.Parameter):
            yield name, value
        elif isinstance(value, dict) and depth < _DEPTH:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _named(value, depth + 1))


def torch_header(path: Path, tensors: dict[str, Tensor]) -> Header:
    """Describes what ``load_torch_file`` gave."""
    infos = {
        name: TensorInfo(FILE_NAMES[tensor.dtype], tuple(tensor.shape), path)
        for name, tensor in tensors.items()
    }
    return Header(infos, {})


def _no_state_dict(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: {reason}; give a file that holds a network's tensors by name, alone or in dicts"
    )


def _check_archive(path: Path) -> None:
    """Compares what the archive's directory claims with the size of the file."""
    try:
        with open_file(path) as file:
            start = file.read(4)
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if start != b"PK\x03\x04":
        raise UserError(
            f"{path}: is not a file that torch.save wrote (of PyTorch 1.6 or newer); give "
            "safetensors weights, or save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged directory can raise anything
        raise UserError(f"{path}: its archive is damaged; copy the file again") from error
    for entry in entries:
        refuse_odd_name(path, entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(
                f"{path}: {shortened(entry.filename)} is compressed, which torch.save never does, "
                "and could unpack to any size; save it again"
            )
    problem = _contradiction(entries, size)
    if problem:
        raise UserError(f"{path}: {problem}; the file is damaged or malicious, use another one")


def _contradiction(entries: list[zipfile.ZipInfo], size: int) -> str | None:
    names = {entry.filename for entry in entries}
    if len(names) != len(entries):
        return "has an entry twice"
    total = sum(entry.file_size for entry in entries)
    if total > size:
        return f"its entries claim {total} bytes in a file of {size}"
    pickles = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        return f"has {len(pickles)} entries data.pkl instead of one"
    if pickles[0].file_size > _MAX_PICKLE_BYTES:
        return f"its data.pkl has {pickles[0].file_size} bytes, far more than names and shapes take"
    return None
