"""``lightx2v-sgmd job``: commands that look at a job and run nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Settings

if TYPE_CHECKING:
    from lightx2v_sgmd.job.schema import Job

app = typer.Typer(add_completion=False, rich_markup_mode=None)

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} job show configs/wan2.1_t2v_14b_dmd2.yaml\n"
    f"  {PROG} job show my_job.yaml --set train.seed=1 > whole_job.yaml"
)

FROM_LIGHTX2V = f"\b\nExample:\n  {PROG} job from-lightx2v wan2_1_t2v_1_3b_sgmd.yaml > my_job.yaml"


@app.callback()
def job_command() -> None:
    """Look at a job, or make one, without running it."""


@app.command("show", epilog=EXAMPLES)
def show_command(job: JobFile, settings: Settings = None, as_json: Json = False) -> None:
    """Print the whole job, with every default, and say where each value comes from.

    The files that it is based on (`base: OTHER.yaml`) are merged in, and what the teacher's family
    decides is filled in, so the output is a whole job. Its data paths are absolute: it runs on this
    machine only.
    """
    from lightx2v_sgmd.families.teacher import with_known_defaults
    from lightx2v_sgmd.job.loading import load_job_with_origins
    from lightx2v_sgmd.job.show import annotated_yaml

    loaded, origins = with_known_defaults(*load_job_with_origins(job, settings or []))
    if as_json:
        print(json.dumps(_as_json(loaded, origins), indent=2))
    else:
        print(annotated_yaml(loaded, origins), end="")


@app.command("from-lightx2v", epilog=FROM_LIGHTX2V)
def from_lightx2v_command(
    config: Annotated[
        Path, typer.Argument(metavar="X.yaml", help="YAML of LightX2V's trainer, lightx2v_train.")
    ],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Print the job that a YAML of LightX2V's trainer stands for.

    Comments say which of its keys gave each value, and which keys are not mapped and why. `python
    -m lightx2v_sgmd.lightx2v train --config X.yaml` trains it without this step.
    """
    from lightx2v_sgmd.families.teacher import with_known_defaults
    from lightx2v_sgmd.job.from_lightx2v.convert import convert
    from lightx2v_sgmd.job.show import annotated_yaml
    from lightx2v_sgmd.system.errors import escaped

    made = convert(config, settings or [])
    shown, origins = with_known_defaults(made.job, made.origins)
    if as_json:
        notes = [
            {"key": note.key, "value": note.value, "reason": note.reason, "differs": note.differs}
            for note in made.notes
        ]
        print(json.dumps({**_as_json(shown, origins), "not_mapped": notes}, indent=2))
        return
    print(annotated_yaml(shown, origins), end="")
    print(f"# resume.auto_resume: `distill --resume {made.resume}`")
    different = [f"#   {escaped(str(note))}" for note in made.notes if note.differs]
    if different:
        print("\n".join(["#", "# What differs from LightX2V's trainer:", *different]))
    without_effect: dict[str, list[str]] = {}
    for note in made.notes:
        if not note.differs:
            without_effect.setdefault(note.reason, []).append(note.key)
    if without_effect:
        print("#\n# Keys that are not mapped, without effect on the student:")
        for reason, keys in without_effect.items():
            print(f"#   {escaped(', '.join(keys))}: {reason}")


def _as_json(job: Job, origins: Mapping[str, str]) -> dict[str, object]:
    from lightx2v_sgmd.files.yaml_loader import parse_tree
    from lightx2v_sgmd.job.show import leaf_origins

    tree, _ = parse_tree(job.to_yaml(), "the job")
    return {"job": tree, "origins": leaf_origins(job, origins)}
