"""The plan of a comparison: a job for each trained row, seeds, measurements and files.

OUT/
comparison.json              what this folder compares
jobs/ROW.yaml                each row's job, complete; `distill` runs it alone
runs/ROW/seed_0/             a run folder; snapshots/ has the weights at every N iterations
teacher/seed_0/*.npz         the teacher's videos, made once
measured/ROW/seed_0/*.json   raw measurements, one file for a set of videos
videos/ROW/seed_0/*.mp4      the first prompts' videos
logs/*.log                   what the processes said
results.json, table.md, report.html, contact_sheet.png
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightx2v_sgmd.apps.comparison.folder import HIDDEN, inputs, written_files
from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.families.model_folder import shipped_prompts
from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.files.checkpoint import checkpoint_name
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.inheritance import read_job_tree
from lightx2v_sgmd.job.schema import Job, load_job
from lightx2v_sgmd.outputs import refuse_overlap, resolved
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_record

TEACHER, UNDISTILLED = "teacher", "undistilled"
FORMAT_VERSION = 1
SHARED = ("teacher", "schedule", "data", "video", "train", "parallel", "output")
"""Sections that every row takes from the job that was named; the others are the method's own."""
_METHODS_OWN = ("score_shift",)
"""Keys of the section ``train`` that belong to the method: ADM's score times are uniform."""
_OURS = {
    "output.dir": "runs go below --out",
    "train.checkpoint_every": "--every says when snapshots are taken",
    "train.keep_checkpoints": "snapshots are kept without it",
    "method.name": "--methods says what is compared",
}


@dataclass(frozen=True)
class Settings:
    """The amount of measuring.

    Attributes:
        prompts: Videos of a full measurement.
        curve_prompts: Videos of a snapshot's.
        every: Iterations between snapshots.
        groups: Prompts of which several videos are made, for the diversity.
        copies: The number of videos of each of them.
        shown: Prompts whose videos are kept.
    """

    prompts: int = 200
    curve_prompts: int = 100
    every: int = 20
    groups: int = 24
    copies: int = 4
    shown: int = 8


@dataclass(frozen=True)
class Plan:
    """A comparison, checked.

    Attributes:
        out: The folder of the comparison.
        jobs: The trained rows' jobs by label, with the first seed.
        seeds: The seeds of every row.
        settings: The amount of measuring.
    """

    out: Path
    jobs: dict[str, Job]
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def job(self) -> Job:
        """Any of the jobs, for what they share."""
        return next(iter(self.jobs.values()))

    @property
    def checkable(self) -> bool:
        """True if the captions are the sprite world's, whose claims can be checked in frames."""
        return _checkable(self.job)

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the tables."""
        return (TEACHER, UNDISTILLED, *self.jobs)

    def snapshots(self) -> list[int]:
        """The iterations after which weights are kept, the last one included."""
        last, every = self.job.train.iterations, self.settings.every
        return [*range(every, last, every), last]

    def job_file(self, label: str) -> Path:
        """The file of a row's job."""
        return self.out / "jobs" / f"{file_name(label)}.yaml"

    def run(self, label: str, seed: int) -> Path:
        """A run folder."""
        return self.out / "runs" / file_name(label) / f"seed_{seed}"

    def snapshot(self, label: str, seed: int, step: int) -> Path:
        """The folder of the weights after ``step`` iterations."""
        return self.run(label, seed) / "snapshots" / checkpoint_name(step)

    def measurement(self, label: str, seed: int, step: int, full: bool = True) -> Path:
        """A measurement's file; untrained rows have step 0."""
        kind = "full" if full else "curve"
        name = f"{kind}_{step:06d}.json"
        return self.out / "measured" / file_name(label) / f"seed_{seed}" / name

    def videos(self, label: str, seed: int) -> Path:
        """The folder of the videos that are shown."""
        return self.out / "videos" / file_name(label) / f"seed_{seed}"


def file_name(label: str) -> str:
    """A row's label as a file name."""
    return re.sub(r"[^\w.=+-]+", "_", label)


def make_plan(
    job_file: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    seeds: int = 1,
    overrides: Sequence[str] = (),
    method_overrides: Sequence[str] = (),
    sweep: str | None = None,
    settings: Settings | None = None,
    every: int | None = None,
) -> Plan:
    """Checks everything that was asked for and decides what there is to do; writes nothing.

    Raises:
        UserError: unknown methods, jobs that do not load, too few seeds or prompts, a folder that
            cannot be written or that holds another comparison.
    """
    out, job_file = Path(out), Path(job_file)
    if seeds < 1:
        raise UserError(f"--seeds: {seeds} is too few; use 1 or more")
    _refuse_ours(overrides, "--set")
    check_writable(out, folder=True)
    base = load_job(job_file, overrides)
    chosen = _methods(methods, base)
    own = _by_method(method_overrides, chosen)
    key, values = _sweep(sweep)
    jobs: dict[str, Job] = {}
    for method in chosen:
        sections = _method_sections(job_file, base, method)
        for value in values:
            swept = [] if value is None else [f"{key}={value}"]
            label = method if value is None else f"{method} {key.split('.')[-1]}={value}"
            settled = [*sections, *overrides, *own.get(method, []), *swept]
            try:
                jobs[label] = load_job(job_file, settled)
            except UserError as error:
                lines = [f"{method}: {line}" for line in str(error).splitlines()]
                raise UserError("\n".join(lines)) from error
    refuse_overlap(resolved(out), {"teacher.path": Path(base.teacher.path)})
    from distill.model_checks import check_against_model

    check_against_model(base, open_wan(base.teacher.path, base.teacher.base))
    settings = settings or Settings()
    every = every if every is not None else max(1, -(-base.train.iterations // 10))
    settings = _fitting(settings, base, every)
    first = base.train.seed
    plan = Plan(out, jobs, tuple(range(first, first + seeds)), settings)
    _check_shared(plan)
    _check_same_comparison(plan)
    return plan


def _methods(methods: Sequence[str], base: Job) -> list[str]:
    from lightx2v_sgmd.methods import method_names

    chosen = [name.strip() for name in methods] or [base.method.name]
    for name in chosen:
        if name not in method_names():
            raise UserError(f"--methods: {name!r} is unknown; use {', '.join(method_names())}")
        if name in (TEACHER, UNDISTILLED):
            raise UserError(f"--methods: {name} is what a row of every table is called; rename it")
        if chosen.count(name) > 1:
            raise UserError(f"--methods: {name} is given twice; give each once")
    return chosen


def _refuse_ours(overrides: Sequence[str], option: str) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _OURS:
            raise UserError(f"{option} {override}: {_OURS[key]}; leave it out")


def _by_method(overrides: Sequence[str], chosen: Sequence[str]) -> dict[str, list[str]]:
    """``dmd2:student.optimizer.lr=5e-5`` by method."""
    found: dict[str, list[str]] = {}
    for override in overrides:
        method, colon, setting = override.partition(":")
        if not colon or "=" not in setting:
            raise UserError(
                f"--method-set {override}: is not METHOD:KEY=VALUE; write "
                f"--method-set {chosen[0]}:student.optimizer.lr=5e-5"
            )
        if method not in chosen:
            raise UserError(
                f"--method-set {override}: {method} is not compared; use {', '.join(chosen)}"
            )
        _refuse_ours([setting], "--method-set")
        found.setdefault(method, []).append(setting)
    return found


def _sweep(sweep: str | None) -> tuple[str, list[str | None]]:
    """The key and its values as text."""
    if sweep is None:
        return "", [None]
    key, equals, text = sweep.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"--sweep {sweep}: is not KEY=A,B,C; write --sweep method.lambda=0.1,0.2")
    if len({json.dumps(parse_value(value, "--sweep")) for value in values}) < len(values):
        raise UserError(f"--sweep {sweep}: has a value twice; give each once")
    _refuse_ours([f"{key}="], "--sweep")
    return key.strip(), [*values]


def method_job(job_file: Path, own: str, method: str) -> Path:
    """The job beside ``job_file`` that is the same for another method, which may not exist.

    ``configs/sprites_sgmd.yaml`` has ``configs/sprites_dmd2.yaml`` beside it.
    """
    stem = job_file.stem.removesuffix(own)
    return job_file.with_name(f"{stem}{method}{job_file.suffix}")


def _method_sections(job_file: Path, base: Job, method: str) -> list[str]:
    """As overrides of the job: the sections that are the method's own."""
    if method == base.method.name:
        return []
    beside = method_job(job_file, base.method.name, method)
    if not job_file.stem.endswith(base.method.name) or not beside.is_file():
        return [f"method={json.dumps({'name': method})}"]
    load_job(beside)  # so that its mistakes are told under its own name
    tree = read_job_tree(beside).tree
    own = {key: part for key, part in tree.items() if key not in SHARED}
    train = tree.get("train", {})
    own |= {f"train.{key}": train[key] for key in _METHODS_OWN if key in train}
    return [f"{key}={json.dumps(part)}" for key, part in own.items()]


def _checkable(job: Job) -> bool:
    """True if the prompts come with a model and the sprite world can measure each in frames."""
    prompts = shipped_prompts(job.data.prompts)
    return prompts is not None and all(map(world.is_caption, prompts))


def _fitting(settings: Settings, base: Job, every: int) -> Settings:
    """The settings as far as there are prompts and iterations."""
    if settings.prompts < 2:
        raise UserError(f"--prompts: {settings.prompts} is too few; use 2 or more")
    if every < 1:
        raise UserError(f"--every: {every} is too few; use 1 or more")
    count = settings.prompts
    if not _checkable(base):
        from lightx2v_sgmd.files.prompts import read_prompts

        count = min(count, len(dict.fromkeys(read_prompts(base.data.prompts))))
        if count < 2:
            raise UserError(f"data.prompts: {base.data.prompts} has {count} prompt; give 2 or more")
    return Settings(
        prompts=count,
        curve_prompts=min(settings.curve_prompts, count),
        every=min(every, base.train.iterations),
        groups=min(settings.groups, count),
        copies=settings.copies,
        shown=min(settings.shown, count),
    )


def _shared(job: Job) -> dict[str, Any]:
    """The values that all rows share: iterations, batches, teacher and kind of video."""
    return {
        key: value
        for key, value in _comparable(job).items()
        if key.split(".")[0] in ("teacher", "video", "data", "schedule")
        or key in ("train.iterations", "train.micro_batch", "train.accumulation")
    }


def _check_shared(plan: Plan) -> None:
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


def _check_same_comparison(plan: Plan) -> None:
    """A folder goes on with the comparison it holds; rows and seeds may be added."""
    path = plan.out / "comparison.json"
    if not path.exists():
        if plan.out.is_dir() and any(not p.name.startswith(HIDDEN) for p in plan.out.iterdir()):
            raise UserError(
                f"--out: {plan.out} holds other things and no comparison; name an empty folder"
            )
        return
    saved = read_saved(path)
    remedy = "set it back, or name another --out"
    for key, value in asdict(plan.settings).items():
        if saved["settings"].get(key) != value:
            raise UserError(
                f"--{key.replace('_', '-')}: {value} is not the {saved['settings'].get(key)} of "
                f"the comparison in {plan.out}; {remedy}"
            )
    before = saved.get("inputs")
    if before is not None and before != inputs(plan.job):
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
        raise UserError("\n".join(problems))


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
        "inputs": inputs(plan.job),
        "settings": asdict(plan.settings),
        "shared": _shared(plan.job),
        "rows": rows,
    }
    written = written_files(plan.out)
    for label, job in plan.jobs.items():
        written.write_text(f"jobs/{file_name(label)}.yaml", job.to_yaml())
    written.write_text("comparison.json", json.dumps(content, indent=2) + "\n")


def saved_plan(out: str | Path, methods: Sequence[str] = ()) -> Plan:
    """The comparison that a folder holds, with every seed that has been begun, for its report.

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
    begun = {int(f.name.removeprefix("seed_")) for f in out.glob("measured/*/seed_*")}
    return Plan(out, jobs, tuple(sorted(begun)), Settings(**saved["settings"]))


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
