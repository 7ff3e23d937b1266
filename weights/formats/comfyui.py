"""comfyui: one file of weights, and workflows that load it by name and run its four steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.schedule import Schedule, even_timesteps, evenly_spaced
from lightx2v_sgmd.system.errors import UserError
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.comfyui_workflow import WORKFLOW_API_FILE, WORKFLOW_FILE, to_ui, workflow
from weights.io.json_files import json_problems, write_json
from weights.io.network import nbytes, network_problems, write_network

_ONE_FILE: Final = "1000000GB"


class ComfyuiFormat:
    """See the module."""

    dtypes = ("bf16", "fp16", "fp32", "fp8")

    def check(self, spec: ExportSpec) -> None:
        """See ``Format``."""
        check_even(spec.source.schedule)

    def count(self, spec: ExportSpec) -> int:
        """See ``Format``."""
        return len(spec.source.tensors.shapes)

    def nbytes(self, spec: ExportSpec) -> int:
        """See ``Format``."""
        return nbytes(spec)

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """See ``Format``."""
        from dataclasses import replace

        losses = write_network(replace(spec, max_shard_size=_ONE_FILE), folder, stem(spec), advance)
        for name, content in _workflows(spec).items():
            write_json(folder / name, content)
        return losses

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """See ``Format``."""
        found = []
        if not (folder / f"{stem(spec)}.safetensors").is_file():
            found.append(f"{stem(spec)}.safetensors, which the workflows name, is missing")
        for name, content in _workflows(spec).items():
            found += json_problems(folder / name, content)
        config = spec.source.model.transformer_config
        return found + network_problems(spec, folder, config, losses, advance)


def stem(spec: ExportSpec) -> str:
    """The name of the file: what it is made from, by which method, in how many steps."""
    about = spec.source.about
    teacher = about.teacher.rstrip("/").rsplit("/", 1)[-1].removesuffix("-Diffusers").lower()
    name = f"{teacher}_{about.method['name']}_{len(about.schedule)}step_{spec.dtype}"
    return re.sub(r"[^a-z0-9._-]+", "-", name)


def _workflows(spec: ExportSpec) -> Mapping[str, Mapping[str, Any]]:
    api = workflow(spec.source.about, weights=f"{stem(spec)}.safetensors")
    return {WORKFLOW_API_FILE: api, WORKFLOW_FILE: to_ui(api)}


def check_even(schedule: Schedule) -> None:
    """ComfyUI's ``simple`` scheduler takes every n-th of 1000 shifted timesteps.

    Raises:
        UserError: these steps are not spaced that way.
    """
    if not evenly_spaced(schedule.base):
        even = list(even_timesteps(len(schedule)))
        raise UserError(
            f"schedule.base: ComfyUI spaces steps evenly; use {even} instead of "
            f"{list(schedule.base)}"
        )
