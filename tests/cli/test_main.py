from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lightx2v_sgmd
from lightx2v_sgmd.cli.doctor import checks
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import Application, install

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "distill",
    "generate",
    "serve",
    "watch",
    "export",
    "evaluate",
    "compare",
    "doctor",
    "demo",
    "embed",
    "plan",
    "collect-pairs",
    "encode-videos",
    "replay-failure",
)
SPRITES = str(config_path("sprites_sgmd.yaml"))


def test_distill_passes_job_and_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distill = install(monkeypatch, "distill", "distill", Path("runs/x"))
    settings = ["--set", "train.seed=7", "--set", "method.lambda=0.2"]
    assert run(["distill", SPRITES, *settings, "--resume", "never", "--nproc", "2", "-q"]) == 0
    ((job,), options) = distill.calls[0]
    assert (job.train.seed, job.method.lambda_) == (7, 0.2)
    assert options == {"resume": "never", "nproc": 2, "quiet": True}
    assert capsys.readouterr().out == "runs/x\n"


def test_distill_prints_json_from_the_first_rank_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "distill", "distill", Path("runs/x"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert run(["distill", SPRITES, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "runs/x"}


def test_a_mistake_in_the_job_is_found_before_the_application_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distill", None)  # importing it would fail
    assert run(["distill", SPRITES, "--set", "train.sed=1", "--set", "schedule.shift=4"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --set: train.sed: unknown key; did you mean train.seed?"
    assert second.startswith("error: --set: schedule.shift: shift 4 of base")


def outcome_of(files: list[Path], **changes: Any) -> SimpleNamespace:
    """What ``infer.generate_files`` answers."""
    usual = {
        "skipped": 0,
        "failed": [],
        "timings": {"denoise": 1.23456},
        "memory_mode": "the defaults",
    }
    return SimpleNamespace(**{"files": files, **usual, **changes})


def test_generate_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infer.options import GenerateOptions, Lora

    made = outcome_of([Path("a.mp4"), Path("b.mp4")], skipped=1)
    generate = install(monkeypatch, "infer", "generate_files", made)
    size = ["--height", "32", "--width", "48", "--num-frames", "17", "--fps", "8", "--batch", "3"]
    kind = ["--attention", "sdpa-flash", "--dtype", "bf16", "--device", "cpu", "--compile"]
    less = ["--quantize", "int8", "--max-memory-gib", "9.5", "--tile-vae", "--offload"]
    more = ["--lora", "x.safetensors:0.5", "--merge-lora", "--text-cache", "none"]
    trace = ["--profile", "t.json", "--assume-schedule", "sgmd:2"]
    files = ["--weights", "student", "--prompts", "p.txt", "--out", "videos"]
    given = [*size, *kind, *less, *more, *trace]
    assert run(["generate", *files, "--seed", "3", *given, "--quiet", "--json"]) == 0
    ((args, options),) = generate.calls
    assert args[:3] == (Path("student"), Path("p.txt"), Path("videos"))
    assert options == {"quiet": True}
    assert args[3] == GenerateOptions(
        seed=3,
        height=32,
        width=48,
        num_frames=17,
        fps=8.0,
        batch_size=3,
        profile=Path("t.json"),
        assume_schedule="sgmd:2",
        attention="sdpa-flash",
        dtype="bf16",
        device="cpu",
        quantize="int8",
        offload=True,
        tile_vae=True,
        max_memory_gib=9.5,
        compile=True,
        loras=(Lora(Path("x.safetensors"), 0.5),),
        merge_lora=True,
    )
    assert json.loads(capsys.readouterr().out) == {
        "videos": ["a.mp4", "b.mp4"],
        "skipped": 1,
        "failed": [],
        "timings": {"denoise": 1.2346},
        "options": "the defaults",
    }


def test_a_prompt_is_passed_on_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from infer.options import GenerateOptions

    generate = install(monkeypatch, "infer", "generate_files", outcome_of([]))
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert run(["generate", "--weights", "w", "--out", "o.mp4", "--prompt", "a fox"]) == 0
    (args, options) = generate.calls[0]
    assert args[:3] == (Path("w"), "a fox", Path("o.mp4"))
    cache = Path("/caches/lightx2v-sgmd/text")
    assert args[3] == GenerateOptions(text_cache=cache)


def test_videos_that_failed_are_named_and_the_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = outcome_of([Path("a.mp4")], failed=[("0001_a", "out of memory")])
    install(monkeypatch, "infer", "generate_files", made)
    assert run(["generate", "--weights", "w", "--out", "o", "--prompts", "p.txt"]) == 1
    assert capsys.readouterr() == ("a.mp4\n", "error: 0001_a: out of memory\n")


@pytest.mark.parametrize("extra", [[], ["--prompt", "a fox", "--prompts", "p.txt"]])
def test_generate_wants_one_kind_of_prompt(
    extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "--weights", "w", "--out", "o", *extra]) == 2
    assert capsys.readouterr().err == "error: --prompt, --prompts: give one of the two\n"


def test_export_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = install(monkeypatch, "weights", "export", Path("student"))
    monkeypatch.setattr(sys.modules["weights"], "ExportError", RuntimeError, raising=False)
    assert run(["export", "runs/x", "--out", "student", "--no-ema", "--dtype", "fp32"]) == 0
    args, options = export.calls[0]
    assert args == (Path("runs/x"), "diffusers", Path("student"))
    assert options == {
        **{"dtype": "fp32", "ema": False, "rank": None, "energy": None},
        **{"max_shard_size": "5GB", "overwrite": False, "quiet": False},
        **{"push": None, "public": False, "names": None, "only": None, "relative_to": None},
    }
    assert capsys.readouterr().out == "student\n"
    options_of_push = ["--push", "me/x", "--public", "--overwrite", "--json"]
    assert run(["export", "runs/x", "--out", "student", *options_of_push]) == 0
    options = export.calls[1][1]
    assert (options["push"], options["public"], options["overwrite"]) == ("me/x", True, True)
    assert json.loads(capsys.readouterr().out) == {"weights": "student", "repository": "me/x"}


def test_weights_push_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = install(monkeypatch, "weights", "push", "https://hub/me/x")
    assert run(["weights", "push", "student", "me/x", "--quiet"]) == 0
    options = {"private": True, "replace": False, "quiet": True}
    assert push.calls == [((Path("student"), "me/x"), options)]
    assert capsys.readouterr().out == "https://hub/me/x\n"


def test_demo_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = SimpleNamespace(metrics={"seed": 4})
    demo = install(monkeypatch, "lightx2v_sgmd.apps.demo", "run_demo", result)
    assert run(["demo", "--out", "d", "--seed", "4", "--set", "train.iterations=9", "--json"]) == 0
    args, options = demo.calls[0]
    assert args == (Path("d"),)
    assert options == {"seed": 4, "quiet": False, "overrides": ["train.iterations=9"]}
    assert json.loads(capsys.readouterr().out) == {"seed": 4}


def test_doctor_prints_text_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SimpleNamespace(text=lambda: "all is well", to_dict=lambda: {"ok": True})
    fake = Application(report)
    monkeypatch.setattr(checks, "run", fake)
    assert (run(["doctor"]), run(["doctor", "--json"])) == (0, 0)
    assert len(fake.calls) == 2
    text, rest = capsys.readouterr().out.split("\n", 1)
    assert (text, json.loads(rest)) == ("all is well", {"ok": True})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["distil"], "No such command 'distil'. Did you mean 'distill'?; see lightx2v-sgmd --help"),
        (["distill"], "Missing argument 'JOB.yaml'; see lightx2v-sgmd distill --help"),
        (["distill", "x", "--foo"], "No such option: --foo; see lightx2v-sgmd distill --help"),
        (["distill", "x", "--nproc", "0"], "Invalid value for '--nproc'"),
        (["generate", "--weights", "w"], "Missing option '--out'"),
        (
            ["generate", "--attention", "magic"],
            "Invalid value for '--attention': 'magic' is",
        ),
        (["distill", "nowhere.yaml"], "nowhere.yaml: no such file; the shipped jobs are in "),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"lightx2v-sgmd {command}" in capsys.readouterr().out.split("Example")[1]


def test_the_contracts_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    contract = {
        "distill": "--set --resume --nproc --quiet --json",
        "generate": "--weights --prompt --prompts --out --seed --height --width --num-frames "
        "--attention --batch --max-memory-gib --lora --profile --quiet --json",
        "export": "--format --out --dtype --ema --no-ema --quiet --json",
        "doctor": "--json",
        "demo": "--out --quiet --json",
    }
    for command, options in contract.items():
        run([command, "--help"])
        shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert set(options.split()) <= shown, command


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = python("-m", "lightx2v_sgmd", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"lightx2v-sgmd {lightx2v_sgmd.__version__}\n",
        "",
    )


@pytest.mark.slow
def test_a_job_with_a_typo_in_a_real_process(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(Path(SPRITES).read_text().replace("  seed: 0", "  sead: 0"))
    done = python("-m", "lightx2v_sgmd", "distill", "job.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: job\.yaml:\d+: train\.sead: unknown key; did you mean train\.seed\?\n", done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lightx2v_sgmd.cli.main import run; code = run(['distill', '--help']); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'deepspeed', 'distill', "
        "'infer.engine', 'weights'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_deepspeed_launchers_option_is_taken_and_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--local_rank=1", "distill", "no-such-job.yaml"]) == 2
    assert "no-such-job.yaml" in capsys.readouterr().err
    assert run(["--help"]) == 0
    assert "local_rank" not in capsys.readouterr().out
