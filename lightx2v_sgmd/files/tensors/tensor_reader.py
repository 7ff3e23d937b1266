"""Reads tensors, whole or in slices, from the files of one network, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lightx2v_sgmd.files.tensors.dtypes import TORCH_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import (
    Header,
    TensorInfo,
    open_tensors,
    read_headers,
)
from lightx2v_sgmd.files.tensors.scaled_weights import ScaledWeights, decoded
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier
from lightx2v_sgmd.files.tensors.torch_files import SUFFIXES, load_torch_file, torch_header
from lightx2v_sgmd.system.errors import UserError, shortened

Names = Callable[[Iterable[str]], Mapping[str, str]]
"""A function from stored names to the names to be used; a tensor that it omits is skipped."""


class WholeTensors:
    """The tensors of one network; nothing is read before it is asked for.

    Weights in 8 bits are decoded with their scales, into float32 (see ``scaled_weights``).

    Args:
        files: The network's shards: safetensors, or files of ``torch.save`` (by their suffix).
        names: The names to be used; default: as stored.

    Attributes:
        header: The tensors that there are, under the names to be used.
        stored_names: The names as stored by the names to be used.

    Raises:
        UserError: a file is damaged or not to be trusted (see ``safetensors_files`` and
            ``torch_files``), or two tensors have one name.
    """

    def __init__(self, files: Sequence[Path], names: Names | None = None) -> None:
        self._mapped: dict[str, Tensor] = {}
        self._open: dict[Path, Any] = {}
        pickled = [file for file in files if file.suffix in SUFFIXES]
        stored = read_headers(file for file in files if file not in pickled)
        merged = dict(stored.tensors)
        for file in pickled:
            tensors = load_torch_file(file)
            merged = _together(merged, torch_header(file, tensors).tensors, file)
            self._mapped |= tensors
        self._all = merged
        self._scaled = ScaledWeights.of(merged)
        plain = self._scaled.tensors
        used = names(plain) if names is not None else {name: name for name in plain}
        self.stored_names: dict[str, str] = {}
        for old, new in used.items():
            if new in self.stored_names:
                raise UserError(
                    f"{merged[old].file}: {shortened(old)} and {shortened(self.stored_names[new])} "
                    "are the same weight; give a file that has each once"
                )
            self.stored_names[new] = old
        self.header = Header(
            {new: self._scaled.info(old) for new, old in self.stored_names.items()}, stored.metadata
        )

    @property
    def convention(self) -> str | None:
        """The storage of matrices in 8 bits, in words; None if none are."""
        return self._scaled.convention

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU: as stored, or decoded."""
        stored = self.stored_names[name]
        tensor = self._as_stored(stored)
        if not self._scaled.is_decoded(stored):
            return tensor
        whole = self._decoded(stored, tensor.flatten(), 0)
        return whole.view(tensor.shape)

    def _as_stored(self, stored: str) -> Tensor:
        if stored in self._mapped:
            return self._mapped[stored]
        tensor: Tensor = self._handle(self._all[stored].file).get_tensor(stored)
        return tensor

    def _decoded(self, stored: str, values: Tensor, start: int) -> Tensor:
        """Elements of a flattened weight from ``start`` on, float32."""
        scale = self._scaled.scales.get(stored)
        if scale is None:
            return values.float()
        return decoded(values, self._as_stored(scale), start, self._all[stored].shape[-1])

    def load(self, name: str, dtype: torch.dtype, copier: WeightCopier) -> Tensor:
        """A whole tensor in another precision, on the copier's device: a copy, piece by piece.

        Raises:
            UserError: the file is shorter than its header says.
        """
        stored = self.stored_names[name]
        info = self._all[stored]
        if stored in self._mapped or stored in self._scaled.scales:
            return copied(self.tensor(name), dtype, copier)
        begin, kind = info.start, TORCH_TYPES[info.dtype]
        assert begin is not None, "not of a safetensors file"
        with info.file.open("rb", buffering=0) as file:
            return copier.copy(
                lambda piece, start: _fill(piece, file, info, begin + start * kind.itemsize),
                info.shape,
                kind,
                dtype,
            )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``[start, stop)`` of the flattened tensor, a copy; nothing else is read.

        Not mapped into memory: pages of a mapped file count as this process's own.
        """
        if start >= stop:
            return torch.zeros(0)
        stored = self.stored_names[name]
        info = self._all[stored]
        dtype = TORCH_TYPES.get(info.dtype)
        if info.start is None or dtype is None:
            return self.tensor(name).flatten()[start:stop].clone()
        values = read_elements(info, dtype, start, stop)
        return self._decoded(stored, values, start) if self._scaled.is_decoded(stored) else values

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = open_tensors(file)
        return self._open[file]


def copied(tensor: Tensor, dtype: torch.dtype, copier: WeightCopier) -> Tensor:
    """A tensor of the CPU in another precision, on the copier's device: a copy, piece by piece."""
    values = tensor.flatten()
    return copier.copy(
        lambda piece, start: piece.copy_(values[start : start + len(piece)]),
        tuple(tensor.shape),
        tensor.dtype,
        dtype,
    )


def read_elements(info: TensorInfo, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    """Elements ``[start, stop)`` of a flattened tensor of a safetensors file, a copy.

    Args:
        info: The place of the tensor, from ``read_headers``.
        dtype: The type in which it is stored.
        start: The first element.
        stop: The one after the last.

    Raises:
        UserError: the file is shorter than its header says.
    """
    assert info.start is not None, "not of a safetensors file"
    values = torch.empty(stop - start, dtype=dtype)
    with info.file.open("rb", buffering=0) as file:
        _fill(values, file, info, info.start + start * dtype.itemsize)
    return values


def _fill(values: Tensor, file: BinaryIO, info: TensorInfo, position: int) -> None:
    """Fills a flat tensor with the bytes of a file from a position on."""
    rest = memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
    file.seek(position)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{info.file}: ends within a tensor; it was cut short, copy it again")
        rest = rest[count:]


def _together(
    merged: dict[str, TensorInfo], more: Mapping[str, TensorInfo], file: Path
) -> dict[str, TensorInfo]:
    twice = sorted(merged.keys() & more.keys())
    if twice:
        raise UserError(
            f"{file}: {shortened(twice[0])} is also in {merged[twice[0]].file.name}; remove the "
            "file that is too many"
        )
    return {**merged, **more}
