"""Runs the ``vbench`` package, one dimension at a time, each kept once it is there.

The package needs releases of transformers and numpy that this program cannot use (0.1.5 asks for
transformers 4.33.2 and numpy below 2), so it is run as another process, by a Python of its own
where one is named. It downloads its networks itself.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.outputs import content_hashes, locked_folder, move, open_log, write_text
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError, short_line
from lightx2v_sgmd.system.optional_packages import is_installed
from lightx2v_sgmd.system.processes import last_line, program_of
from lightx2v_sgmd.untrusted.json_text import CONFIG, parse_json

RESULTS: Final = "vbench/results"
"""The folder of results below the output."""
_MEASURED: Final = "videos.sha256"
"""The hash of the videos' names and contents that the results beside it belong to."""
_PROBE_S: Final = 300

_PROBE: Final = """
import importlib.metadata as metadata, importlib.util, json
found = importlib.util.find_spec("vbench") is not None
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({"found": found, "vbench": version("vbench"), "torch": version("torch")}))
"""
_RUN: Final = """
import sys
import torch
from vbench import VBench
device, info, out, videos, name, dimension = sys.argv[1:]
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
bench = VBench(torch.device(device), info, out)
options = {"imaging_quality_preprocessing_mode": "longer"}
bench.evaluate(videos_path=videos, name=name, dimension_list=[dimension], **options)
"""
"""``longer`` is what the package's own command takes by default."""


def find_package(python: Path | None) -> dict[str, Any] | None:
    """The versions of ``vbench`` and of its PyTorch; None if there is none to run.

    Args:
        python: A Python that has the package; None looks in this one.

    Raises:
        UserError: the Python that was named cannot run, or lacks the package.
    """
    if python is None and not is_installed("vbench"):
        return None
    command = [program_of(python), "-c", _PROBE]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_S,
            check=True,
        )
        found = parse_json(done.stdout, CONFIG)
        assert isinstance(found, dict), "the script prints an object"
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            f"--vbench-python: {command[0]} cannot be run ({short_line(str(error), 80)}); name the "
            "Python of the environment that has vbench"
        ) from error
    if not found["found"]:
        raise UserError(
            f"--vbench-python: {command[0]} has no package vbench; install it there (pip install "
            "vbench)"
        )
    return {"vbench": found["vbench"], "torch": found["torch"]}


def run_package(
    info: Path,
    videos: Path,
    out: Path,
    dimensions: Sequence[str],
    python: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> list[str]:
    """Measures the dimensions that have no result yet; one that fails does not stop the others.

    Args:
        info: VBench's list of prompts.
        videos: The folder of videos under VBench's names.
        out: The folder of results.
        dimensions: VBench's names.
        python: The Python that has the package; None is this one.
        device: ``cpu`` or ``cuda``; None leaves it to the machine.
        quiet: Print no news.

    Returns:
        A line for each dimension that failed: its name, the reason, and its log.

    Raises:
        UserError: results that are there belong to other videos.
    """
    failed: list[str] = []
    with locked_folder(out, "evaluate", quiet):
        _check_videos(videos, out)
        for number, dimension in enumerate(dimensions, start=1):
            if (out / f"{dimension}_eval_results.json").is_file():
                continue
            note(f"vbench: {dimension} ({number} of {len(dimensions)})", quiet)
            work = out / ".running"
            work.mkdir(exist_ok=True)
            log = out / f"{dimension}.log"
            arguments = [device or "auto", info, work, videos, dimension, dimension]
            command = [program_of(python), "-c", _RUN, *map(str, arguments)]
            with open_log(log) as file:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
                )
            made = work / f"{dimension}_eval_results.json"
            if done.returncode != 0 or not made.is_file():
                with log.open("rb") as file:
                    failed.append(f"{dimension}: {last_line(file)} (all of it is in {log})")
                note(f"vbench failed on {failed[-1]}", quiet)
                continue
            content = parse_json(made.read_bytes(), _result_limits())
            made.write_text(json.dumps(content), encoding="utf-8")
            move(made, out / made.name)
    return failed


def _check_videos(videos: Path, out: Path) -> None:
    """Notes which videos are measured, and refuses results of other ones."""
    files = sorted(videos.iterdir())
    hashes = content_hashes([file.resolve() for file in files])
    named = [f"{digest}  {file.name}" for digest, file in zip(hashes, files, strict=True)]
    digest = hashlib.sha256("\n".join(named).encode()).hexdigest()
    record = out / _MEASURED
    if record.is_file():
        if record.read_text(encoding="ascii", errors="replace").strip() != digest:
            raise UserError(
                f"{out}: has results of other videos than those that are there now; move that "
                "folder away, or choose another --out"
            )
        return
    write_text(record, f"{digest}\n")


def _result_limits() -> Any:
    from lightx2v_sgmd.untrusted.json_text import MEASURED

    return MEASURED
