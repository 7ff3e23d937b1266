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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightx2v_sgmd.apps.comparison.folder import HIDDEN, captions, inputs, written_files
from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.families.model_folder import shipped_prompts
from lightx2v_sgmd.families.wan import open_wan
from lightx2v_sgmd.files.checkpoint import checkpoint_name
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.inheritance import read_job_tree
from lightx2v_sgmd.job.schema import Job, load_job
from lightx2v_sgmd.outputs import refuse_overlap, resolved
from lightx2v_sgmd.sampling.teacher_steps import SolverName, solver_text, teacher_solver
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.system.resources import config_path
from lightx2v_sgmd.untrusted.json_text import read_record

TEACHER, UNDISTILLED = "teacher", "undistilled"
EVALUATION_PROMPTS = "prompts/evaluation.txt"
"""The shipped file of prompts that no shipped job trains on."""
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
        evaluation: The file of prompts that videos are made from; None stands for the bundled
            world's held-out captions.
        solver: The teacher's solver, ``unipc`` or ``euler``; None is that of its authors.
    """

    prompts: int = 200
    curve_prompts: int = 100
    every: int = 20
    groups: int = 24
    copies: int = 4
    shown: int = 8
    evaluation: str | None = None
    solver: SolverName | None = None


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

    @property
    def evaluation_prompts(self) -> list[str]:
        """The prompts that videos are made from, none of which any row has trained on."""
        count, file = self.settings.prompts, self.settings.evaluation
        if self.on_captions:
            from lightx2v_sgmd.apps.sprites.evaluate import held_out_captions

            return [caption.text() for caption in held_out_captions(count)]
        # Without a file, an earlier version made the comparison, on training prompts.
        return _prompts_of(self.job.data.prompts if file is None else file)[:count]

    @property
    def on_captions(self) -> bool:
        """True if videos are made from the sprite world's held-out captions."""
        return self.settings.evaluation is None and self.checkable

    def about_prompts(self) -> str:
        """A sentence on the prompts that videos are made from."""
        if self.on_captions:
            return "The prompts are captions of the bundled world that training never saw."
        if self.settings.evaluation is None:
            return "The prompts are training prompts: an earlier version made this comparison."
        file = Path(self.settings.evaluation).name
        return f"The prompts are from {file}, and no row trained on any of them."

    def about_teacher(self) -> str:
        """A sentence on how the teacher's row is sampled."""
        teacher = self.job.teacher
        model = open_wan(teacher.path, teacher.base)
        negative = model.negative_prompt_for(teacher.negative_prompt)
        own = "its authors'" if negative == model.negative_prompt else "the job's"
        return (
            f"The teacher samples with {solver_text(teacher_solver(model, self.settings.solver))}, "
            f"guidance {teacher.guidance_scale:g} and "
            f"{f'{own} negative prompt' if negative else 'no negative prompt'}."
        )

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
    from distill.model_checks import check_against_model, job_sources

    for job in jobs.values():
        refuse_overlap(resolved(out), job_sources(job))
    check_against_model(base, open_wan(base.teacher.path, base.teacher.base))
    settings = settings or Settings()
    every = every if every is not None else max(1, -(-base.train.iterations // 10))
    settings = _fitting(settings, base, every)
    _refuse_training_prompts(settings, jobs)
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


def _prompts_of(file: str) -> list[str]:
    """The prompts of a file, each once."""
    from lightx2v_sgmd.files.prompts import read_prompts

    return list(dict.fromkeys(read_prompts(file)))


def _fitting(settings: Settings, base: Job, every: int) -> Settings:
    """The settings as far as there are prompts and iterations, with the file of the prompts."""
    if settings.prompts < 2:
        raise UserError(f"--prompts: {settings.prompts} is too few; use 2 or more")
    if every < 1:
        raise UserError(f"--every: {every} is too few; use 1 or more")
    count, evaluation = settings.prompts, settings.evaluation
    if evaluation is None and not _checkable(base):
        evaluation = str(config_path(EVALUATION_PROMPTS))
    if evaluation is not None:
        evaluation = str(Path(evaluation).absolute())
        try:
            found = len(_prompts_of(evaluation))
        except UserError as error:
            raise UserError(f"--evaluation-prompts: {error}") from error
        count = min(count, found)
        if count < 2:
            raise UserError(
                f"--evaluation-prompts: {evaluation} has {found} prompt; give 2 or more"
            )
    return replace(
        settings,
        prompts=count,
        curve_prompts=min(settings.curve_prompts, count),
        every=min(every, base.train.iterations),
        groups=min(settings.groups, count),
        shown=min(settings.shown, count),
        evaluation=evaluation,
    )


def _refuse_training_prompts(settings: Settings, jobs: Mapping[str, Job]) -> None:
    """Refuses evaluation prompts that a row trains on."""
    if settings.evaluation is None:
        return  # held-out captions are none of the world's training captions
    wanted = _prompts_of(settings.evaluation)
    for label, job in jobs.items():
        trained = set(captions(job))
        both = [prompt for prompt in wanted if prompt in trained]
        if both:
            raise UserError(
                f"--evaluation-prompts: {settings.evaluation} has {len(both)} of {label}'s "
                f'training prompts (data.prompts), "{shortened(both[0], 60)}" among them; remove '
                "them, or name a file of other prompts"
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
