"""The class that every export format derives from: everything in which formats differ.

A format is one file with one class. ``weights.formats.registry`` lists them, and nothing outside
this folder compares a format's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.wan.original import transformer_names
from lightx2v_sgmd.files.tensors.dtypes import OPTIONS
from lightx2v_sgmd.files.tensors.safetensors_files import Header, check_keys
from lightx2v_sgmd.files.tensors.scaled_weights import EIGHT_BIT_FLOATS
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.layout import Layout
from weights.formats.programs import Program
from weights.io.adapters import StoredAdapters
from weights.io.network import nbytes
from weights.io.quantize import is_8_bit
from weights.io.tensors import FileTensors, ReaderTensors, Tensors, network_shapes

STEM: Final = "diffusion_pytorch_model"
"""The start of the names of weight files that diffusers and the original code look for."""


class Format(ABC):
    """A program's file layout, and how exports in it are written, read, verified and described.

    Attributes:
        name: The value of ``--format``, and of ``format`` in the manifest.
        dtypes: The values of ``--dtype`` that the program can read.
        stored_as: The model card's words for how tensors are stored; ``{dtype}`` is filled in.
        library: The hub's ``library_name`` of the program that loads the files.
        programs: The programs, beside diffusers and this one, that the files are written for.
        holds_adapters: True if the files hold adapters and not the whole network. Only such a
            format takes ``--rank`` and ``--energy``.
        holds_experts: True if it can hold both networks of a model that has two experts.
        described: True if the headers of its files describe the weights for model managers.
        usual_names: The names of adapters where none are asked for, a key of ``lora_names.NAMES``.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]
    stored_as: ClassVar[str]
    library: ClassVar[str]
    programs: ClassVar[tuple[Program, ...]] = ()
    holds_adapters: ClassVar[bool] = False
    holds_experts: ClassVar[bool] = False
    described: ClassVar[bool] = True
    usual_names: ClassVar[str] = "portable"

    @abstractmethod
    def check(self, spec: ExportSpec) -> None:
        """Raises ``UserError`` for what the program cannot express, before anything is written."""

    def count(self, spec: ExportSpec) -> int:
        """The number of tensors that are written, for the progress bar."""
        return sum(len(each.source.tensors.shapes) for each in spec.experts)

    def verified_count(self, spec: ExportSpec) -> int:
        """The number of tensors that are read back, for the progress bar."""
        return self.count(spec)

    def nbytes(self, spec: ExportSpec) -> int:
        """The approximate size of the export on disk, in bytes."""
        return sum(map(nbytes, spec.experts))

    @abstractmethod
    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """Writes weights and configurations into an empty folder; returns what was lost."""

    @abstractmethod
    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """Lists what the program would read that differs from the source; empty if nothing does."""

    @abstractmethod
    def usage(self, spec: ExportSpec, values: Mapping[str, Any]) -> str:
        """The model card's section that says how each program runs the export.

        Args:
            spec: The export.
            values: The card's values by name, such as ``count`` and ``height``.
        """

    @abstractmethod
    def weight_files(self, folder: Path, expert: int = 0) -> list[Path]:
        """The weight files of an export in this format.

        Args:
            folder: The export.
            expert: The index of the expert whose files they are.

        Raises:
            UserError: they are missing, or not as the format has them.
        """

    def expert_count(self, folder: Path) -> int:
        """The number of networks that an export in this format holds: 1, or 2 experts."""
        return 1

    def layout(self, dtype: str, keep: Tensors | None = None, model: Model | None = None) -> Layout:
        """The names and types under which a whole network is stored.

        Args:
            dtype: One of ``dtypes``. The layers of ``fp8`` that are not quantized are bf16.
            keep: Weights that have this precision already: each keeps the type in which it is
                stored, so that changing formats back and forth changes no bit.
            model: The model of the network, for formats that store some weights in float32.
        """
        raise NotImplementedError(f"{self.name} does not store a whole network")

    def open_model(self, folder: Path, teacher: Callable[[], Model]) -> Model:
        """The configuration of an export's network; most formats leave it to the teacher's."""
        return teacher()

    @abstractmethod
    def open_tensors(
        self, folder: Path, header: Header, model: Model
    ) -> tuple[Tensors, StoredAdapters | None]:
        """The weights of an export, checked against the network, and its adapters if it has any."""


class NetworkFormat(Format):
    """A format that stores the whole network."""

    def stored_names(self, header: Header | None = None) -> Callable[[str], str]:
        """A function from diffusers' name of a weight to the format's.

        Args:
            header: The files that are read, for a format that is found with several prefixes.
        """
        return str

    def layout(self, dtype: str, keep: Tensors | None = None, model: Model | None = None) -> Layout:
        """The names and types under which the network is stored; see ``Format.layout``."""
        if keep is not None:
            return Layout(self.stored_names(), keep.dtype)
        main = torch.bfloat16 if is_8_bit(dtype) else OPTIONS[dtype]
        return self.layout_in(dtype, main, model)

    def layout_in(self, dtype: str, main: torch.dtype, model: Model | None = None) -> Layout:
        """The layout at a precision.

        Args:
            dtype: One of ``dtypes``.
            main: The torch type of what is not quantized.
            model: As for ``layout``.
        """
        return Layout(self.stored_names(), lambda name: main)

    def open_tensors(
        self, folder: Path, header: Header, model: Model
    ) -> tuple[Tensors, StoredAdapters | None]:
        """The network's weights, checked against its configuration."""
        shapes = network_shapes(model)
        if any(info.dtype in EIGHT_BIT_FLOATS for info in header.tensors.values()):
            files = sorted({info.file for info in header.tensors.values()})
            reader = WholeTensors(files, transformer_names)
            check_keys(reader.header, shapes, str(folder))
            return ReaderTensors(reader, shapes), None
        return FileTensors.checked(header, shapes, self.stored_names(header), str(folder)), None
