"""The command ``plan``; what it predicts is tested in ``tests/distill/planning``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.planning import nearest, plan
from distill.planning.plan import Machine
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import Application
from tests.tiny import make_tiny_wan
from tests.training import job_file

SPRITES = str(config_path("sprites_sgmd.yaml"))


class Planned:
    def to_dict(self) -> dict[str, bool]:
        return {"fits": False}


def test_the_machine_is_passed_on_and_a_job_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_plan = Application(Planned())
    monkeypatch.setattr(nearest, "check_possible", Application(None))
    monkeypatch.setattr(nearest, "check_plan", Application(UserError("the job does not fit")))
    monkeypatch.setattr(plan, "make_plan", make_plan)
    machine = ["--gpus", "16", "--gpu-memory-gib", "24", "--node-gpus", "4"]
    speed = ["--mfu", "0.3", "--peak-tflops", "312", "--host-bandwidth", "12"]
    assert run(["plan", SPRITES, "--set", "train.seed=9", *machine, *speed, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"fits": False} and err == "error: the job does not fit\n"
    for strategy in ("local", "zero3"):
        assert run(["plan", SPRITES, "--set", f"parallel.strategy={strategy}", "--json"]) == 2
    (job, _, given, _), (_, _, alone, _), (_, _, many, _) = [args for args, _ in make_plan.calls]
    assert job.train.seed == 9
    speeds = {"peak_flops": 312e12, "mfu": 0.3, "host_bandwidth": 12e9}
    assert given == Machine(gpus=16, memory_gib=24.0, node_gpus=4, **speeds)
    assert (alone.gpus, many.gpus) == (1, 8)


def test_an_image_that_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = make_tiny_wan(tmp_path / "teacher", kind="image")
    (tmp_path / "a.png").write_text("no picture")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle", "image": "a.png"}\n')
    job = str(job_file(teacher, tmp_path))
    capsys.readouterr()  # writing the model shows progress
    assert run(["plan", job, "--set", f"data.prompts={prompts}"]) == 2
    out, err = capsys.readouterr()
    assert not out and "a.png: is not a PNG, JPEG or WebP image" in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_plan_of_a_tiny_job(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = str(job_file(tiny_teacher, tmp_path))
    assert run(["plan", job, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["machine"]["gpus"] == 1 and found["tokens"] == 2 * 4 * 4
    assert 4 < found["memory_gib"]["total"] < 5
    assert run(["plan", job, "--gpu-memory-gib", "4"]) == 2
    captured = capsys.readouterr()
    assert "GPU-hours" in captured.out and "memory of a GPU in GiB" in captured.out
    assert "a prediction" in captured.out and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
