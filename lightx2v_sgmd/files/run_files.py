"""Names in a run's folder, by which others recognise a run and a checkpoint; imports no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECKPOINTS: Final = "checkpoints"
"""The folder of a run's checkpoints."""
METRICS: Final = "metrics.jsonl"
"""The log of a run, a line for each iteration."""
TRAINER_STATE: Final = "trainer.json"
"""The file of a checkpoint that has its step and what a resumed run must agree with."""


def is_run(folder: Path) -> bool:
    """Returns True for the folder of a run, whether it has checkpoints yet or not."""
    return (folder / CHECKPOINTS).is_dir()


def is_checkpoint(folder: Path) -> bool:
    """Returns True for a checkpoint, False for weights that were exported and all else."""
    return (folder / TRAINER_STATE).is_file()
