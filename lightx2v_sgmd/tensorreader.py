"""Reads tensors, whole or in slices, from the files of one network, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.tensorfiles import Header, TensorInfo, read_headers, shown
from lightx2v_sgmd.torchfiles import SUFFIXES, load_torch_file, torch_header

Names = Callable[[Iterable[str]], Mapping[str, str]]
"""Gives names as stored their names to be used by; a name that is left out is passed over."""


class WholeTensors:
    """The tensors of one network; nothing is read before it is asked for.

    Args:
        files: Its shards: safetensors, or files of ``torch.save`` (by their suffix).
        names: See ``Names``; default: as stored.

    Attributes:
        header: What there is, under the names to be used.

    Raises:
        UserError: a file is damaged or not to be trusted (see ``tensorfiles``, ``torchfiles``), or
            two tensors have one name.
    """

    def __init__(self, files: Sequence[Path], names: Names | None = None) -> None:
        self._mapped: dict[str, Tensor] = {}
        self._open: dict[Path, Any] = {}
        pickled = [file for file in files if file.suffix in SUFFIXES]
        stored = read_headers(file for file in files if file not in pickled)
        found = dict(stored.tensors)
        for file in pickled:
            tensors = load_torch_file(file)
            found = _together(found, torch_header(file, tensors).tensors, file)
            self._mapped |= tensors
        used = names(found) if names is not None else {name: name for name in found}
        self._stored: dict[str, str] = {}
        for old, new in used.items():
            if new in self._stored:
                raise UserError(
                    f"{found[old].file}: {shown(old)} and {shown(self._stored[new])} are the same "
                    "weight"
                )
            self._stored[new] = old
        self.header = Header(
            {new: found[old] for new, old in self._stored.items()}, stored.metadata
        )

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU, as stored."""
        stored = self._stored[name]
        if stored in self._mapped:
            return self._mapped[stored]
        tensor: Tensor = self._handle(name).get_tensor(stored)
        return tensor

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``[start, stop)`` of the flattened tensor; only the rows around are read."""
        if start >= stop:
            return torch.zeros(0)
        stored = self._stored[name]
        shape = self.header.tensors[name].shape
        row = 1
        for length in shape[1:]:
            row *= length
        first, last = start // row, -(-stop // row)
        if not shape:
            rows = self.tensor(name)
        elif stored in self._mapped:
            rows = self._mapped[stored][first:last]
        else:
            rows = self._handle(name).get_slice(stored)[first:last]
        return rows.flatten()[start - first * row : stop - first * row]

    def _handle(self, name: str) -> Any:
        file = self.header.tensors[name].file
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]


def _together(
    found: dict[str, TensorInfo], more: Mapping[str, TensorInfo], file: Path
) -> dict[str, TensorInfo]:
    twice = sorted(found.keys() & more.keys())
    if twice:
        raise UserError(f"{file}: {shown(twice[0])} is also in {found[twice[0]].file.name}")
    return {**found, **more}
