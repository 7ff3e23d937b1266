from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.model_checks import check_against_model
from lightx2v_sgmd.job.schema import (
    Job,
    Lora,
    Optimizer,
    Parallel,
    Teacher,
    job_keys,
    load_job,
)
from lightx2v_sgmd.methods.sgmd import SGMD
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs

MINIMAL = """\
teacher:
  path: sprites
  guidance_scale: 3.0
data:
  prompts: captions.txt
video:
  height: 32
  width: 48
  num_frames: 17
train:
  iterations: 10
output:
  dir: runs/x
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_job(path, overrides)
    return str(caught.value).splitlines()


def mistake(path: Path, *overrides: str) -> str:
    lines = mistakes(path, *overrides)
    assert len(lines) == 1, lines
    return lines[0]


def test_a_minimal_job_gets_the_papers_defaults(file: Path) -> None:
    job = load_job(file)
    assert job.teacher == Teacher(path="sprites", guidance_scale=3.0)
    assert job.student.optimizer == job.fake_score.optimizer == Optimizer(1e-6, (0.0, 0.999))
    assert isinstance(job.method, SGMD) and job.method.lambda_ == 0.1
    assert (job.train.sigma_min, job.train.sigma_max, job.train.score_shift) == (0.02, 0.98, 5.0)
    assert job.schedule.timesteps.tolist() == pytest.approx([1000, 960, 888.889, 727.273], abs=1e-3)
    assert job.output.dir == Path("runs/x")


def test_a_job_is_frozen(file: Path) -> None:
    job = load_job(file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.train.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", shipped_jobs())
def test_shipped_jobs_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    job = load_job(config_path(name))
    saved = tmp_path / "elsewhere.yaml"
    saved.write_text(job.to_yaml())
    assert load_job(saved) == job


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_value_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str, lr: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(MINIMAL)
    job = load_job(path)
    job = dataclasses.replace(
        job,
        teacher=dataclasses.replace(job.teacher, negative_prompt=text),
        student=dataclasses.replace(job.student, optimizer=Optimizer(lr=lr)),
        train=dataclasses.replace(job.train, seed=seed),
    )
    path.write_text(job.to_yaml(), encoding="utf-8")
    assert load_job(path) == job


def test_numbers_are_read_as_in_yaml_1_2(file: Path) -> None:
    # PyYAML alone reads 1e-6 as text and 1:30 as 90.
    assert load_job(file, ["student.optimizer.lr=1e-6"]).student.optimizer.lr == 1e-6
    assert '"1:30" is not a whole number' in mistake(file, "train.seed=1:30")
    assert load_job(file, ["teacher.negative_prompt=no"]).teacher.negative_prompt == "no"


def test_every_mistake_of_a_file_is_reported_at_once(file: Path) -> None:
    text = MINIMAL.replace("  iterations: 10\n", "  iteratons: 10\n  clip: -1\n  sigma_min: 0.99\n")
    file.write_text(text.replace("height: 32", "height: 33").replace("3.0", "lots"))
    assert [line.removeprefix(str(file)) for line in mistakes(file, "parallel.sequence=2")] == [
        ":11: train.iteratons: unknown key; did you mean train.iterations?",
        ':3: teacher.guidance_scale: "lots" is not a number',
        ":10: train.iterations: is missing; a job must give it",
        ":12: train.clip: -1 is too small; use more than 0.0",
        ":13: train.sigma_min: 0.99 is not below train.sigma_max, which is 0.98; lower it",
        ":7: video.height: 33 is not divisible by 16 (VAE 8 times patch 2); use 32 or 48",
        "--set: parallel.sequence: 2 needs parallel.strategy zero3, not local; use 1 or change the "
        "strategy",
    ]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.iteratons=3", "did you mean train.iterations?"),
        ("trian.seed=3", "did you mean train?"),
        ("method.lamda=3", "did you mean method.lambda?"),
        ("train.lr=1", "did you mean student.optimizer.lr or fake_score.optimizer.lr?"),
        ("seed=1", "did you mean train.seed?"),
        ("student.optimiser.lr=1", "did you mean student.optimizer?"),
        ("output.qqqq=1", "output has dir"),
        ("method.lambda_=1", "did you mean method.lambda?"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, override: str, hint: str) -> None:
    line = mistake(file, override)
    assert line.endswith(f"unknown key; {hint}"), line
    assert line.startswith("--set: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed=1.5", "train.seed: 1.5 is not a whole number"),
        ('train.seed="1"', 'train.seed: "1" is not a whole number'),
        ("train.seed=-1", "train.seed: -1 is too small; use 0 or more"),
        ("train.ema=1", "train.ema: 1 is too large; use less than 1.0"),
        ("train.clip=.nan", "train.clip: NaN is not a finite number"),
        ("train.sample_every=0", "train.sample_every: 0 is too small; use 1 or more"),
        ("train.checkpoint_every=0", "train.checkpoint_every: 0 is too small; use 1 or more"),
        ("train.micro_batch=true", "train.micro_batch: true is not a whole number"),
        ("teacher.path=", "teacher.path: is empty"),
        ("teacher.dtype=fp16", "use float32 or bfloat16"),
        ("student.train=half", 'student.train: "half" is not available; use full or lora'),
        ("student.lora.rank=8", "student.lora: are for train: lora, not full; leave them out"),
        ("fake_score={train: lora, lora: {rank: 0}}", "fake_score.lora.rank: 0 is too small"),
        ("fake_score={train: lora, lora: {alpha: 0}}", "fake_score.lora.alpha: 0 is too small"),
        ("student={train: lora, lora: {targets: []}}", "student.lora.targets: "),
        ("student={train: lora, lora: {dropout: 1}}", "student.lora.dropout: unknown key"),
        ("student={train: lora, lora: 3}", "student.lora: 3 is not a section"),
        ("student.optimizer.betas=0.9", "0.9 is not a list such as [0.0, 0.999]"),
        ("student.optimizer.betas=[0, 1]", "student.optimizer.betas: 1 is too large"),
        ("student.optimizer.betas=[0]", "student.optimizer.betas: has too few values"),
        ("student.optimizer.betas=[0, 0, 0]", "student.optimizer.betas: has too many values"),
        ("train=3", "train: 3 is not a section"),
        (
            "parallel.gradient_checkpointing=yes",
            '"yes" is not available; use false, selective or true',
        ),
        (
            "video.num_frames=16",
            "16 is not 4k + 1 (the VAE keeps one frame, then takes four); use 13 or 17",
        ),
        ("video.num_frames=15", "15 is not 4k + 1"),
        ("video.width=40", "40 is not divisible by 16"),
        ("method.name=dmd3", "'dmd3' is unknown; use one of adm, adp, dmd2"),
        ("parallel.offload=all", "all needs parallel.strategy zero3, not local"),
        ("parallel.offload=nvme", "parallel.offload_dir: is missing, but parallel.offload is nvme"),
        ("parallel.offload_dir=disk", "is for parallel.offload nvme, not none; leave it out"),
        ("schedule.solver=heun", "schedule: "),
        ("output.dir=7", "output.dir: 7 is not text"),
    ],
)
def test_a_bad_value_is_one_line(file: Path, override: str, message: str) -> None:
    assert message in "\n".join(mistakes(file, override))


def test_the_options_of_another_method_are_one_line(tmp_path: Path, file: Path) -> None:
    based = tmp_path / "based.yaml"
    based.write_text(f"base: {file.name}\nmethod: {{name: dmd2, gan_weight: 0.0, floor: 1.0e-4}}\n")
    line = mistake(based, "method.name=sid")
    assert "--set: method.name: sid has no gan_weight, floor, which" in line
    assert line.endswith('replace the whole section: --set "method={name: sid}"')
    assert load_job(based, ["method={name: sid}"]).method.name == "sid"
    # What was written for the method itself is a mistake of its own.
    lines = mistakes(based, "method.name=sid", "method.gan_weight=1")
    assert len(lines) == 2 and "method.gan_weight: unknown key" in lines[1]


@pytest.mark.parametrize("override", ["schedule.shift=5", "schedule.base=[1000, 400]"])
def test_another_schedule_is_refused_with_the_reason(file: Path, override: str) -> None:
    line = mistake(file, override)
    assert "--set" in line or str(file) in line
    assert "1000, 960, 888.889, 727.273 are [1000, 750, 500, 250]" in line


def test_adapters_are_resolved_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    job = load_job(file, ["student.train=lora", "fake_score={train: lora, lora: {alpha: 16}}"])
    assert job.student.lora == Lora() and Lora().scale == 1
    assert job.fake_score.lora == Lora(rank=64, alpha=16.0) and job.fake_score.lora.scale == 0.25
    saved = tmp_path / "saved.yaml"
    saved.write_text(job.to_yaml())
    assert load_job(saved) == job and "rank: 64" in job.to_yaml()
    assert load_job(saved, ["student={train: full, lora: null}"]).student.adapters is None
    assert "student.lora.rank" in job_keys()


def test_sequence_parallelism_needs_zero3(file: Path) -> None:
    line = mistake(file, "parallel.sequence=2")
    assert "parallel.sequence: 2 needs parallel.strategy zero3, not local" in line
    zero3 = ["parallel.sequence=2", "parallel.strategy=zero3"]
    assert load_job(file, zero3).parallel.sequence == 2


@pytest.mark.parametrize(
    ("heads", "degree", "degrees"),
    [(12, 8, "1, 2, 3, 4, 6 or 12"), (40, 3, "1, 2, 4, 5, 8, 10, 20 or 40")],
)
def test_a_sequence_degree_must_divide_the_heads(
    file: Path, heads: int, degree: int, degrees: str
) -> None:
    job = load_job(file)
    shapes: list[tuple[int, int, int]] = []
    model = SimpleNamespace(num_heads=heads, latent_shape=lambda *size: shapes.append(size))

    def with_degree(degree: int) -> Job:
        return dataclasses.replace(job, parallel=Parallel(strategy="zero3", sequence=degree))

    with pytest.raises(UserError) as caught:
        check_against_model(with_degree(degree), model)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"parallel.sequence: {degree} does not divide the {heads} attention heads of sprites; "
        f"use {degrees}"
    )
    check_against_model(with_degree(4), model)  # type: ignore[arg-type]
    assert shapes == [(32, 48, 17)]


def test_overrides_replace_and_the_last_wins(file: Path) -> None:
    job = load_job(file, ["train.seed=1", "train.seed=2", "student.optimizer={lr: 0.5}"])
    assert (job.train.seed, job.student.optimizer.lr) == (2, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed", "--set train.seed: is not KEY=VALUE; write --set train.seed=1"),
        ("=1", "--set =1: is not KEY=VALUE; write --set train.seed=1"),
        ("train..seed=1", "--set train..seed=1: is not KEY=VALUE; write --set train.seed=1"),
        (
            "teacher.path.x=3",
            "--set teacher.path.x=3: teacher.path is a value, 'sprites', not a section",
        ),
    ],
)
def test_a_bad_override_is_one_line(file: Path, override: str, message: str) -> None:
    assert mistake(file, override) == message


def test_an_override_that_is_no_yaml_names_the_place(file: Path) -> None:
    assert mistake(file, "train.seed={").startswith("--set train.seed={: not valid YAML in line 1")


def test_prompts_are_relative_to_the_job_or_for_set_to_the_current_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load_job(file).data.prompts == str(tmp_path / "captions.txt")
    assert load_job(file, ["data.prompts=b.txt"]).data.prompts == str(here / "b.txt")
    assert load_job(file, ["data.prompts=sprites"]).data.prompts == "sprites"
    assert load_job(file, ["data.embeddings=cache"]).data.embeddings == here / "cache"
    assert load_job(Path("../job.yaml")).output.dir == Path("runs/x")


def test_an_override_of_a_similar_key_moves_no_other_path(file: Path, tmp_path: Path) -> None:
    job = load_job(file, ["data.embeddings=null"])
    assert job.data.prompts == str(tmp_path / "captions.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": is empty;"),
        (b"# only a comment\n", ": is empty;"),
        (b"- a\n- b\n", ": holds a list;"),
        (b"just words\n", ": holds a single value;"),
        (b"teacher:\n  path: [1\n", ": not valid YAML in line 3, column 1"),
        (b"teacher:\n\tpath: x\n", ": not valid YAML in line 2, column 1"),
        (b"a: \xff\n", ":1: byte 0xff is not UTF-8"),
        (b"train:\n  seed: 1\n  seed: 2\n", ":3: train.seed: given twice, first in line 2"),
        (b"train: !!python/object:os.system {}\n", ": not valid YAML in line 1, column 8"),
        (b"a: &a [*a]\n", ": not valid YAML in line 1, column 8: an alias"),
        (b"a: &a {b: *a}\n", ": an alias stands within what it names"),
        (b"a: \x00\n", ": not valid YAML: special characters are not allowed"),
    ],
)
def test_a_file_that_is_no_job(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert mistakes(file)[0].startswith(f"{file}")
    assert message in mistakes(file)[0]


def test_a_missing_file_names_the_shipped_jobs(tmp_path: Path) -> None:
    nowhere, near = tmp_path / "nowhere.yaml", tmp_path / "sprite_sgmd.yaml"
    shipped = config_path("sprites_sgmd.yaml")
    assert mistake(nowhere) == f"{nowhere}: no such file; the shipped jobs are in {shipped.parent}"
    assert mistake(near) == f"{near}: no such file; did you mean {shipped}?"


def test_a_folder_is_no_job(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"{tmp_path}: is a folder, not a file"


def test_the_contracts_keys_exist() -> None:
    keys = """teacher.path teacher.guidance_scale method.name method.lambda method.weighting
    schedule.shift train.iterations train.micro_batch train.accumulation train.seed
    train.checkpoint_every train.sample_every parallel.strategy parallel.sequence output.dir"""
    assert set(keys.split()) <= set(job_keys())


@settings(max_examples=100, deadline=None)
@given(
    tree=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    key=st.sampled_from(job_keys()),
)
def test_no_value_anywhere_ends_in_anything_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, tree: object, key: str
) -> None:
    import json

    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(MINIMAL)
    try:
        load_job(path, [f"{key}={json.dumps(tree)}"])
    except UserError as error:
        assert "Traceback" not in str(error)
