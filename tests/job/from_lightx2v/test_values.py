"""Values of their YAML are found with their lines, and the job's say where they come from."""

from pathlib import Path

import pytest

from lightx2v_sgmd.job.from_lightx2v.values import Ours, Theirs
from lightx2v_sgmd.system.errors import UserError

TREE = {"model": {"lr": 2, "name": "x", "on": True, "far": float("inf")}, "empty": {}}
LINES = {"model": 3, "model.lr": 4, "model.name": 5}


def theirs() -> Theirs:
    return Theirs(TREE, Path("t.yaml"), LINES)


def test_values_are_found_by_dotted_key_and_line() -> None:
    found = theirs()
    assert found.values["model.lr"] == 2 and found.values["empty"] == {}
    assert found.get("model.none", 7) == 7
    assert found.where("model.lr") == "t.yaml:4 model.lr"
    assert found.where("model.none") == "t.yaml:3 model.none"
    assert found.where("none") == "t.yaml none"


def test_only_finite_numbers_are_numbers() -> None:
    assert theirs().number("model.lr", 1) == 2 and theirs().number("none", 1.5) == 1.5
    for key in ("name", "on", "far"):
        with pytest.raises(UserError, match=rf"model\.{key}: .* is not a (finite )?number"):
            theirs().number(f"model.{key}", 1)


def test_the_jobs_values_name_their_origin() -> None:
    job = Ours(theirs())
    job.copy("student.optimizer.lr", "model.lr")
    job.copy("train.seed", "model.none")
    job.copy("train.clip", "model.none", 10.0)
    assert job.tree == {"student": {"optimizer": {"lr": 2}}, "train": {"clip": 10.0}}
    assert job.origins["student.optimizer.lr"] == "t.yaml:4 model.lr"
    assert job.origins["train.clip"] == "t.yaml:3 model.none, its default there"
