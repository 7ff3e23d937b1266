"""The plan of a comparison on disk, and whether a folder goes on with the same comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightx2v_sgmd.apps.comparison.folder import HIDDEN, inputs, written_files
from lightx2v_sgmd.apps.comparison.plan import Plan, Settings, file_name
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

FORMAT_VERSION = 1


def _shared(job: Job) -> dict[str, Any]:
    """The values that all rows share: iterations, batches, teacher and kind of video."""
    return {
        key: value
        for key, value in _comparable(job).items()
        if key.split(".")[0] in ("teacher", "video", "data", "schedule")
        or key in ("train.iterations", "train.micro_batch", "train.accumulation")
    }


def check_shared(plan: Plan) -> None:
    """Raises ``UserError`` for rows that differ in what all of them must share."""
    first, *others = plan.jobs.items()
    expected = _shared(first[1])
    for label, job in others:
        for key, value in _shared(job).items():
            if value != expected[key]:
                raise UserError(
                    f"{key}: {value} for {label} is not the {expected[key]} of {first[0]}; what is "
                    "compared must agree in it"
                )


def _comparable(job: Job) -> dict[str, Any]:
    """A job as dotted keys and values, without what may differ between parts of a comparison."""
    flat: dict[str, Any] = {}

    def walk(tree: Any, prefix: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix.rstrip(".")] = tree

    walk(parse_value(job.to_yaml(), "the job"), "")
    free = ("output.dir", "train.seed", "train.checkpoint_every", "train.keep_checkpoints")
    return {key: value for key, value in flat.items() if key not in free}


def check_same_comparison(plan: Plan) -> None:
    """Raises ``UserError`` if the folder holds another comparison; rows and seeds may be added."""
    path = plan.out / "comparison.json"
    if not path.exists():
        if plan.out.is_dir() and any(not p.name.startswith(HIDDEN) for p in plan.out.iterdir()):
            raise UserError(
                f"--out: {plan.out} holds other things and no comparison; name an empty folder"
            )
        return
    saved = read_saved(path)
    remedy = "set it back, or name another --out"
    # A comparison of an earlier version knows fewer settings; the new ones have their defaults.
    before_settings = {**asdict(Settings()), **saved["settings"]}
    options = {"evaluation": "evaluation-prompts", "solver": "teacher-solver"}
    for key, value in asdict(plan.settings).items():
        if before_settings[key] != value:
            ours, theirs = (
                "default" if each is None else each for each in (value, before_settings[key])
            )
            raise UserError(
                f"--{options.get(key, key.replace('_', '-'))}: {ours} is not the {theirs} of the "
                f"comparison in {plan.out}; {remedy}"
            )
    before = saved.get("inputs")
    if before is not None and before != inputs(plan.job, plan.settings.evaluation):
        raise UserError(
            f"--out: the teacher's weights or the prompts are not those of the comparison in "
            f"{plan.out}; {remedy}"
        )
    problems = []
    for label, job in plan.jobs.items():
        ours = _comparable(job)
        compared = saved["rows"].get(label, saved["shared"])
        problems += [
            f"{key}: {ours.get(key)} is not the {compared[key]} of {label} in the comparison in "
            f"{plan.out}; {remedy}"
            for key in compared
            if ours.get(key) != compared[key]
        ]
    if problems:
        raise UserError(*problems)


def read_saved(path: Path) -> dict[str, Any]:
    """The content of ``comparison.json``.

    Raises:
        UserError: it cannot be read, or a newer version wrote it.
    """
    try:
        saved: dict[str, Any] = read_record(path)
        if saved["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path}: another version of lightx2v-sgmd wrote it; name another --out"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read; name another --out") from error
    return saved


def write_plan(plan: Plan) -> None:
    """Writes ``comparison.json`` and the jobs."""
    path = plan.out / "comparison.json"
    rows = read_saved(path)["rows"] if path.exists() else {}
    rows |= {label: _comparable(job) for label, job in plan.jobs.items()}
    content = {
        "format_version": FORMAT_VERSION,
        "inputs": inputs(plan.job, plan.settings.evaluation),
        "settings": asdict(plan.settings),
        "about": f"{plan.about_teacher()} {plan.about_prompts()}",
        "shared": _shared(plan.job),
        "rows": rows,
    }
    written = written_files(plan.out)
    for label, job in plan.jobs.items():
        written.write_text(f"jobs/{file_name(label)}.yaml", job.to_yaml())
    written.write_text("comparison.json", json.dumps(content, indent=2) + "\n")


def saved_plan(out: str | Path, methods: Sequence[str] = ()) -> Plan:
    """The comparison that a folder holds, with every seed that has been started, for its report.

    Args:
        out: The folder.
        methods: The methods; all of them if none is given.

    Raises:
        UserError: it holds no comparison, or none of these methods.
    """
    out = Path(out)
    if not (out / "comparison.json").is_file():
        raise UserError(f"--out: {out} holds no comparison yet; run without --report-only")
    saved = read_saved(out / "comparison.json")
    rows = {
        label: values["method.name"]
        for label, values in saved["rows"].items()
        if not methods or values["method.name"] in methods
    }
    for method in methods:
        if method not in rows.values():
            raise UserError(f"--methods: {method} is not in the comparison in {out}")
    jobs = {label: load_job(out / "jobs" / f"{file_name(label)}.yaml") for label in rows}
    started = {int(f.name.removeprefix("seed_")) for f in out.glob("measured/*/seed_*")}
    return Plan(out, jobs, tuple(sorted(started)), Settings(**saved["settings"]))


def plan_of(out: Path, label: str | None, seed: int) -> Plan:
    """The part of a comparison that a worker needs: one row and one seed.

    Args:
        out: The folder.
        label: A trained row; None for the teacher's, which take any job.
        seed: The seed of the row.
    """
    saved = read_saved(out / "comparison.json")
    settings = Settings(**saved["settings"])
    rows: dict[str, Any] = saved["rows"]
    name = label if label is not None and label in rows else next(iter(rows))
    job = load_job(out / "jobs" / f"{file_name(name)}.yaml")
    return Plan(out, {name: job}, (seed,), settings)
