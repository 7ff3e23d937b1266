"""The tool that tests other releases of PyTorch, without installing any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.checks import test_versions as versions

ROOT = Path(__file__).resolve().parent.parent


def test_a_release_is_one_line_or_the_newest_of_a_minor_version() -> None:
    assert versions.requirement("2.11") == "torch==2.11.*"
    assert versions.requirement("2.11.0") == "torch==2.11.0"
    with pytest.raises(SystemExit, match="'latest' is no release of PyTorch"):
        versions.requirement("latest")


def test_everything_but_torch_is_as_locked_unless_said_otherwise() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith(("#", "torch=="))]
    assert versions.locked([]) == pinned and len(pinned) > 50
    changed = versions.locked(["transformers==5.17.0", "Huggingface-Hub==1.33.0", "new==1.0"])
    assert {"transformers==5.17.0", "Huggingface-Hub==1.33.0", "new==1.0"} <= set(changed)
    assert len(changed) == len(pinned) + 1
    assert len([line for line in changed if re.match(r"huggingface.hub==", line, re.I)]) == 1
    with pytest.raises(SystemExit, match="--with 'numpy>=2' is no NAME==VERSION"):
        versions.locked(["numpy>=2"])


def test_the_tests_that_it_runs_are_there() -> None:
    assert [test for test in versions.TESTS if not (ROOT / test).exists()] == []


def test_each_release_is_installed_tested_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        ran.append(command)
        if "torch==2.9.0" in command:
            raise subprocess.CalledProcessError(1, command)

    def popen(command: list[str], **settings: Any) -> subprocess.Popen[str]:
        ran.append(command)
        assert settings["env"]["PYTHONPATH"] == str(ROOT) == str(settings["cwd"])
        builds = Path(settings["env"]["TORCH_EXTENSIONS_DIR"])
        assert builds.parent == Path(command[0]).parents[1]  # another PyTorch's are not used
        code = "print('..F'); print('1 failed'); raise SystemExit(1)"
        if "torch-2.11" in command[0]:
            code = "print('3 passed')"
        return real([sys.executable, "-c", code], **settings)

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(subprocess, "Popen", popen)
    folders = [tmp_path / f"torch-{release}" for release in ("2.8", "2.9.0", "2.11")]
    for folder in folders:
        folder.mkdir()
    arguments = ["2.8", "2.9.0", "2.11", "--folder", str(tmp_path), "--remove"]
    arguments += ["--with", "transformers==5.17.0"]
    assert versions.main([*arguments, "--pytest", "tests/test_flow.py", "-x"]) == 1
    told = capsys.readouterr().out.splitlines()[-3:]
    assert told[0] == "torch 2.8: FAILED in 0.0 min: 1 failed"
    assert told[1].startswith("torch 2.9.0: FAILED in 0.0 min: failed: ")
    assert told[2] == "torch 2.11: passed in 0.0 min: 3 passed"
    assert [folder.exists() for folder in folders] == [False, True, False]
    asked = [" ".join(command[1:]) for command in ran if command[0].startswith(str(folders[0]))]
    assert asked[0] == "-m pip install --quiet --disable-pip-version-check torch==2.8.*"
    assert asked[1].endswith(f"--no-deps -r {folders[0] / 'requirements.txt'}")
    # What the other release needs and the locked one does not comes with it.
    assert asked[2].endswith(f"-c {folders[0] / 'requirements.txt'} transformers==5.17.0")
    assert asked[-1].startswith("-m pytest -q -p no:cacheprovider -o faulthandler_timeout=1200 ")
    assert asked[-1].endswith(" tests/test_flow.py -x")


@pytest.mark.slow
def test_a_test_that_hangs_is_shown_and_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text("import time\n\ndef test_that_hangs():\n    time.sleep(600)\n")
    monkeypatch.setattr(versions, "TIMEOUT_S", 5)
    result = versions.run_tests(Path(sys.executable), "2.11", [str(file)])
    assert not result.passed  # as it would be once it has slept
    assert "in test_that_hangs" in capfd.readouterr().out


def test_what_depends_on_pytorch_is_there() -> None:
    assert [path for path in versions.TESTS if not (ROOT / path).exists()] == []
