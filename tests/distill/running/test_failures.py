"""A number that is not one: what the run leaves, and its replay."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import distill
from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text.cache import prompt_key
from tests.parallel.ranks import run_ranks
from tests.training import PROMPTS, make_job, needs_deepspeed


def failed_state(message: str) -> tuple[str, Path]:
    """The cause that an error line gives, and the folder that it names."""
    found = re.fullmatch(
        r"(step .*); `lightx2v-sgmd replay-failure (\S+)` repeats the update; lower .*", message
    )
    assert found, message
    return found[1], Path(found[2])


@pytest.mark.parametrize(
    ("settings", "update"),
    [
        (["student.optimizer.lr=1e30"], 0),
        (["method.name=dmd2", "fake_score.optimizer.lr=1e30"], 2),
    ],
    ids=["the first update", "a later one"],
)
def test_a_run_that_diverges_can_be_replayed(
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    update: int,
) -> None:
    sizes = ["train.warmup=0", "train.micro_batch=1", "train.accumulation=2"]
    job = make_job(tiny_teacher, tmp_path, *sizes, *settings)
    with pytest.raises(UserError) as stopped:
        distill(job, quiet=True)
    problem, folder = failed_state(str(stopped.value))
    assert folder.parent == job.output.dir / "failed"
    store.verify(folder)
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["update"] == update
    assert f"step_{failure['iteration'] + 1:06d}" == folder.name
    (term, videos), *_ = failure["videos"].items()
    assert f"the loss {term} is not finite" in problem
    assert all(0 < video["time"] < 1 for video in videos)
    assert failure["captions"].keys() == {str(video["prompt"]) for video in videos}
    capsys.readouterr()
    assert run_cli(["replay-failure", str(folder)]) == 1
    assert capsys.readouterr().out == f"{problem}\n"
    assert run_cli(["replay-failure", str(folder), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {"state": str(folder), "finite": False, "problem": problem}
    assert run_cli(["replay-failure", str(job.output.dir / "samples")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def train_on_poison(job: Job) -> str:
    try:
        distill(job, quiet=True)
    except (UserError, SystemExit) as error:  # one rank of a machine speaks
        return str(error)
    return "finished"


@pytest.mark.slow
@needs_deepspeed
def test_a_poisoned_embedding_on_two_ranks(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.embeddings={tmp_path / 'cache'}"
    distill(make_job(tiny_teacher, tmp_path / "first", cache, "train.iterations=1"), quiet=True)
    (file,) = (tmp_path / "cache").glob("*/rows_*.safetensors")
    original, key = load_file(file), prompt_key(PROMPTS[2])
    save_file({**original, key: torch.full_like(original[key], float("nan"))}, file)
    zero3 = ["parallel.strategy=zero3", "train.micro_batch=1", "train.accumulation=2"]
    job = make_job(tiny_teacher, tmp_path / "second", cache, *zero3)
    problem, folder = failed_state(run_ranks(2, train_on_poison, job))
    assert problem.endswith("is not finite for the prompts [2]")
    assert run_cli(["replay-failure", str(folder)]) == 1  # in one process
    assert problem in capsys.readouterr().out
    save_file(original, file)
    assert run_cli(["replay-failure", str(folder)]) == 0
    assert "everything is finite now" in capsys.readouterr().out


def write_failure(folder: Path, content: object) -> None:
    """Puts a failure into a checkpoint, and into its manifest."""
    file, manifest = folder / "failure.json", folder / "manifest.json"
    file.write_text(json.dumps(content))
    saved = json.loads(manifest.read_text())
    entry = {"size": file.stat().st_size, "sha256": sha256_file(file)}
    saved["files"]["failure.json"] = entry
    manifest.write_text(json.dumps(saved))


def test_what_is_no_failed_state_is_refused(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tiny_teacher, tmp_path, "train.iterations=1")
    folder = store.find_checkpoint(distill(job, quiet=True))
    assert run_cli(["replay-failure", str(folder)]) == 2
    assert "failure.json: no such file; name a folder RUN/failed/step_N" in capsys.readouterr().err
    index: dict[str, Any] = {"iteration": 0, "update": 0, "batch_index": 0, "videos": {}}
    wrongs: tuple[Any, ...] = (
        [],
        {},
        {**index, "iteration": -1},
        {**index, "videos": {"nr": [1]}},
        {**index, "videos": {"nr": [{"sample": "0"}]}},
    )
    for wrong in wrongs:
        write_failure(folder, wrong)
        assert run_cli(["replay-failure", str(folder)]) == 2
        assert "failure.json: is not as it was written" in capsys.readouterr().err
    write_failure(folder, {**index, "update": 9})
    assert run_cli(["replay-failure", str(folder)]) == 2
    assert "names an update that an iteration does not have" in capsys.readouterr().err
