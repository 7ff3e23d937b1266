"""Runs the commands on a model of Wan2.1-T2V-1.3B's real size within a limit of memory, on a CPU.

    python -m tools.checks.real_size --work /tmp/real-size --limit-gib 16

It writes a folder of random weights (14 GB; 30 GB of disk are needed in all) and runs `embed`, two
iterations of `distill` with adapters, `export` in every format, and `generate` of five frames of
128x128. Each command has its memory limited by a control group, as a container has, and measured;
where no group may be made, its address space is limited as by `ulimit -v`. The result is a table
with each command's most memory and its time; the last rows repeat `embed` and `generate` within a
smaller limit. Everything is deleted afterwards, unless ``--keep`` is given: the same command then
uses the model again, ``--rows`` repeats single commands, and the folder stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightx2v_sgmd.system.host_memory import GIB
from tools.checks.memory_limit import memory_limit
from tools.models.published_size import write_published_size

SIZE: Final = ("--height", "128", "--width", "128", "--num-frames", "5")
EXPORTS: Final = (
    ("diffusers", "bf16"),
    ("wan", "bf16"),
    ("wan", "fp8"),
    ("comfyui", "bf16"),
    ("comfyui", "fp8"),
    ("lora", "bf16"),
)
_JOB: Final = """\
teacher: {{path: {teacher}, guidance_scale: 3.0, negative_prompt: "", dtype: bfloat16}}
student: {{train: lora, lora: {{rank: 16}}}}
fake_score: {{train: lora, lora: {{rank: 16}}}}
method: {{name: sgmd, lambda: 0.1}}
data: {{prompts: {folder}/prompts.txt, embeddings: {folder}/embeddings}}
video: {{height: 128, width: 128, num_frames: 5}}
train: {{iterations: 2, sample_every: 100, teacher_sample_steps: 0}}
parallel: {{strategy: local, gradient_checkpointing: true}}
output: {{dir: {folder}/run}}
"""


@dataclass(frozen=True)
class Row:
    """One command's result.

    Attributes:
        name: The command in a few words.
        limit_gib: The command's limit.
        kind: The limited quantity: ``memory`` or ``address space``.
        peak_gib: The most memory that it had.
        seconds: The command's time.
        code: The command's exit code.
        last: The last line that it printed.
    """

    name: str
    limit_gib: float
    kind: str
    peak_gib: float
    seconds: float
    code: int
    last: str

    def line(self) -> str:
        """The row of a table in Markdown."""
        done = "yes" if self.code == 0 else f"no, {self.last}"
        return (
            f"| {self.name} | {self.limit_gib:g}, {self.kind} | {self.peak_gib:.1f} "
            f"| {self.seconds:.0f} | {done} |"
        )


HEAD: Final = "| command | limit, GiB | most memory, GiB | seconds | done |\n|---|---|---|---|---|"


def run(name: str, arguments: Sequence[str], limit_gib: float, threads: int) -> Row:
    """Runs one command within a limit."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with memory_limit(int(limit_gib * GIB)) as limit:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "lightx2v_sgmd", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=limit.enter,
        )
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.strip())
            print(f"    {line.rstrip()}", flush=True)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Row(
        name,
        limit_gib,
        limit.kind,
        usage.ru_maxrss * 1024 / GIB,
        time.monotonic() - start,
        process.returncode,
        lines[-1] if lines else "",
    )


def commands(folder: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """The commands in their order: name, arguments, and what can be deleted afterwards."""
    job, teacher, run_folder = folder / "job.yaml", folder / "teacher", folder / "run"
    yield "embed, 3 prompts", ["embed", str(job)], None
    yield "distill, 2 iterations, adapters", ["distill", str(job)], None
    for format, dtype in EXPORTS:
        out = folder / f"{format}-{dtype}"
        arguments = ["export", str(run_folder), "--format", format, "--dtype", dtype]
        yield f"export {format} {dtype}", [*arguments, "--out", str(out)], None
        if format == "diffusers":
            yield (
                "generate from diffusers bf16",
                [*_generate(out), "--out", str(folder / "diffusers.mp4")],
                out,
            )
    yield (
        "generate from the teacher and lora bf16",
        [*_generate(teacher), "--lora", str(folder / "lora-bf16"), "--out", str(folder / "l.mp4")],
        None,
    )


def small_commands(folder: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """The commands within the smaller limit."""
    again = ["embed", str(folder / "job.yaml"), "--set", f"data.embeddings={folder}/again"]
    yield "embed, 3 prompts", again, None
    for name in ("wan-bf16", "wan-fp8"):
        arguments = [*_generate(folder / name), "--out", str(folder / f"{name}.mp4")]
        yield f"generate from {name.replace('-', ' ')}", arguments, None


def _generate(weights: Path) -> list[str]:
    prompt = ["--prompt", "a red circle moving left quickly", "--text-cache", "none"]
    return ["generate", "--weights", str(weights), *prompt, *SIZE, "--device", "cpu"]


def _prepare(folder: Path) -> None:
    """Writes the model, unless it is there, and the job with its prompts."""
    if not (folder / "teacher").exists():
        folder.mkdir(parents=True)
        start = time.monotonic()
        size = write_published_size(folder / "teacher")
        print(f"wrote {size / 1e9:.1f} GB in {time.monotonic() - start:.0f} s", flush=True)
    (folder / "job.yaml").write_text(_JOB.format(teacher=folder / "teacher", folder=folder))
    prompts = "a red circle moving left\na blue square moving right\n"
    (folder / "prompts.txt").write_text(prompts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all of it and prints the table; returns 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="a folder with 30 GB of room")
    parser.add_argument("--limit-gib", type=float, default=16.0)
    parser.add_argument("--small-limit-gib", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--rows", default="", metavar="TEXT", help="run rows named like this alone")
    options = parser.parse_args(arguments)
    folder: Path = options.work.resolve()
    kept = folder.exists()
    if kept and not (folder / "teacher" / "model_index.json").is_file():
        parser.error(f"--work: {folder} has no whole model; name a new folder")
    rows: list[Row] = []
    try:
        _prepare(folder)
        for limit, chosen in (
            (options.limit_gib, commands(folder)),
            (options.small_limit_gib, small_commands(folder)),
        ):
            for name, command, afterwards in chosen:
                if options.rows not in name:
                    continue
                print(f"{name} within {limit:g} GiB", flush=True)
                rows.append(run(name, command, limit, options.threads))
                print(rows[-1].line(), flush=True)
                if afterwards is not None:
                    shutil.rmtree(afterwards, ignore_errors=True)
    finally:
        if not (options.keep or kept):
            shutil.rmtree(folder)
    print(HEAD, *[row.line() for row in rows], sep="\n")
    return int(any(row.code for row in rows))


if __name__ == "__main__":
    sys.exit(main())
