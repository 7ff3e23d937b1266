"""Weights saved by ``torch.save``, from strangers: read as tensors alone, and only after a look.

Such a file is a zip archive around a pickle. The pickle is read by torch's restricted unpickler
(``weights_only``), which makes tensors and refuses anything that could run code. What the archive
claims is checked first, so that no file makes more of itself than it is; tensors stay in the file
until they are used.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lightx2v_sgmd.files.dtypes import FILE_NAMES
from lightx2v_sgmd.files.safetensors_files import Header, TensorInfo, refuse_odd_name
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.reading import open_file

SUFFIXES: Final = (".pth", ".pt")
_MAX_PICKLE_BYTES: Final = 64 * 2**20  # of names and shapes; Wan's 1,095 tensors take 0.2 MB


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote of a state dict, on the CPU, mapped.

    Raises:
        UserError: the file is missing or damaged, claims to hold more than it has, asks to run
            code, or holds anything but named tensors.
    """
    _check_archive(path)
    try:
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
    claimed = 0
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) not in (Tensor, torch.nn.Parameter):
            kind = type(tensor).__name__
            raise _no_state_dict(path, f"has a {kind} under {shortened(ascii(name))}")
        refuse_odd_name(path, name)
        if tensor.layout != torch.strided or tensor.dtype not in FILE_NAMES:
            raise _no_state_dict(path, f"{shortened(name)} is a tensor of an unusual kind")
        claimed += tensor.numel() * tensor.itemsize
    if claimed > size:
        raise UserError(
            f"{path}: its tensors claim {claimed} bytes in a file of {size}; the file is damaged "
            "or malicious"
        )
    return {name: tensor.detach() for name, tensor in content.items()}


def torch_header(path: Path, tensors: dict[str, Tensor]) -> Header:
    """Describes what ``load_torch_file`` gave."""
    infos = {
        name: TensorInfo(FILE_NAMES[tensor.dtype], tuple(tensor.shape), path)
        for name, tensor in tensors.items()
    }
    return Header(infos, {})


def _no_state_dict(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: {reason}; give a file that holds one network's tensors by name, without anything "
        "around them"
    )


def _check_archive(path: Path) -> None:
    """Compares what the archive's directory claims with the size of the file."""
    try:
        with open_file(path) as file:
            start = file.read(4)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
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
                f"{path}: {shortened(entry.filename)} is compressed, which torch.save never does; "
                "it could unpack to any size and is refused"
            )
    problem = _contradiction(entries, size)
    if problem:
        raise UserError(f"{path}: {problem}; the file is damaged or malicious")


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
