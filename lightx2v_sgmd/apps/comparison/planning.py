"""Decides what a comparison does: checks what was asked for and makes a job for each row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightx2v_sgmd.apps.comparison.folder import captions
from lightx2v_sgmd.apps.comparison.plan import (
    MOST_COUNT,
    TEACHER,
    UNDISTILLED,
    Plan,
    Settings,
    checkable,
    images_of,
    prompts_of,
)
from lightx2v_sgmd.apps.comparison.saved import check_same_comparison, check_shared
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.files.yaml_loader import parse_value
from lightx2v_sgmd.job.inheritance import read_job_tree
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import refuse_overlap, resolved
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.system.resources import config_path

EVALUATION_PROMPTS = "prompts/evaluation.txt"
"""The shipped file of prompts that no shipped job trains on."""


SHARED = ("teacher", "schedule", "data", "video", "train", "parallel", "output")
"""Sections that every row takes from the job that was named; the others are the method's own."""


_MOST_SEEDS = 1000
_MOST_ROWS = 1000


_METHODS_OWN = ("score_shift",)
"""Keys of the section ``train`` that belong to the method: ADM's score times are uniform."""


_OURS = {
    "output.dir": "runs go below --out",
    "train.checkpoint_every": "--every says when snapshots are taken",
    "train.keep_checkpoints": "snapshots are kept without it",
    "method.name": "--methods says what is compared",
}


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
    if seeds > _MOST_SEEDS:
        raise UserError(f"--seeds: {seeds} is too many; use at most {_MOST_SEEDS:,}")
    _refuse_ours(overrides, "--set")
    check_writable(out, folder=True)
    base = load_job(job_file, overrides)
    names = _methods(methods, base)
    own = _by_method(method_overrides, names)
    key, values = _sweep(sweep)
    jobs: dict[str, Job] = {}
    for method in names:
        sections = _method_sections(job_file, base, method)
        for value in values:
            swept = [] if value is None else [f"{key}={value}"]
            label = method if value is None else f"{method} {key.split('.')[-1]}={value}"
            settled = [*sections, *overrides, *own.get(method, []), *swept]
            try:
                jobs[label] = load_job(job_file, settled)
            except UserError as error:
                raise UserError(*(f"{method}: {line}" for line in error.lines)) from error
    from distill.model_checks import check_against_model, job_sources

    for job in jobs.values():
        refuse_overlap(resolved(out), job_sources(job))
    model = open_teacher(base.teacher)
    base = with_defaults(base, model)
    jobs = {label: with_defaults(job, model) for label, job in jobs.items()}
    check_against_model(base, model)
    settings = settings or Settings()
    every = every if every is not None else max(1, -(-base.train.iterations // 10))
    settings = _fitting(settings, base, every)
    _check_images(settings, model)
    _refuse_training_prompts(settings, jobs)
    first = base.train.seed
    plan = Plan(out, jobs, tuple(range(first, first + seeds)), settings)
    check_shared(plan)
    check_same_comparison(plan)
    return plan


def _methods(methods: Sequence[str], base: Job) -> list[str]:
    from lightx2v_sgmd.methods import method_names

    names = [name.strip() for name in methods] or [base.method.name]
    for name in names:
        if name not in method_names():
            raise UserError(f"--methods: {name!r} is unknown; use {', '.join(method_names())}")
        if name in (TEACHER, UNDISTILLED):
            raise UserError(f"--methods: {name} is what a row of every table is called; rename it")
        if names.count(name) > 1:
            raise UserError(f"--methods: {name} is given twice; give each once")
    return names


def _refuse_ours(overrides: Sequence[str], option: str) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _OURS:
            raise UserError(f"{option} {override}: {_OURS[key]}; leave it out")


def _by_method(overrides: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """``dmd2:student.optimizer.lr=5e-5`` by method."""
    found: dict[str, list[str]] = {}
    for override in overrides:
        method, colon, setting = override.partition(":")
        if not colon or "=" not in setting:
            raise UserError(
                f"--method-set {override}: is not METHOD:KEY=VALUE; write "
                f"--method-set {names[0]}:student.optimizer.lr=5e-5"
            )
        if method not in names:
            raise UserError(
                f"--method-set {override}: {method} is not compared; use {', '.join(names)}"
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
    if len(values) > _MOST_ROWS:
        raise UserError(
            f"--sweep: {shortened(key)} has {len(values):,} values, and a comparison has at most "
            f"{_MOST_ROWS:,} rows; give fewer"
        )
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
    """The sections that are the method's own, as overrides of the job."""
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


def _fitting(settings: Settings, base: Job, every: int) -> Settings:
    """The settings as far as there are prompts and iterations, with the file of the prompts."""
    for option, asked, least in (
        ("--prompts", settings.prompts, 2),
        ("--curve-prompts", settings.curve_prompts, 1),
        ("--every", every, 1),
    ):
        if asked < least:
            raise UserError(f"{option}: {asked} is too few; use {least} or more")
        if option != "--every" and asked > MOST_COUNT:
            raise UserError(f"{option}: {asked} is too many; use at most {MOST_COUNT:,}")
    if base.train.iterations // every > MOST_COUNT:
        raise UserError(
            f"--every: {every} gives {base.train.iterations // every:,} snapshots of a run; use a "
            f"larger number, for at most {MOST_COUNT:,}"
        )
    count, evaluation = settings.prompts, settings.evaluation
    if evaluation is None and not checkable(base):
        evaluation = str(config_path(EVALUATION_PROMPTS))
    if evaluation is not None:
        evaluation = str(Path(evaluation).absolute())
        try:
            found = len(prompts_of(evaluation))
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


def _check_images(settings: Settings, model: Model) -> None:
    """Refuses evaluation prompts whose images the teacher needs and lacks, or cannot start from.

    Raises:
        UserError: it is so, or an image cannot be read.
    """
    file = settings.evaluation
    images = {} if file is None else images_of(file)
    if model.takes_image == "never" and images:
        raise UserError(
            f"--evaluation-prompts: {file} names images, and {model.path} makes "
            f"{'images' if model.size_rules.images else 'videos'} from text alone; leave them out"
        )
    wanted = [] if file is None else prompts_of(file)[: settings.prompts]
    if model.takes_image == "always" and not (wanted and images.keys() >= {*wanted}):
        raise UserError(
            f"--evaluation-prompts: {file} has prompts without an image, and {model.path} starts "
            'from one; give a .jsonl file whose lines have "prompt" and "image"'
        )
    for image in images.values():
        check_image(image)


def _refuse_training_prompts(settings: Settings, jobs: Mapping[str, Job]) -> None:
    """Refuses evaluation prompts that a row trains on."""
    if settings.evaluation is None:
        return  # held-out captions are none of the world's training captions
    wanted = prompts_of(settings.evaluation)
    for label, job in jobs.items():
        trained = set(captions(job))
        both = [prompt for prompt in wanted if prompt in trained]
        if both:
            raise UserError(
                f"--evaluation-prompts: {settings.evaluation} has {len(both)} of {label}'s "
                f'training prompts (data.prompts), "{shortened(both[0], 60)}" among them; remove '
                "them, or name a file of other prompts"
            )
