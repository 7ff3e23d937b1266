"""Runs the tests that depend on PyTorch with other releases of it: one environment for each.

    python -m tools.checks.test_versions 2.8 2.11 2.14
    python -m tools.checks.test_versions 2.11 --with transformers==5.17.0 huggingface_hub==1.33.0
    python -m tools.checks.test_versions 2.8 --pytest tests/networks/test_attention.py -x

An environment has the release of PyTorch asked for, and everything else as ``constraints.txt``
locks it, unless ``--with`` says otherwise. On Linux PyTorch comes with CUDA's libraries: 6 to 8 GB
on the disk for each release, of which 3 GB are downloaded.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "build" / "versions"
TESTS: Final = (
    "tests/networks",
    "tests/families",
    "tests/system/test_optional_packages.py",
    "tests/infer",
    "tests/weights/test_formats.py",
    "tests/weights/formats",
    "tests/weights/io/test_quantize.py",
    "tests/distill/test_trainer.py",
    "tests/distill/test_predictions.py",
    "tests/parallel/test_local.py",
    "tests/parallel/test_precision.py",
    "tests/parallel/test_sequence.py",
    "tests/parallel/zero3/test_builds.py",
    "tests/parallel/zero3/test_strategy.py",
    "tests/parallel/zero3/test_prefetch.py",
)
"""The tests of kernels, compilers, hooks, processes and models, which depend on PyTorch."""
TIMEOUT_S: Final = 1200
"""A test that takes longer hangs: its threads' stacks are shown, and the release has failed."""


@dataclass(frozen=True)
class Result:
    """The result of a release.

    Attributes:
        release: As it was asked for.
        passed: True if every test passed.
        summary: The last line of pytest, or what went wrong before it.
        minutes: The time of the tests alone.
    """

    release: str
    passed: bool
    summary: str
    minutes: float


def requirement(release: str) -> str:
    """The requirement for pip: ``2.11`` is the newest 2.11.x, ``2.11.0`` is that one."""
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", release):
        raise SystemExit(f"error: {release!r} is no release of PyTorch; write 2.11 or 2.11.0")
    return f"torch=={release}" + (".*" if release.count(".") == 1 else "")


def locked(changes: Sequence[str]) -> list[str]:
    """The lines of ``constraints.txt`` without PyTorch, with some of them replaced.

    Args:
        changes: Each ``NAME==VERSION``; one that is not locked is added.
    """
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {_name(line): line for line in lines if line and not line.startswith("#")}
    del found["torch"]
    for change in changes:
        if not re.fullmatch(r"[\w.-]+==[\w.+]+", change):
            raise SystemExit(f"error: --with {change!r} is no NAME==VERSION")
        found[_name(change)] = change
    return list(found.values())


def _name(line: str) -> str:
    return re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()


def make_environment(folder: Path, release: str, interpreter: str, changes: Sequence[str]) -> Path:
    """Makes an environment, or brings one that is there up to date; returns its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, requirement(release)], check=True)
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{line}\n" for line in locked(changes)), encoding="utf-8")
    subprocess.run([*pip, "--no-deps", "-r", str(wanted)], check=True)
    if changes:  # other releases may need what the locked ones do not
        subprocess.run([*pip, "-c", str(wanted), *changes], check=True)
    return python


def run_tests(python: Path, release: str, arguments: Sequence[str]) -> Result:
    """Runs pytest on this checkout; its output goes to the terminal as it comes."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [
        "-o",
        f"faulthandler_timeout={TIMEOUT_S}",
        "-o",
        "faulthandler_exit_on_timeout=true",
    ]
    command += arguments
    started, line, last = time.monotonic(), "", "pytest said nothing"
    # The environment's programs, ninja among them, come first. Its DeepSpeed is built in a folder
    # of its own: the usual one is shared by every PyTorch for one CUDA, and may hold the lock of a
    # build that was killed.
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(python.parents[1].absolute() / "torch_extensions"),
    }
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        while character := process.stdout.read(1):  # a line of dots takes minutes
            print(character, end="", flush=True)
            line = "" if character == "\n" else line + character
            last = line.strip() or last
    return Result(release, process.returncode == 0, last, (time.monotonic() - started) / 60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests each release in turn; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.test_versions", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("releases", nargs="+", metavar="RELEASE", help="PyTorch release: 2.11")
    parser.add_argument(
        "--with",
        dest="changes",
        nargs="+",
        default=[],
        metavar="NAME==VERSION",
        help="install these instead of what constraints.txt has",
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are made")
    parser.add_argument("--remove", action="store_true", help="delete each one after its tests")
    parser.add_argument(
        "--pytest",
        nargs=argparse.REMAINDER,
        default=list(TESTS),
        metavar="ARGUMENT",
        help="arguments for pytest, instead of the tests that depend on PyTorch; must come last",
    )
    asked = parser.parse_args(arguments)
    locked(asked.changes)
    for release in asked.releases:
        requirement(release)
    results = []
    for release in asked.releases:
        folder = asked.folder / f"torch-{release}"
        print(f"torch {release}: preparing {folder}", flush=True)
        try:
            python = make_environment(folder, release, asked.python, asked.changes)
        except subprocess.CalledProcessError as error:
            step = " ".join(map(str, error.cmd))
            results.append(Result(release, False, f"failed: {step}", 0.0))
            continue
        results.append(run_tests(python, release, asked.pytest))
        if asked.remove:
            shutil.rmtree(folder)
    for result in results:
        state = "passed" if result.passed else "FAILED"
        print(f"torch {result.release}: {state} in {result.minutes:.1f} min: {result.summary}")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
