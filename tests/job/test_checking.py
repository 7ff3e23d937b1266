from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v_sgmd.job.loading import job_keys, load_job
from lightx2v_sgmd.system.errors import UserError
from tests.job.minimal import MINIMAL, mistake, mistakes


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
        ':3: teacher.guidance_scale: "lots" is not a number; write one',
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
        ("output.qqqq=1", "output has dir, trackers"),
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
        ("fake_score={train: lora, lora: {rank: 0}}", "fake_score.lora.rank: 0 is too small"),
        ("fake_score={train: lora, lora: {alpha: 0}}", "fake_score.lora.alpha: 0 is too small"),
        ("student={train: lora, lora: {targets: []}}", "student.lora.targets: "),
        ("student={train: lora, lora: {dropout: 1}}", "student.lora.dropout: unknown key"),
        ("student={train: lora, lora: 3}", "student.lora: 3 is not a section"),
        ("student.optimizer.betas=0.9", "0.9 is not a list such as [0.0, 0.999]"),
        ("teacher.loras=a.safetensors", 'is not a list such as ["a.safetensors"]'),
        ("student.optimizer.betas=[0, 1]", "student.optimizer.betas: 1 is too large"),
        ("student.optimizer.betas=[0]", "student.optimizer.betas: has too few values"),
        ("student.optimizer.betas=[0, 0, 0]", "student.optimizer.betas: has too many values"),
        ("train=3", "train: 3 is not a section"),
        (
            "parallel.gradient_checkpointing=yes",
            '"yes" is not available; use false, selective or true',
        ),
        ("method.name=dmd3", "'dmd3' is unknown; use one of adm, adp, dmd2"),
        ("schedule.solver=heun", '"heun" is not available; use euler, ddim or renoise'),
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
    # A slip in an option is no option of another method.
    assert "method.flooor: unknown key; did you mean method.floor?" in mistake(
        based, "method.flooor=1"
    )


SLIPS = [
    ("sprites_sgmd.yaml", "method: {lamda: 1}", "method.lamda", "method.lambda"),
    ("sprites_sgmd.yaml", "method: {name: sgmd, lamda: 1}", "method.lamda", "method.lambda"),
    (
        "sprites_dmd2.yaml",
        "method: {fake_score_update: 3}",
        "method.fake_score_update",
        "method.fake_score_updates",
    ),
    (
        "sprites_dmd2.yaml",
        "method: {gan_weight: 0.1, discriminator: {width: 4}}",
        "method.discriminator.width",
        "video.width",
    ),
    (
        "sprites_dmdx.yaml",
        "method: {adp: {latent_wieght: 1}}",
        "method.adp.latent_wieght",
        "method.adp.latent_weight",
    ),
    ("sprites_sgmd.yaml", "student: {trian: lora}", "student.trian", "student.train"),
]


@pytest.mark.parametrize(("base", "section", "key", "meant"), SLIPS)
def test_a_slip_over_a_base_is_told_where_it_stands(
    tmp_path: Path, base: str, section: str, key: str, meant: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {base}\n\n{section}\n")
    assert mistake(path) == f"{path}:3: {key}: unknown key; did you mean {meant}?"


def test_a_slip_in_a_base_is_told_there_whoever_names_the_method(tmp_path: Path) -> None:
    low, middle, top = (tmp_path / name for name in ("low.yaml", "middle.yaml", "top.yaml"))
    low.write_text(f"{MINIMAL}method: {{lamda: 1}}\n")
    middle.write_text("base: low.yaml\nmethod: {name: sgmd}\n")
    top.write_text("base: middle.yaml\ntrain: {seed: 1}\n")
    expected = f"{low}:14: method.lamda: unknown key; did you mean method.lambda?"
    assert [mistake(path) for path in (low, middle, top)] == [expected] * 3
    # The method that the files have anyway is no other one.
    assert mistake(top, "method.name=sgmd") == expected
    assert mistake(low, "method.name=sgmd") == expected
    left = mistake(top, "method.name=dmd2")
    assert f"dmd2 has no lamda, which {low} sets for another method" in left


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
            "--set teacher.path.x=3: teacher.path is a value, 'sprites', not a section; "
            "set teacher.path itself",
        ),
    ],
)
def test_a_bad_override_is_one_line(file: Path, override: str, message: str) -> None:
    assert mistake(file, override) == message


def test_an_override_that_is_no_yaml_names_the_place(file: Path) -> None:
    assert mistake(file, "train.seed={").startswith("--set train.seed={: not valid YAML in line 1")


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
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(MINIMAL)
    try:
        load_job(path, [f"{key}={json.dumps(tree)}"])
    except UserError as error:
        assert "Traceback" not in str(error)
