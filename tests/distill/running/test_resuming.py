"""A run goes on at another number of processes, or of processes on one video, as if it had not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.data import load_prompts
from distill.running.resuming import check_same_run, trainer_state
from lightx2v_sgmd.files.checkpoint import checkpoint_name
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.training import make_job, needs_deepspeed, read_trace, train, weights_of

pytestmark = [needs_deepspeed, pytest.mark.slow]

ITERATIONS, RESUMED_AT = 7, 2
# Processes, micro-batch, accumulation, processes on one video: a global batch of four.
LAYOUTS = {
    "one rank": (1, 2, 2, 1),
    "two ranks": (2, 2, 1, 1),
    "four ranks": (4, 1, 1, 1),
    "two ranks on one video": (2, 2, 2, 2),
}


def job_of(layout: str, teacher: Path, folder: Path) -> Job:
    _, micro_batch, accumulation, sequence = LAYOUTS[layout]
    return make_job(
        teacher,
        folder,
        f"train.iterations={ITERATIONS}",
        f"train.checkpoint_every={RESUMED_AT}",
        "train.keep_checkpoints=9",
        "parallel.strategy=zero3",
        f"train.micro_batch={micro_batch}",
        f"train.accumulation={accumulation}",
        f"parallel.sequence={sequence}",
    )


@pytest.fixture(scope="module")
def straight(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs."""
    runs = {}
    for layout in ("one rank", "two ranks"):
        job = job_of(layout, tiny_teacher, tmp_path_factory.mktemp("straight"))
        runs[layout] = train(job, LAYOUTS[layout][0])
    return runs


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("two ranks", "two ranks"),
        ("two ranks", "one rank"),
        ("one rank", "two ranks"),
        ("two ranks", "four ranks"),
        ("two ranks", "two ranks on one video"),
    ],
)
def test_resuming_in_another_layout(
    tiny_teacher: Path, tmp_path: Path, straight: dict[str, Path], before: str, after: str
) -> None:
    reference = straight[before]
    job = job_of(after, tiny_teacher, tmp_path)
    folder = Path("checkpoints") / checkpoint_name(RESUMED_AT)
    shutil.copytree(reference / folder, job.output.dir / folder)
    train(job, LAYOUTS[after][0])
    theirs = read_trace(reference)[RESUMED_AT:]
    ours = read_trace(job.output.dir)
    last = Path("checkpoints") / checkpoint_name(ITERATIONS)
    weights, expected = weights_of(job.output.dir / last), weights_of(reference / last)
    assert len(ours) == 5 and weights.keys() == expected.keys()
    if before == after:
        assert ours == theirs
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        return
    # Rounding: Adam makes of a gradient's last bit the weight's. Losses are compared less closely,
    # for the Fisher term is a small difference of large numbers.
    for name, value in expected.items():
        difference = float((weights[name] - value).norm() / value.norm())
        assert difference <= 1e-6, name
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["exit_step"] == its["exit_step"]
        assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=5e-6)
        terms = ("fisher", "nr", "rc")
        assert [mine[t] for t in terms] == pytest.approx([its[t] for t in terms], rel=5e-6)


@pytest.mark.parametrize(
    ("layout", "micro_batch", "remedy"),
    [
        ("two ranks", 1, "set train.accumulation=2"),
        (
            "one rank",
            3,
            "on so many processes, train.micro_batch times train.accumulation must be 4",
        ),
        (
            "four ranks",
            3,
            "on so many processes, train.micro_batch times train.accumulation must be 1",
        ),
    ],
)
def test_another_global_batch_is_refused_with_what_to_set(
    tiny_teacher: Path,
    tmp_path: Path,
    straight: dict[str, Path],
    layout: str,
    micro_batch: int,
    remedy: str,
) -> None:
    folder = straight["two ranks"] / "checkpoints" / checkpoint_name(RESUMED_AT)
    job = job_of(layout, tiny_teacher, tmp_path)
    job = replace(job, train=replace(job.train, micro_batch=micro_batch))
    ranks = Ranks(size=LAYOUTS[layout][0])
    with pytest.raises(UserError, match=f"not the 4 of .*; {remedy}, or start again with") as error:
        check_same_run(folder, job, trainer_state(job, load_prompts(job), ranks))
    assert "\n" not in str(error.value)


def test_more_processes_than_videos(tiny_teacher: Path, straight: dict[str, Path]) -> None:
    folder = straight["two ranks"] / "checkpoints" / checkpoint_name(RESUMED_AT)
    job = job_of("two ranks", tiny_teacher, straight["two ranks"].parent)
    with pytest.raises(UserError, match="; the number of processes must divide 4, or start again"):
        check_same_run(folder, job, trainer_state(job, load_prompts(job), Ranks(size=3)))


@pytest.mark.parametrize("newer", ["ema_start", "solver"])
def test_a_job_of_an_older_version_has_the_defaults_of_newer_keys(
    tiny_teacher: Path, tmp_path: Path, straight: dict[str, Path], newer: str
) -> None:
    folder = Path(checkpoint_name(RESUMED_AT))
    saved = shutil.copytree(straight["one rank"] / "checkpoints" / folder, tmp_path / folder)
    text = (saved / "job.yaml").read_text(encoding="utf-8")
    older = "".join(line for line in text.splitlines(True) if newer not in line)
    assert older != text
    (saved / "job.yaml").write_text(older, encoding="utf-8")
    job = job_of("one rank", tiny_teacher, tmp_path)
    state = trainer_state(job, load_prompts(job), Ranks())
    assert check_same_run(saved, job, state).step == RESUMED_AT
    job = replace(job, train=replace(job.train, ema_start=1))
    with pytest.raises(UserError, match=r"train\.ema_start: the job says 1, but"):
        check_same_run(saved, job, state)
