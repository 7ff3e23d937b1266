"""Reading a job: relative paths, overrides, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.resources import config_path
from tests.job.minimal import mistake, mistakes


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
    assert mistake(nowhere) == f"{nowhere}: no such file; use one of the jobs in {shipped.parent}"
    assert mistake(near) == f"{near}: no such file; did you mean {shipped}?"


def test_a_folder_is_no_job(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"{tmp_path}: is a folder, not a file; name a file"
