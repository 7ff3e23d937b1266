"""diffusers: a folder that ``WanPipeline.from_pretrained`` runs in the student's four steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.models.wan import open_wan
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.tensorfiles import PICKLE_SUFFIXES
from weights.item import Advance, Item, Losses
from weights.layouts import STEM
from weights.load import SHARED
from weights.network import nbytes, network_problems, write_network


class DiffusersFormat:
    """See the module."""

    dtypes = ("bf16", "fp16", "fp32")

    def check(self, item: Item) -> None:
        """See ``Format``."""
        item.source.schedule.diffusers_config()
        item.shared_parts

    def count(self, item: Item) -> int:
        """See ``Format``."""
        return len(item.source.tensors.shapes)

    def nbytes(self, item: Item) -> int:
        """See ``Format``."""
        folder = item.shared_parts
        files = [path for part in SHARED for path in (folder / part).rglob("*")]
        return nbytes(item) + sum(path.stat().st_size for path in files)

    def write(self, item: Item, folder: Path, advance: Advance) -> Losses | None:
        """See ``Format``."""
        teacher = item.shared_parts
        for part in SHARED:
            shutil.copytree(teacher / part, folder / part, ignore=_not_copied)
        (folder / "transformer").mkdir()
        config = json.loads((teacher / "transformer" / "config.json").read_text("utf-8"))
        config.pop("_name_or_path", None)
        write_json(folder / "transformer" / "config.json", config)
        losses = write_network(item, folder / "transformer", STEM, advance)
        write_scheduler(folder, item.source.schedule)
        index = json.loads((teacher / "model_index.json").read_text(encoding="utf-8"))
        index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        write_json(folder / "model_index.json", index)
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
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(len(schedule))
    got, expected = scheduler.timesteps, schedule.timesteps
    if torch.allclose(got, expected, atol=1e-2, rtol=0):
        return []
    return [f"the scheduler takes timesteps {got.tolist()}, not {expected.tolist()}"]


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """Of a teacher's part: pickles, code and caches stay behind."""
    return [n for n in names if n.startswith(".") or Path(n).suffix in (*PICKLE_SUFFIXES, ".py")]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
