"""Runs exports of a small model in other programs' own code, and prints how far each is off.

    python -m tools.checks.client_programs --lightx2v ../LightX2V --comfyui ../ComfyUI

Nothing is fetched: give the checkouts that you have (``--wan``, ``--diffsynth`` and ``--musubi``,
too), and install what their imports need; ``--packages`` names a folder of such packages. The
models have Wan's fixed sizes and random weights (``client_students``), so a CPU runs all of it in
some minutes; ``--kind`` runs one of them. Each run is a process of its own, which sees the
program's checkout and nothing of this project (``client_runs``).

The table has ``|a - b| / |b|`` of the latents after the last step, b being our engine's in float32
from the same noise, text and image: the student, or for adapters the teacher with the same file, of
which a program may apply a part. docs/clients.md has the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.checks.client_students import Bench
from tools.models.standard_wan import Kind


@dataclass(frozen=True)
class Row:
    """One run: an export in a program.

    Attributes:
        program: A key of ``client_runs.PROGRAMS``.
        format: The export's format.
        dtype: The export's precision.
        lora: True to apply the adapters of the ``lora`` export to the teacher, in ``format``.
        kind: The published model whose layout the student has.
    """

    program: str
    format: str
    dtype: str
    lora: bool = False
    kind: Kind = "t2v"

    @property
    def label(self) -> str:
        """The export's name in the table."""
        return f"lora, extracted, on {self.format}" if self.lora else f"{self.format} {self.dtype}"


IMAGES_AND_PAIRS: Final[tuple[Kind, ...]] = ("i2v", "t2v pair", "i2v pair")

ROWS: Final = (
    *(Row("lightx2v", "wan", dtype) for dtype in ("fp32", "bf16", "fp16")),
    Row("lightx2v", "wan", "fp32", lora=True),
    *(Row("comfyui", "comfyui", dtype) for dtype in ("fp32", "bf16", "fp16", "fp8", "fp8-legacy")),
    Row("comfyui", "wan", "fp32"),
    Row("comfyui", "comfyui", "fp32", lora=True),
    *(Row("wan", "wan", dtype) for dtype in ("fp32", "bf16")),
    *(Row("diffsynth", "wan", dtype) for dtype in ("fp32", "bf16")),
    Row("diffsynth", "wan", "fp32", lora=True),
    Row("musubi", "wan", "fp32"),
    Row("musubi", "comfyui", "fp32"),
    Row("musubi", "wan", "fp32", lora=True),
    *(
        row
        for kind in IMAGES_AND_PAIRS
        for row in (
            Row("lightx2v", "wan", "fp32", kind=kind),
            Row("lightx2v", "wan", "fp32", lora=True, kind=kind),
            Row("comfyui", "comfyui", "fp32", kind=kind),
            Row("comfyui", "comfyui", "fp32", lora=True, kind=kind),
        )
    ),
    Row("comfyui", "comfyui", "fp32", lora=True, kind="ti2v"),
)


def measure(bench: Bench, row: Row, checkout: Path, packages: Path | None) -> str:
    """The relative error of a run, or the last line of what went wrong."""
    request = bench.request(row.program, row.format, row.dtype, row.lora)
    file = bench.folder / "request.json"
    file.write_text(json.dumps(request))
    out = Path(request["out"])
    out.unlink(missing_ok=True)
    child = Path(__file__).with_name("client_runs.py")
    paths = [str(packages.resolve())] if packages is not None else []
    done = subprocess.run(
        [sys.executable, str(child), row.program, str(checkout), str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=bench.folder,
        capture_output=True,
        text=True,
    )
    if done.returncode or not out.is_file():
        lines = done.stderr.strip().splitlines() or ["no message"]
        return f"fails: {lines[-1][:160]}"
    return f"{bench.error(out, row.lora):.2g}"


def version(checkout: Path) -> str:
    """The commit of a checkout and its date."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h, %cs"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "no version"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    programs = dict.fromkeys(row.program for row in ROWS)
    for name in programs:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--packages", type=Path, help="folder of packages that they import")
    parser.add_argument(
        "--kind",
        choices=dict.fromkeys(row.kind for row in ROWS),
        action="append",
        help="kind of student to run; repeat it for several, default all",
    )
    options = parser.parse_args(arguments)
    checkouts = {name: getattr(options, name) for name in programs if getattr(options, name)}
    for name, path in checkouts.items():
        if not path.is_dir():
            parser.error(f"--{name}: {path} is not a folder")
    failed = False
    print("| student | program | version | export | relative error |\n|---|---|---|---|---|")
    for kind in options.kind or dict.fromkeys(row.kind for row in ROWS):
        rows = [row for row in ROWS if row.kind == kind and row.program in checkouts]
        if not rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), kind)
            for row in rows:
                checkout = checkouts[row.program].resolve()
                found = measure(bench, row, checkout, options.packages)
                failed |= found.startswith("fails")
                told = (kind, row.program, version(checkout), row.label, found)
                print(f"| {' | '.join(told)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
