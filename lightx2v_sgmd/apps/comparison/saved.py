"""The plan of a comparison on disk, and whether a folder goes on with the same comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.comparison.folder import HIDDEN, inputs, written_files
from lightx2v_sgmd.apps.comparison.plan import MOST_COUNT, Plan, Settings, file_name
from lightx2v_sgmd.families.teacher import saved_job
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

FORMAT_VERSION = 1
_SEED: Final = re.compile(r"seed_(\d{1,19})")
_STORAGE = "teacher.quantize"
"""The storage of a run's frozen weights; the teacher is measured with its own weights."""


def _shared(job: Job) -> dict[str, Any]:
    """The values that all rows share: iterations, batches, teacher and kind of video."""
    return {
        key: value
        for key, value in _comparable(job).items()
        if (key.split(".")[0] in ("teacher", "video", "data", "schedule") and key != _STORAGE)
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
                    f"{key}: {value} for {label} is not the {expected[key]} of {first[0]}; set it "
                    "alike for all that is compared"
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
        _check(saved)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read; name another --out") from error
    return saved


def _check(saved: dict[str, Any]) -> None:
    """Raises if a comparison's file is not as ``write_plan`` writes it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not.
    """
    if not saved["rows"] or not isinstance(saved["shared"], dict):
        raise TypeError("there are no rows")
    for row in saved["rows"].values():
        if not isinstance(row["method.name"], str):
            raise TypeError("a row has no method")
    counts = asdict(Settings(**saved["settings"]))
    evaluation, solver = counts.pop("evaluation"), counts.pop("solver")
    if not isinstance(evaluation, str | None) or solver not in (None, "unipc", "euler"):
        raise TypeError("a setting is not a text")
    for name, count in counts.items():
        least = 0 if name in ("shown", "groups") else 1
        most = 2**53 if name == "every" else MOST_COUNT
        if type(count) is not int or not least <= count <= most:
            raise ValueError(f"{name} is no number")


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
            raise UserError(
                f"--methods: {method} is not in the comparison in {out}; leave it out, or run "
                "without --report-only"
            )
    jobs = {label: saved_job(out / "jobs" / f"{file_name(label)}.yaml") for label in rows}
    for label, job in jobs.items():
        if job.train.iterations // saved["settings"].get("every", Settings.every) > MOST_COUNT:
            raise UserError(f"{out}: {label} has too many snapshots; name another --out")
    found = (_SEED.fullmatch(folder.name) for folder in out.glob("measured/*/seed_*"))
    started = {int(match[1]) for match in found if match is not None}
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
    job = saved_job(out / "jobs" / f"{file_name(name)}.yaml")
    return Plan(out, {name: job}, (seed,), settings)
