"""``lightx2v-sgmd job``: commands that look at a job and run nothing."""

from __future__ import annotations

import json

import typer

from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)

EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} job show configs/wan2.1_t2v_14b_dmd2.yaml\n"
    f"  {PROG} job show my_job.yaml --set train.seed=1 > whole_job.yaml"
)


@app.callback()
def job_command() -> None:
    """Look at a job without running it."""


@app.command("show", epilog=EXAMPLES)
def show_command(job: JobFile, settings: Settings = None, as_json: Json = False) -> None:
    """Print the whole job, with every default, and say where each value comes from.

    The files that it is based on (`base: OTHER.yaml`) are merged in: the output runs alone on
    this machine; paths of data are absolute in it.
    """
    from lightx2v_sgmd.files.yaml_loader import parse_tree
    from lightx2v_sgmd.job.schema import load_job_with_origins
    from lightx2v_sgmd.job.show import annotated_yaml, leaf_origins

    loaded, origins = load_job_with_origins(job, settings or [])
    if as_json:
        tree, _ = parse_tree(loaded.to_yaml(), "the job")
        print(json.dumps({"job": tree, "origins": leaf_origins(loaded, origins)}, indent=2))
    else:
        print(annotated_yaml(loaded, origins), end="")
