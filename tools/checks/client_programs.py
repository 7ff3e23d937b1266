"""Runs exports of a small model in other programs' own code, and prints how far each is off.

    python -m tools.checks.client_programs --lightx2v ../LightX2V --comfyui ../ComfyUI

Nothing is fetched: give the checkouts that you have (``--wan``, ``--diffsynth`` and ``--musubi``,
too), and install what their imports need; ``--packages`` names a folder of such packages. The
model has Wan2.1's fixed sizes and random weights (``tools.models.standard_wan``), so a CPU runs all
of it in a few minutes. Each run is a process of its own, which sees the program's checkout and
nothing of this project (``client_runs``).

The table has ``|a - b| / |b|`` of the latents after the last step, b being our engine's in float32
from the same noise and text. docs/clients.md has the last one.
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
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infer import Options, load_student
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.schedule import Schedule
from tools.models.standard_wan import make_standard_wan
from weights import export
from weights.formats.wan import original_config

PROMPT: Final = "a red circle moving left slowly"
_JOB: Final = """\
teacher: {{path: {teacher}, guidance_scale: 3.0}}
method: {{name: sgmd, lambda: 0.1}}
data: {{prompts: sprites}}
video: {{height: 32, width: 48, num_frames: 9}}
train: {{iterations: 1}}
output: {{dir: {run}}}
"""


@dataclass(frozen=True)
class Row:
    """One run: an export in a program.

    Attributes:
        program: A key of ``client_runs.PROGRAMS``.
        format: The export's format.
        dtype: The export's precision.
        lora: True to apply the adapters of the ``lora`` export to the teacher, in ``format``.
    """

    program: str
    format: str
    dtype: str
    lora: bool = False

    @property
    def label(self) -> str:
        """The export's name in the table."""
        return f"lora, extracted, on {self.format}" if self.lora else f"{self.format} {self.dtype}"


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
)


class Bench:
    """A student and its teacher, their exports (each made once) and the latents that are right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = make_standard_wan(folder / "teacher", layers=3)
        config = open_wan(self.teacher).transformer_config
        self.config = original_config(config)
        self.run = self._checkpoint("run", 0.02)
        self.untrained = self._checkpoint("untrained", 0.0)
        schedule = Schedule()
        student = load_student(self._export("run", "diffusers", "fp32"), _OPTIONS)
        text = student.model.load_text_encoder(torch.float32).encode([PROMPT])[0].text
        noise = torch.randn(16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
        tensors = {"noise": noise, "text": text.contiguous(), "sigmas": schedule.times}
        save_file(tensors, folder / "inputs.safetensors")
        made = student.generate([PROMPT], [0], decode=False)
        self.latents: Tensor = made.latents[0]

    def _checkpoint(self, name: str, change: float) -> Path:
        """A run whose student is the teacher with noise added, as large as training's changes."""
        folder = self.folder / name / "checkpoints" / "step_000001"
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(1)
        state = open_wan(self.teacher).load_transformer().state_dict()
        moved = {
            k: t + change * t.std() * torch.randn(t.shape, generator=generator)
            for k, t in state.items()
        }
        save_file(moved, folder / "student.safetensors", schedule_metadata(Schedule()))
        job = _JOB.format(teacher=self.teacher, run=self.folder / name)
        (folder / "job.yaml").write_text(job)
        (folder / "trainer.json").write_text(json.dumps({"step": 1}))
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.iterdir())
        }
        (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))
        return self.folder / name

    def _export(self, run: str, format: str, dtype: str) -> Path:
        out = self.folder / f"{run}_{format}_{dtype}"
        if not out.exists():
            rank = 64 if format == "lora" else None
            export(self.folder / run, format, out, dtype=dtype, rank=rank, quiet=True)
        return out

    def request(self, row: Row) -> dict[str, Any]:
        """The request that the child reads."""
        folder = self._export("untrained" if row.lora else "run", row.format, row.dtype)
        (weights,) = folder.glob("*.safetensors")
        lora = None
        if row.lora:
            lora = lora_file_in(self._export("run", "lora", "fp32"))
            assert lora is not None, "an export of adapters has the file for other programs"
        return {
            "inputs": str(self.folder / "inputs.safetensors"),
            "weights": str(folder if row.program == "wan" else weights),
            "lora": None if lora is None else str(lora),
            "config": self.config,
            "shift": Schedule().shift,
            "out": str(self.folder / "latents.safetensors"),
        }

    def measure(self, row: Row, checkout: Path, packages: Path | None) -> str:
        """The relative error of a run, or the last line of what went wrong."""
        request = self.request(row)
        file = self.folder / "request.json"
        file.write_text(json.dumps(request))
        out = Path(request["out"])
        out.unlink(missing_ok=True)
        child = Path(__file__).with_name("client_runs.py")
        paths = [str(packages)] if packages is not None else []
        done = subprocess.run(
            [sys.executable, str(child), row.program, str(checkout), str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode or not out.is_file():
            lines = done.stderr.strip().splitlines() or ["no message"]
            return f"fails: {lines[-1][:120]}"
        got = load_file(out)["latents"]
        return f"{((got - self.latents).norm() / self.latents.norm()).item():.2g}"


_OPTIONS: Final = Options(device="cpu", dtype="fp32", compile=False)


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
    options = parser.parse_args(arguments)
    checkouts = {name: getattr(options, name) for name in programs if getattr(options, name)}
    for name, path in checkouts.items():
        if not path.is_dir():
            parser.error(f"--{name}: {path} is not a folder")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        print("| program | version | export | relative error |\n|---|---|---|---|")
        for row in ROWS:
            if row.program in checkouts:
                checkout = checkouts[row.program].resolve()
                found = bench.measure(row, checkout, options.packages)
                failed |= found.startswith("fails")
                print(
                    f"| {row.program} | {version(checkout)} | {row.label} | {found} |", flush=True
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
