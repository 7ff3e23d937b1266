"""Jobs with a base: what is merged, where values come from, and which bases are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.job.inheritance import read_job_tree
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.methods.dmd2 import DMD2
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs

FULL = {
    "cogvideox_2b_sgmd.yaml",
    "sd3_medium_sgmd.yaml",
    "sprites_sgmd.yaml",
    "wan2.1_t2v_1.3b_sgmd.yaml",
    "wan2.1_t2v_14b_sgmd.yaml",
}
"""The first job of each teacher that shares almost no value with another."""

LONGER = {"sdxl_dmdx.yaml", "wan2.1_t2v_14b_sgmd_public.yaml"}
"""Jobs that state more; the reason is in ``configs/README.md``."""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_are_merged_key_by_key_over_several_levels(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "train: {iterations: 5, seed: 1}\nvideo: {height: 32, width: 32}\n")
    write(tmp_path, "b.yaml", "base: a.yaml\ntrain: {seed: 2}\nvideo:\n  height: 48\n")
    job = read_job_tree(write(tmp_path, "c.yaml", "base: b.yaml\n\ntrain:\n  iterations: 9\n"))
    assert job.tree == {
        "train": {"iterations": 9, "seed": 2},
        "video": {"height": 48, "width": 32},
    }
    assert job.origins["train.iterations"] == f"{tmp_path / 'c.yaml'}:4"
    assert job.origins["train.seed"] == f"{tmp_path / 'b.yaml'}:2"
    assert job.origins["video.width"] == f"{tmp_path / 'a.yaml'}:2"


def test_lists_and_values_replace_sections_and_their_origins(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "schedule: {base: [1000, 500]}\nstudent: {lora: {rank: 4}}\n")
    text = "base: a.yaml\nschedule: {base: [1000]}\nstudent: {lora: null}\n"
    job = read_job_tree(write(tmp_path, "b.yaml", text))
    assert job.tree == {"schedule": {"base": [1000]}, "student": {"lora": None}}
    assert "student.lora.rank" not in job.origins


def test_another_method_begins_afresh_and_the_same_one_does_not(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "method: {name: sgmd, lambda: 0.5}\n")
    other = "base: a.yaml\nmethod: {name: dmd2}\n"
    same = "base: a.yaml\nmethod: {weighting: paper}\n"
    assert read_job_tree(write(tmp_path, "b.yaml", other)).tree["method"] == {"name": "dmd2"}
    merged = read_job_tree(write(tmp_path, "c.yaml", same)).tree["method"]
    assert merged == {"name": "sgmd", "lambda": 0.5, "weighting": "paper"}
    # A method without a name is sgmd.
    write(tmp_path, "a.yaml", "method: {lambda: 0.5}\n")
    named = read_job_tree(write(tmp_path, "d.yaml", "base: a.yaml\nmethod: {name: sgmd}\n"))
    assert named.tree["method"] == {"name": "sgmd", "lambda": 0.5}


def test_a_shipped_job_is_a_base_from_any_folder(tmp_path: Path) -> None:
    text = "base: sprites_dmd2.yaml\ndata: {prompts: mine.txt}\noutput: {dir: run}\n"
    write(tmp_path, "mine.txt", "a red circle\n")
    job = load_job(write(tmp_path, "job.yaml", text))
    assert isinstance(job.method, DMD2) and job.train.iterations == 500
    assert job.data.prompts == str(tmp_path / "mine.txt")


def test_paths_are_relative_to_the_file_that_states_them(tmp_path: Path) -> None:
    text = "base: sprites_sgmd.yaml\ndata: {prompts: p.txt, embeddings: kept}\n"
    write(tmp_path, "there/a.yaml", text)
    path = write(tmp_path, "here/b.yaml", "base: ../there/a.yaml\ndata: {embeddings: own}\n")
    job = load_job(path)
    assert Path(job.data.prompts).resolve() == (tmp_path / "there" / "p.txt").resolve()
    assert job.data.embeddings == tmp_path / "here" / "own"


def test_a_mistake_in_a_base_is_named_where_it_stands(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: sprites_sgmd.yaml\n\ntrain:\n  iteratons: 5\n")
    path = write(tmp_path, "b.yaml", "base: a.yaml\ntrain: {seed: -1}\n")
    with pytest.raises(UserError) as error:
        load_job(path)
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith(f"{tmp_path / 'a.yaml'}:4: train.iteratons: unknown key")
    assert second.startswith(f"{tmp_path / 'b.yaml'}:2: train.seed: -1 is too small")


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("b.yaml", "goes in a circle, b.yaml -> b.yaml"),
        ("a.yaml", "goes in a circle, b.yaml -> a.yaml -> b.yaml"),
        ("missing.yaml", "missing.yaml is not a file, and missing.yaml is not a shipped job"),
        ("/etc/passwd", "/etc/passwd is absolute"),
        ("3", "3 is not a file's name"),
        ("[a.yaml]", "is not a file's name"),
        ("''", "'' is not a file's name"),
    ],
)
def test_a_base_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, base: str, problem: str
) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    with pytest.raises(UserError) as error:
        load_job(write(tmp_path, "b.yaml", f"base: {base}\n"))
    (line,) = str(error.value).splitlines()
    assert problem in line and ".yaml:1: base: " in line


def test_too_many_levels_are_refused(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, f"{number}.yaml", f"base: {number + 1}.yaml\n")
    with pytest.raises(UserError, match="base: is level 8 of bases"):
        load_job(tmp_path / "0.yaml")


def test_shipped_jobs_say_what_differs() -> None:
    for name in shipped_jobs():
        text = config_path(name).read_text(encoding="utf-8")
        lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
        assert (lines[0].startswith("base: ")) == (name not in FULL), name
        assert name in FULL or (len(lines) > 12) == (name in LONGER), f"{name}: {len(lines)}"


def test_the_resolved_jobs_are_what_they_were() -> None:
    """Each shipped job, whole, as it was when every file was written out in full."""
    digests = {}
    for name in shipped_jobs():
        job = load_job(config_path(name))
        job = with_defaults(job, open_teacher(job.teacher))
        tree = yaml.safe_load(job.to_yaml())
        tree["data"] = {key: str(value)[-12:] for key, value in tree["data"].items()}
        text = json.dumps(tree, sort_keys=True)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
    saved = Path(__file__).with_name("resolved_jobs.json")
    assert digests == json.loads(saved.read_text(encoding="utf-8"))
