"""The list of commands: their help, mistakes in a command line, and the real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightx2v_sgmd
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path

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
        (["distill", "nowhere.yaml"], "nowhere.yaml: no such file; use one of "),
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
        timeout=900,
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
