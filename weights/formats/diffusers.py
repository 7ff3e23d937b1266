"""diffusers: a folder that ``WanPipeline.from_pretrained`` runs in the student's four steps."""

from __future__ import annotations

from pathlib import Path

import torch

from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries
from weights.export_spec import Advance, Item, Losses
from weights.formats.layouts import STEM
from weights.io.json_files import write_json
from weights.io.network import nbytes, network_problems, write_network
from weights.io.shared import SHARED, shared_bytes, write_shared


class DiffusersFormat:
    """See the module."""

    dtypes = ("bf16", "fp16", "fp32")

    def check(self, item: Item) -> None:
        """See ``Format``."""
        item.source.schedule.diffusers_config()
        shared_bytes(item.source.model)

    def count(self, item: Item) -> int:
        """See ``Format``."""
        return len(item.source.tensors.shapes)

    def nbytes(self, item: Item) -> int:
        """See ``Format``."""
        return nbytes(item) + shared_bytes(item.source.model)

    def write(self, item: Item, folder: Path, advance: Advance) -> Losses | None:
        """See ``Format``."""
        prepare_libraries()
        from diffusers import __version__

        write_shared(item.source.model, folder)
        (folder / "transformer").mkdir()
        config = {"_class_name": "WanTransformer3DModel", "_diffusers_version": __version__}
        config |= item.source.model.transformer_config
        write_json(folder / "transformer" / "config.json", config)
        losses = write_network(item, folder / "transformer", STEM, advance)
        write_scheduler(folder, item.source.schedule)
        return losses

    def problems(
        self, item: Item, folder: Path, losses: Losses | None, advance: Advance
    ) -> list[str]:
        """See ``Format``."""
        found = [f"{part}/ is missing" for part in SHARED if not (folder / part).is_dir()]
        found += scheduler_problems(folder, item.source.schedule)
        try:
            config = open_wan(folder).transformer_config
        except UserError as error:
            return [*found, str(error)]
        return found + network_problems(item, folder, config, losses, advance)


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
