"""The GPU check loses nothing when a step fails, hangs, dies or has no time."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks import attention
from tests.tools import faulty_worker
from tools.gpu_check import __main__ as command
from tools.gpu_check import summary, supervisor
from tools.gpu_check.page.goals import GOALS
from tools.gpu_check.report import Report, Step
from tools.gpu_check.steps import SIZE_RULES, SIZES, STEPS
from tools.gpu_check.worker import make_context
from tools.models.random_wan import SHAPES


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = dict(STEPS)
    faulty_worker.install()
    monkeypatch.setattr(supervisor, "WORKER", "tests.tools.faulty_worker")
    monkeypatch.setattr(supervisor, "POLL_S", 0.05)
    yield
    STEPS.clear()
    STEPS.update(real)


def check(out: Path, budget_s: float = 300, steps: tuple[str, ...] = ()) -> Report:
    wanted = list(steps or faulty_worker.FAULTY)
    return supervisor.supervise(supervisor.begin(out, budget_s, "sprites", None, wanted))


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_every_row_survives_the_others(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert json.loads((tmp_path / "gpu_check.json").read_text())["steps"] == report.steps
    rows = report.steps["rows"]["rows"]
    assert rows["works"]["value"] == "inf" and rows["works after all"]["value"] == 2
    assert rows["raises"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert rows["raises"]["half"] == 1
    assert rows["is killed"]["error"] == (
        "the process was killed; the machine may be out of memory"
    )
    assert rows["hangs"]["error"].startswith("stopped: it took three times as long")
    assert rows["is not here"]["unavailable"] == "torchao is not installed"
    assert rows["too long"]["skipped"].endswith("s left, 1000000 s expected")
    states = {name: step["status"] for name, step in report.steps.items()}
    assert states == {"rows": "done", "breaks": "failed", "device": "done", "last": "done"}
    assert report.steps["breaks"]["error"] == 'KeyError: "a step\'s own mistake"'
    assert report.steps["device"]["rows"]["in a new process"]["value"] == 3
    assert "running" not in report.data
    failed = [line.rpartition(": ")[0] for line in summary.failures(report)]
    assert len(summary.failures(report)) == 5 and "breaks: KeyError" in failed
    text = summary.table(report)
    assert "rows: is not here: torchao is not installed" in text
    assert "rows: too long: " in text and "rows       failed " in text


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_steps_run_in_the_order_given_and_only_the_rows_asked_for(tmp_path: Path) -> None:
    report = supervisor.begin(
        tmp_path, 300, "sprites", None, ["last", "rows", "last"], rows=["works after all"]
    )
    report = supervisor.supervise(report)
    assert list(report.steps) == ["last", "rows"]
    assert [*report.steps["rows"]["rows"]] == ["works after all"]


def runs(pid: int) -> bool:
    """True if a process is there and has not ended; one that was killed needs a moment."""
    for _ in range(1200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_what_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    report = check(tmp_path, budget_s=300, steps=("rows",))
    log = (tmp_path / "gpu_check.log").read_text()
    assert "illegal memory access" in log
    assert report.steps["rows"]["rows"]["hangs"]["error"].startswith("stopped: ")
    child = int((tmp_path / "child").read_text())
    assert not runs(child)


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_the_budget_is_kept(tmp_path: Path) -> None:
    """Before the first worker begins, and within a row that its own limit would stop later."""
    report = check(tmp_path, budget_s=0.01)
    assert {step["status"] for step in report.steps.values()} == {"skipped"}
    assert len(summary.left_out(report)) == 4 and not summary.failures(report)
    report = check(tmp_path, budget_s=30, steps=("last", "overruns"))
    rows = report.steps["overruns"]["rows"]
    (row,) = rows.values()
    # On a slow machine the time left before the row is too short already.
    assert re.fullmatch(r"stopped when the budget ended|\d+ s left, \d+ s expected", row["skipped"])
    assert report.steps["last"]["status"] == "done" and not summary.failures(report)


def test_a_wrong_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "has_gpu", lambda: False)
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "file").write_text("")
    for words, said in (
        ([], "--out: is not given"),
        ([*out, "--steps", "limit"], "'limit' is not a step; use limits"),
        ([*out, "--steps", "xyz"], "'xyz' is not a step; use machine, limits"),
        ([*out, "--rows", "nothing", "--steps", "limits"], "'nothing' is not a row of limits; use"),
        ([*out, "--rows", "zero", "--steps", "limits", "training"], "limits, training; use zero3"),
        ([*out, "--rows", "zero3", "--steps", "limits"], "'zero3' is not a row of limits"),
        ([*out, "--budget", "0"], "--budget: 0 is not a positive number of seconds"),
        ([*out, "--budget", "nan"], "--budget: nan is not a positive number of seconds"),
        ([*out, "--budget", "inf"], "--budget: inf is not a positive number of seconds"),
        ([*out, "--size", "33", "32", "9"], "--size: height: 33 is not divisible by 16"),
        ([*out, "--size", "32", "32", "8"], "--size: num_frames: 8 is not 4k + 1"),
        (out, "PyTorch sees no CUDA GPU here; --shape sprites rehearses on a CPU"),
        (["--out", str(tmp_path / "file"), "--shape", "sprites"], "cannot be written"),
    ):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_broken_pytorch_is_reported_and_not_died_of(tmp_path: Path) -> None:
    """The process that starts workers imports none, before them and after."""
    code = f"""
import sys
sys.modules["torch"] = None  # an import of it fails
from tools.gpu_check import __main__ as command, supervisor
supervisor.supervise = lambda report: report
print("ended with", command.main(["--out", {str(tmp_path)!r}, "--shape", "sprites"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ended with 0" in done.stdout, done.stderr


def test_every_step_has_a_module_and_an_estimate_for_every_shape() -> None:
    for step in STEPS.values():
        assert (Path(command.__file__).parent / "steps" / f"{step.module}.py").is_file()
        assert set(step.expected_s) == set(step.least_s) == set(SIZES)
        assert all(step.least_s[shape] <= step.expected_s[shape] for shape in SIZES)


@pytest.mark.parametrize("name", STEPS)
def test_rows_of_a_step_are_those_it_asks_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--rows`` is held to this list before anything runs."""
    report = supervisor.begin(tmp_path, 600, "sprites", None, [name])
    report.data["device"] = "cpu"
    asked: list[str] = []

    def remember(step: Step, label: str, expected_s: float, measure: Any) -> dict[str, Any]:
        asked.append(label)
        return {}

    monkeypatch.setattr(Step, "row", remember)
    module = importlib.import_module(f"tools.gpu_check.steps.{STEPS[name].module}")
    every = [attention.AttentionKernel(kernel, True, "") for kernel in attention.KERNELS]
    monkeypatch.setattr(attention, "kernels", lambda *setting: every)
    module.run(make_context(report), Step(report, name))
    assert sorted(asked) == sorted(STEPS[name].rows)


def test_a_row_that_no_step_asked_for_is_a_failure(tmp_path: Path) -> None:
    """At the 14B shape the engine as it comes is compiled: there is no other compiled row."""
    report = supervisor.begin(
        tmp_path, 60, "sprites", None, ["forward", "vae"], rows=["engine, compiled"]
    )
    report.steps["forward"] = {"status": "done", "rows": {}}
    report.steps["vae"] = {"status": "done", "rows": {}}
    assert summary.failures(report) == [
        "forward: engine, compiled: this step has no such row on this machine or at this shape"
    ]
    report.steps["forward"] = {"status": "skipped", "reason": "3 s left", "rows": {}}
    assert not summary.failures(report)


def test_sizes_that_are_taken_are_those_of_the_models() -> None:
    for name in SHAPES.values():
        rules = open_wan(name).size_rules
        assert (rules.step, rules.spatial) == (SIZE_RULES.step, SIZE_RULES.spatial)
        multiples = [
            max(each.multiple, each.spatial * each.patch[1]) for each in (rules, SIZE_RULES)
        ]
        assert multiples == [16, 16]


def test_what_counts_most_fits_into_the_default_budget() -> None:
    """All that goals are held to, training with stored attention and the GPU tests."""
    *first, other_decodes, other_kernels = STEPS.values()
    assert (other_decodes.name, other_kernels.name) == ("decodes", "kernels")
    budget_s = command.arguments([]).budget
    for shape in ("14b", "1.3b"):
        assert sum(step.expected_s[shape] for step in first) <= budget_s
    held = {goal.row[0] for goal in GOALS} | {"machine", "limits", "selective", "tests"}
    assert held <= {step.name for step in first}


def test_the_guide_has_every_step_in_order_with_its_seconds() -> None:
    text = (supervisor.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert found == [(step.name, f"{step.expected_s['14b']:g}") for step in STEPS.values()]


@pytest.mark.slow
def test_the_guide_has_the_size_of_the_checkout(tmp_path: Path) -> None:
    """Packed by the guide's own command, within a tenth."""
    text = (supervisor.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"The checkout itself is (\d+) MiB, packed", text)
    pack = "git archive --prefix=checkout/ HEAD | gzip"
    assert f"{pack} > checkout.tar.gz\n" in text
    if not (supervisor.ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no checkout")
    packed = tmp_path / "checkout.tar.gz"
    with packed.open("wb") as out:
        subprocess.run(pack, shell=True, cwd=supervisor.ROOT, stdout=out, check=True)
    assert packed.stat().st_size / 2**20 == pytest.approx(int(said), rel=0.1)


def test_the_end_gives_the_command_for_what_was_left_out(tmp_path: Path) -> None:
    report = supervisor.begin(tmp_path, 60, "sprites", None, ["vae", "decodes", "kernels"])
    measured = {"s": 0.1, "took_s": 1.0}
    late = {"skipped": "3 s left, 12 s expected"}
    report.steps["vae"] = {"status": "done", "rows": {"stock diffusers": measured}}
    report.steps["decodes"] = {"status": "done", "rows": {"a": measured, "b": late, "c": late}}
    report.steps["kernels"] = {"status": "skipped", "reason": "3 s left", "rows": {}}
    text = summary.table(report)
    assert "--out ANOTHER_DIR --shape sprites --steps decodes kernels\n" in text
    assert "  decodes: b: 3 s left, 12 s expected\n" in text and "  kernels: 3 s left\n" in text
    for name in ("decodes", "kernels"):
        del report.steps[name]
    assert "to measure what was left out" not in summary.table(report)


@pytest.mark.slow
def test_a_rehearsal_runs_every_step(tmp_path: Path) -> None:
    """All of it, at the bundled teacher's size; on the CPU, as tests that are not for a GPU do."""
    code = command.main(["--out", str(tmp_path), "--shape", "sprites", "--budget", "3600"])
    report = Report.read(tmp_path / "gpu_check.json")
    assert report.data["device"] == "cpu"
    assert summary.failures(report) == [] and summary.left_out(report) == []
    assert code == 0 and list(report.steps) == list(STEPS)
    for name, step in report.steps.items():
        measured = [label for label, row in step["rows"].items() if "unavailable" not in row]
        assert measured, f"{name} measured nothing"
    forward = report.steps["forward"]["rows"]
    for label in ("stock, compiled", "engine, as it comes", "engine, eager"):
        assert forward[label]["difference_to_stock"] < 1e-4
    bundled = report.steps["bundled"]["rows"]["float32, TF32 off"]
    assert bundled["latents_max_difference"] < 1e-3
    decode = report.steps["vae"]["rows"]["engine, as it comes"]
    assert decode["levels_max"] <= 1
    assert report.steps["decodes"]["rows"]["engine, not compiled"]["levels_max"] <= 1


@pytest.mark.slow
def test_tests_that_break_their_process_are_named_and_the_rest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.gpu_check.steps import gpu_tests

    source = (
        "import os, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_a(): pass\n"
        "def test_b(): assert False\n"
        "def test_c(): os._exit(9)\n"
        "@pytest.mark.parametrize('x', ['p q', 'r'])\n"
        "def test_d(x): pass\n"
    )
    folder = tmp_path / "root"
    (folder / "tests").mkdir(parents=True)
    (folder / "tests" / "test_x.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n")
    monkeypatch.setattr(gpu_tests, "ROOT", folder)
    report = supervisor.begin(tmp_path / "out", 900, "sprites", None, ["tests"])
    step = Step(report, "tests")

    class OnCpu:
        cuda = False

    gpu_tests.run(OnCpu(), step)  # type: ignore[arg-type]
    first, rest = step.rows["all"], step.rows["the rest, 2"]
    assert {name.partition("::")[2]: said for name, said in first["tests"].items()} == {
        "test_a": "PASSED",
        "test_b": "FAILED",
        "test_c": "BROKE OFF",
    }
    assert first["error"].startswith("RuntimeError: test_b, test_c; pytest died with exit code 9")
    assert {name.partition("::")[2]: said for name, said in rest["tests"].items()} == {
        "test_d[p q]": "PASSED",
        "test_d[r]": "PASSED",
    }
    assert "error" not in rest and len(step.rows) == 2


@pytest.mark.slow
def test_tests_that_cannot_begin_are_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.gpu_check.steps import gpu_tests

    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("import time\n# mark.gpu\ntime.sleep(900)\n")
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_tests, "SILENCE_S", {"cpu": 0.5})
    step = Step(supervisor.begin(tmp_path / "out", 900, "sprites", None, ["tests"]), "tests")

    class OnCpu:
        cuda = False

    gpu_tests.run(OnCpu(), step)  # type: ignore[arg-type]
    assert [*step.rows] == ["all"]
    assert step.rows["all"]["error"].startswith("RuntimeError: stopped: nothing for 0.5 s")
