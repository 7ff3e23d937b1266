"""diffusers: a folder that ``WanPipeline.from_pretrained`` runs in the student's four steps."""

from __future__ import annotations

from pathlib import Path

import torch

from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from weights.export_spec import Advance, ExportSpec, Losses
from weights.formats.layouts import STEM
from weights.io.json_files import write_json
from weights.io.network import nbytes, network_problems, write_network
from weights.io.shared import SHARED, shared_bytes, write_shared


class DiffusersFormat:
    """See the module."""

    dtypes = ("bf16", "fp16", "fp32")

    def check(self, spec: ExportSpec) -> None:
        """See ``Format``."""
        spec.source.schedule.diffusers_config()
        shared_bytes(spec.source.model)

    def count(self, spec: ExportSpec) -> int:
        """See ``Format``."""
        return len(spec.source.tensors.shapes)

    def nbytes(self, spec: ExportSpec) -> int:
        """See ``Format``."""
        return nbytes(spec) + shared_bytes(spec.source.model)

    def write(self, spec: ExportSpec, folder: Path, advance: Advance) -> Losses | None:
        """See ``Format``."""
        prepare_libraries()
        from diffusers import __version__

        write_shared(spec.source.model, folder)
        (folder / "transformer").mkdir()
        config = {"_class_name": "WanTransformer3DModel", "_diffusers_version": __version__}
        config |= spec.source.model.transformer_config
        write_json(folder / "transformer" / "config.json", config)
        losses = write_network(spec, folder / "transformer", STEM, advance)
        write_scheduler(folder, spec.source.schedule)
        return losses

    def problems(
        self, spec: ExportSpec, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """See ``Format``."""
        found = [f"{part}/ is missing" for part in SHARED if not (folder / part).is_dir()]
        found += scheduler_problems(folder, spec.source.schedule)
        try:
            config = open_wan(folder).transformer_config
        except UserError as error:
            return [*found, str(error)]
        return found + network_problems(spec, folder, config, losses, advance)


def write_scheduler(folder: Path, schedule: Schedule) -> None:
    """A scheduler with which stock diffusers takes the student's steps."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **schedule.diffusers_config()}
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", config)


def scheduler_problems(folder: Path, schedule: Schedule) -> list[str]:
    """Whether diffusers' scheduler takes the student's steps from the exported configuration."""
    prepare_libraries()
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(len(schedule))
    got, expected = scheduler.timesteps, schedule.timesteps
    if torch.allclose(got, expected, atol=1e-2, rtol=0):
        return []
    return [f"the scheduler takes timesteps {got.tolist()}, not {expected.tolist()}"]
