"""This project inside LightX2V: its trainer's YAMLs train with our loop.

``python -m lightx2v_sgmd.lightx2v train --config X.yaml`` needs nothing of LightX2V but the YAML.
``register()`` puts a trainer named ``lightx2v_sgmd`` into the registry of LightX2V's own trainer
package ``lightx2v_train``, so that ``training.method: lightx2v_sgmd`` finds it there. This is the
only module that imports LightX2V.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from lightx2v_sgmd.cli.options import Json, Processes, Quiet, Settings, print_result
from lightx2v_sgmd.job.from_lightx2v.convert import Converted, convert, convert_tree
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import short_line

NAME: Final = "lightx2v_sgmd"
"""The trainer's name in LightX2V's registry; its own ``video_sgmd`` is another trainer."""
PROG: Final = "python -m lightx2v_sgmd.lightx2v"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class RegisteredTrainer:
    """A trainer for LightX2V's ``build_trainer``: it runs our loop on the job that a YAML means.

    Args:
        config: The resolved values of the YAML, as LightX2V's ``load_config`` gives them.

    Raises:
        UserError: the YAML means no job of this project.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        path = Path(str(config.get("config_path", "config")))
        tree = {key: value for key, value in config.items() if key != "config_path"}
        self.converted = convert_tree(tree, path)

    def set_model(self, model: Any) -> None:
        """Takes no model: our loop loads the teacher itself, sharded over the ranks."""

    def set_data(self, dataloader_train: Any, dataloader_eval: Any = None) -> None:
        """Takes no data: our loop reads the prompts itself, so that a run can be resumed."""

    def train(self) -> Path:
        """Trains, and returns the run folder; LightX2V's process group is closed before."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        return _train(self.converted, nproc=1, resume=None, quiet=False)


def register() -> bool:
    """Registers ``RegisteredTrainer`` with LightX2V's trainer package.

    Returns:
        True if the package can be imported; a second call changes nothing.
    """
    try:
        registry = importlib.import_module("lightx2v_train.utils.registry")
    except ImportError:
        return False
    if NAME not in registry.TRAINER_REGISTER:
        registry.TRAINER_REGISTER(NAME)(RegisteredTrainer)
    return True


@app.callback()
def root() -> None:
    """Train students from the YAMLs of LightX2V's trainer."""


@app.command(
    "train",
    epilog="\b\nExamples:\n"
    f"  {PROG} train --config wan2_1_t2v_1_3b_sgmd.yaml --nproc 8\n"
    f"  torchrun --nproc-per-node 8 -m {NAME}.lightx2v train --config X.yaml",
)
def train_command(
    config: Annotated[
        Path, typer.Option(metavar="X.yaml", help="YAML of LightX2V's trainer, lightx2v_train.")
    ],
    settings: Settings = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|never|PATH",
            help="As for `lightx2v-sgmd distill`; default as resume.auto_resume says.",
        ),
    ] = None,
    nproc: Processes = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a student, and print its run folder.

    Keys of the YAML that change a student in LightX2V and have no counterpart here are named on
    stderr; `lightx2v-sgmd job from-lightx2v X.yaml` prints the whole job. `--set` takes keys of
    that job.
    """
    converted = convert(config, settings or [])
    run = _train(converted, nproc, resume, quiet)
    if int(os.environ.get("RANK", "0")) == 0:
        print_result({"run": str(run)}, str(run), as_json)


def _train(converted: Converted, nproc: int, resume: str | None, quiet: bool) -> Path:
    from distill import distill

    if int(os.environ.get("RANK", "0")) == 0:
        for entry in converted.notes:
            if entry.differs:
                note(short_line(f"{entry.where}: {entry}"), quiet)
    return distill(converted.job, resume=resume or converted.resume, nproc=nproc, quiet=quiet)


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    from lightx2v_sgmd.cli.main import main as run

    run(sys.argv[1:] if args is None else args, app, PROG)


if __name__ == "__main__":
    main()
