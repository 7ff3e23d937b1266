"""The description of one export, and of what it loses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from lightx2v_sgmd.files.run_files import is_checkpoint
from weights.formats.layout import Layout
from weights.io.probe import fits_in_memory
from weights.io.source import ExportSource
from weights.io.tensors import FileTensors

if TYPE_CHECKING:
    from weights.formats.base import Format

LOSSES_FILE: Final = "losses.json"
"""The file with an export's errors layer by layer; absent where nothing is lost."""

BASE: Final = "base"
RELATIVE_TO: Final = (BASE, "teacher")
"""The values of ``--relative-to``: what the adapters of a fine-tune's student are added to."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class ExportSpec:
    """The student to export, and how to write it.

    Attributes:
        source: The student.
        format: The format to write.
        dtype: A key of ``DTYPES``, or ``fp8``.
        out: The folder of the finished export, for files that name their own path.
        max_shard_size: The largest size of a weights file, such as ``5GB``.
        rank: The rank of extracted adapters, or None.
        energy: The share of each layer's change that extracted adapters hold, or None.
        names: The names of adapters in their file: a key of ``weights.io.lora_names.NAMES``.
        only: ``blocks`` for adapters of the linear layers of blocks alone, or None.
        expert: The index of the expert that ``source`` is, for a model that has two.
        hashed: The sha256 of files that were hashed while others were written, by path; filled as
            they are.
        probed: Evaluations of the source that were made already, so that verifying needs no second
            one.
    """

    source: ExportSource
    format: Format
    dtype: str
    out: Path
    max_shard_size: str = "5GB"
    rank: int | None = None
    energy: float | None = None
    names: str = "portable"
    only: str | None = None
    expert: int = 0
    hashed: dict[Path, str] = field(default_factory=dict)
    probed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def experts(self) -> list[ExportSpec]:
        """One description for each network: this one, and that of the second expert if any."""
        return [self] if self._second is None else [self, self._second]

    @cached_property
    def _second(self) -> ExportSpec | None:
        """The second expert's spec, which keeps its own evaluations from writing to verifying."""
        second = self.source.second
        return None if second is None else replace(self, source=second, expert=1, probed={})

    @cached_property
    def keeps_network(self) -> bool:
        """True if the memory holds the network while it is evaluated; asked once in an export."""
        return fits_in_memory(self.source.model)

    def losses_of(self, losses: Losses) -> Losses:
        """This network's part of what ``Losses.of_experts`` joined under the names of ``part``."""
        start = f"{self.part}/" if self.part else ""
        layers = {n.removeprefix(start): v for n, v in losses.layers.items() if n.startswith(start)}
        return replace(losses, layers=layers)

    @property
    def part(self) -> str:
        """``high_noise`` or ``low_noise`` for a network of two experts; empty for the only one."""
        if self.expert:
            return "low_noise"
        return "" if self.source.second is None else "high_noise"

    @cached_property
    def layout(self) -> Layout:
        """The layout of a full export."""
        tensors = self.source.tensors
        converted = isinstance(tensors, FileTensors) and not self.is_checkpoint
        keep = tensors if converted and self.dtype == self.source.about.dtype else None
        return self.format.layout(self.dtype, keep, self.source.model)

    @property
    def is_checkpoint(self) -> bool:
        """True for a checkpoint, False for weights that were exported before."""
        return is_checkpoint(self.source.path)


@dataclass(frozen=True)
class Losses:
    """The errors of an export, relative to what it represents.

    Attributes:
        kind: ``fp8`` or ``lora``.
        forward_error: ``|v_export - v_source| / |v_source|`` of one evaluation of the network.
        layers: The ``relative_error`` of each matrix, ``|stored - exact| / |exact|``, where exact
            is the weight (fp8) or what training changed it by (lora), and more.
        also: Other figures of the whole.
    """

    kind: str
    forward_error: float
    layers: Mapping[str, Mapping[str, float]]
    also: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Writes ``losses.json``."""
        content = {
            "kind": self.kind,
            "forward_error": self.forward_error,
            **self.also,
            "layers": {name: dict(values) for name, values in self.layers.items()},
        }
        text = json.dumps(content, indent=2) + "\n"
        (folder / LOSSES_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def of_experts(cls, losses: Mapping[str, Losses | None]) -> Losses | None:
        """The losses of several networks as those of one export; figures are of the worse one.

        Args:
            losses: Each network's, by the name of its folder, which then begins its layers' names.
        """
        found = {name: each for name, each in losses.items() if each is not None}
        if not found:
            return None
        worst = max(found.values(), key=lambda each: each.forward_error)
        return replace(
            worst,
            layers={
                f"{name}/{layer}": values
                for name, each in found.items()
                for layer, values in each.layers.items()
            },
        )

    @property
    def summary(self) -> str:
        """One line for the terminal and the model card."""
        errors = sorted((v["relative_error"], name) for name, v in self.layers.items())
        if not errors:
            return "the adapters change nothing: they were not trained"
        middle, (worst, where) = errors[len(errors) // 2][0], errors[-1]
        what = "weights in 8 bits" if self.kind == "fp8" else "what training changed"
        line = (
            f"{len(errors)} matrices, {what}: relative error {middle:.2%} in the middle, "
            f"{worst:.2%} at worst ({where}); one evaluation of the network is off by "
            f"{self.forward_error:.2%}"
        )
        if self.kind == "lora":
            line += (
                f" of its output, which is {self.also['change_lost']:.2%} of what training changed "
                f"in it; {self._after_all_steps()}"
            )
        return line

    def _after_all_steps(self) -> str:
        """The errors of the whole rollout, by the programs that have them."""
        by_error: dict[float, list[str]] = {}
        for program, error in self.also["rollout_error"].items():
            by_error.setdefault(error, []).append(program)
        parts = [f"{error:.2%} in {_listed(names)}" for error, names in by_error.items()]
        skipped = "; the last skip norms, modulation and the patch embedding"
        return (
            f"after the {self.also['steps']} steps the latents are off by {', '.join(parts)}"
            f"{skipped if len(by_error) > 1 else ''}"
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
