"""Strategies lay out networks over the processes of a run.

Only ``zero3`` imports deepspeed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.job.schema import Parallel
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    expert_role,
    role_of,
)
from lightx2v_sgmd.parallel.base import (
    NO_OWN,
    FakeScoreQuery,
    HeadSettings,
    ScoreLoss,
    Strategy,
    StrategySettings,
)
from lightx2v_sgmd.parallel.hang_detector import Watch
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.system.errors import UserError

__all__ = [
    "DISCRIMINATOR",
    "FAKE_SCORE",
    "PIXEL_DISCRIMINATOR",
    "STUDENT",
    "TEACHER",
    "FakeScoreQuery",
    "HeadSettings",
    "Ranks",
    "ScoreLoss",
    "StrategySettings",
    "Strategy",
    "Watch",
    "check_offload",
    "connect",
    "disconnect",
    "expert_role",
    "open_strategy",
    "role_of",
    "training_device",
]


def training_device() -> torch.device:
    """Chooses this process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def connect(strategy: str, device: torch.device, timeout_minutes: float | None = None) -> Ranks:
    """Joins the processes of the run.

    Args:
        strategy: ``local`` or ``zero3``.
        device: The device of this process.
        timeout_minutes: Longest wait for the others; None is torch's default.

    Raises:
        UserError: the strategy cannot run here, or not on so many processes.
        RunError: some of the others have not joined in time.
    """
    if strategy == "zero3":
        from lightx2v_sgmd.parallel.zero3 import engines

        return engines.connect(device, timeout_minutes)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"parallel.strategy: local is one process, not {os.environ['WORLD_SIZE']}; "
            "use parallel.strategy=zero3"
        )
    return Ranks(device=device)


def check_offload(layout: Parallel, device: torch.device) -> None:
    """Checks, without any other process, that this machine can offload as a job says.

    Raises:
        UserError: this machine cannot.
    """
    if layout.offload_dir is not None:
        from lightx2v_sgmd.parallel.zero3 import engines

        engines.check_offload(layout.offload_dir, device)


def disconnect(strategy: str) -> None:
    """Leaves the processes of the run, if ``close`` has not done so."""
    if strategy == "zero3":
        from lightx2v_sgmd.parallel.zero3 import engines

        engines.disconnect()


def open_strategy(
    strategy: str,
    model: Model,
    settings: StrategySettings,
    ranks: Ranks,
    fold_text: bool,
    own: Mapping[str, Model] = NO_OWN,
) -> Strategy:
    """Loads the networks in a strategy's layout.

    Args:
        strategy: ``local`` or ``zero3``.
        model: The teacher that student and fake score start from.
        settings: The job's settings.
        ranks: The processes, from ``connect``.
        fold_text: Let the networks attend once to all padding rows of the text; for small models
            on a CPU (see ``Model.fold_text_padding``).
        own: The models that roles start from in place of the teacher.
    """
    if strategy == "zero3":
        from lightx2v_sgmd.parallel.zero3.strategy import Zero3

        return Zero3(model, settings, ranks, fold_text, own)
    from lightx2v_sgmd.parallel.local import Local

    return Local(model, settings, ranks.device, fold_text, own)
