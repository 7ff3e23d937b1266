"""Runs pairs of commands on one output, kills them at random, and checks what is left.

    python -m tools.checks.stress_outputs --minutes 10 --work stress

Each round starts two commands on one output a moment apart: two trainings, two exports, two rounds
of videos, two embeddings, two collections of pairs, two comparisons, or a training and an export of
it. Each may get a SIGKILL, a SIGTERM or a Ctrl-C at a random moment.
Files of a user lie in and beside every output. After each round everything that exists must
be whole, and those files as they were; a command that was not killed must have ended well, or have
said who has the output. At the end every command runs once more, undisturbed, and must succeed and
leave no lock and no temporary. Prints a summary; exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from infer.batch.sidecars import problem, sidecar
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.outputs.writer import temporaries
from lightx2v_sgmd.system.errors import UserError
from weights import verify

JOB = """
teacher: {path: sprites, guidance_scale: 8.0}
student: {optimizer: {lr: 1.0e-4}}
fake_score: {optimizer: {lr: 1.0e-4}}
data: {prompts: prompts.txt, embeddings: embeddings}
video: {height: 32, width: 32, num_frames: 9}
train: {iterations: 1000, micro_batch: 1, ema: 0.9, checkpoint_every: 1, sample_every: 5}
output: {dir: run}
"""
PROMPTS = ("a red circle moving left", "a blue square moving right", "a green triangle")
FOREIGN = {
    "run/slurm-17.out": "a log",
    "run/checkpoints/notes.txt": "which one was best",
    "run/samples/favourite.mp4": "not a video",
    "student.txt": "beside the export",
    "videos/package.json": '{"name": "somebody"}',
    "videos/holiday.mp4": "not a video",
    ".student.123.new": "somebody's",
    "embeddings/README": "whose these are",
    "fox.txt": "beside the video",
    "pairs/README": "whose these are",
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT_S = 180.0
"""A command that takes longer hangs."""


@dataclass
class Stress:
    """The record of a stress run.

    Attributes:
        work: The folder to work in.
        random: Decides what is done and when.
        ends: Number of commands by the kind of their end.
        problems: The faults that were found.
    """

    work: Path
    random: random.Random
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Starts a command in the working folder."""
        home = str(Path(__file__).resolve().parents[2])
        return subprocess.Popen(
            [sys.executable, "-m", "lightx2v_sgmd", *arguments, "--quiet"],
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def round(self, commands: Sequence[Sequence[str]]) -> None:
        """Two commands, each killed at a random moment or asked to stop, or left to end."""
        started: list[tuple[Sequence[str], subprocess.Popen[str], float, signal.Signals]] = []
        begin_s = time.monotonic()
        for command in commands:
            how = self.random.choice(
                (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
            )
            started.append((command, self.start(command), self.random.uniform(1, 20), how))
            time.sleep(self.random.choice((0, 0.1, 1, 4)))
        waiting = list(started)
        while waiting:
            passed_s = time.monotonic() - begin_s
            for item in list(waiting):
                command, process, kill_s, how = item
                if process.poll() is not None:
                    waiting.remove(item)
                    self.ended(command, process)
                elif passed_s > LIMIT_S:
                    self.problems.append(f"hangs: {' '.join(command)}")
                    process.kill()
                elif passed_s > kill_s:
                    process.send_signal(how)
                    how = signal.SIGKILL
                    # Another chance to save, then the end.
                    waiting[waiting.index(item)] = (command, process, passed_s + 30, how)
            time.sleep(0.02)

    def ended(self, command: Sequence[str], process: subprocess.Popen[str]) -> None:
        """Judges how a command has ended."""
        assert process.stderr is not None
        said = process.stderr.read().strip()
        kind, code = command[0], process.returncode
        expected = ("is in use by", "or add --overwrite", "has no checkpoints", "during the export")
        # The last: a file appeared there, or a running training has pruned what was read.
        if code == 130 and said.count("\n") + bool(said) > 1:
            self.problems.append(f"{' '.join(command)}: more than a line after Ctrl-C: {said}")
        if code in (0, 130, -signal.SIGKILL, -signal.SIGTERM):
            self.ends[f"{kind}: {code}"] += 1
        elif code == 2 and any(text in said for text in expected) and "\n" not in said:
            self.ends[f"{kind}: 2, {next(text for text in expected if text in said)}"] += 1
        else:
            self.problems.append(f"{' '.join(command)}: exit {code}: {said[-500:]}")


def check_run(run: Path) -> None:
    """Every checkpoint is whole, and the log has every step once, in order."""
    for folder in store.checkpoints(run):
        store.verify(folder)
    damaged = list(run.glob("checkpoints/*.damaged*"))
    assert not damaged, f"set aside: {damaged}"
    log = run / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)), f"{log}: {steps}"


def check_export(folder: Path) -> None:
    """An export is not there, or whole."""
    if folder.exists():
        problems = verify(folder)
        assert not problems, f"{folder}: {problems}"


def check_videos(files: Sequence[Path]) -> None:
    """Every video with a sidecar is whole and plays."""
    for file in files:
        if file.exists() and sidecar(file).exists() and file.name not in ("holiday.mp4",):
            assert problem(file) is None, problem(file)
            assert len(read_video(file)[0]) == 9, file


def check_shards(folder: Path) -> None:
    """Every shard of embeddings can be read."""
    for file in folder.glob("*/rows_*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            assert all(shard.get_tensor(key).isfinite().all() for key in shard.keys()), file


def check_pairs(folder: Path) -> None:
    """Every shard of pairs can be read, and all are of one kind."""
    if any(folder.glob("latents_*.safetensors")):
        pairs = LatentFolder(folder)
        assert pairs.read("x0", range(len(pairs))).isfinite().all(), folder


def check(stress: Stress) -> None:
    """Looks at everything after a round."""
    work = stress.work
    checks: list[Callable[[], None]] = [
        lambda: check_run(work / "run"),
        lambda: check_export(work / "student"),
        lambda: check_videos([*(work / "videos").glob("*.mp4"), work / "fox.mp4"]),
        lambda: check_shards(work / "embeddings"),
        lambda: check_pairs(work / "pairs"),
    ]
    for one in checks:
        try:
            one()
        except (AssertionError, UserError, ValueError, OSError) as error:
            stress.problems.append(f"not whole: {error}")
    for name, content in FOREIGN.items():
        path = work / name
        if not path.is_file() or path.read_text() != content:
            stress.problems.append(f"a file of the user's is not as it was: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


def prepare(work: Path) -> None:
    """A run to export, prompts, and the files of a user."""
    work.mkdir(parents=True)
    (work / "job.yaml").write_text(JOB)
    (work / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    for name, content in FOREIGN.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        # A checkpoints folder that is there before the run would be somebody's.
        if not name.startswith("run/"):
            (work / name).write_text(content)
    for folder in ("run/checkpoints", "run/samples", "run"):
        (work / folder).rmdir()


def pairs(stress: Stress) -> list[list[str]]:
    """Two commands on one output."""
    seed = str(stress.random.randrange(3))
    distill = ["distill", "job.yaml"]
    export = ["export", "run", "--out", "student", "--dtype", "fp32"]
    folder = ["generate", "--weights", "base_student", "--prompts", "prompts.txt"]
    folder += ["--out", "videos", "--text-cache", "none", "--seed"]
    single = ["generate", "--weights", "base_student", "--prompt", PROMPTS[0]]
    single += ["--out", "fox.mp4", "--text-cache", "none", "--seed"]
    embed = ["embed", "job.yaml"]
    collect = ["collect-pairs", "job.yaml", "--out", "pairs", "--count", "4"]
    collect += ["--shard", "1", "--steps", "4"]
    compare = ["compare", "job.yaml", "--out", "compared", "--prompts", "4"]
    compare += ["--curve-prompts", "2", "--set", "train.iterations=2"]
    kinds = [
        [distill, distill],
        [distill, export],
        [export, [*export, "--overwrite"]],
        [[*export, "--overwrite"], [*export, "--overwrite"]],
        [[*folder, "0"], [*folder, seed]],
        [[*single, "0"], [*single, seed]],
        [embed, [*distill, "--set", "train.iterations=1000"]],
        [embed, embed],
        [collect, collect],
        [compare, compare],
    ]
    return [list(command) for command in stress.random.choice(kinds)]


def finish(stress: Stress) -> None:
    """Every command once more, undisturbed: it succeeds and leaves nothing but its result."""
    steps = max((store.step_of(f) for f in store.checkpoints(stress.work / "run")), default=0)
    commands = [
        ["embed", "job.yaml"],
        ["collect-pairs", "job.yaml", "--out", "pairs", "--count", "4", "--shard", "1"]
        + ["--steps", "4"],
        ["compare", "job.yaml", "--out", "compared", "--prompts", "4", "--curve-prompts", "2"]
        + ["--set", "train.iterations=2"],
        ["distill", "job.yaml", "--set", f"train.iterations={steps + 1}"],
        ["export", "run", "--out", "student", "--dtype", "fp32", "--overwrite"],
        *(
            ["generate", "--weights", "base_student", "--text-cache", "none", *rest]
            for rest in (
                ["--prompts", "prompts.txt", "--out", "videos"],
                ["--prompt", PROMPTS[0], "--out", "fox.mp4"],
            )
        ),
    ]
    for command in commands:
        process = stress.start(command)
        _, said = process.communicate(timeout=600)
        if process.returncode != 0:
            stress.problems.append(f"at the end, {' '.join(command)}: {said.strip()[-500:]}")
    check(stress)
    folders = [stress.work, *(p for p in stress.work.rglob("*") if p.is_dir())]
    left = [str(path) for folder in folders for path, _, _ in temporaries(folder)]
    left += [str(path) for path in stress.work.rglob(".*") if path.name.endswith(".lock")]
    left += [str(path) for path in stress.work.rglob(".step_*")]
    if left:
        stress.problems.append(f"left behind: {left}")


def main() -> int:
    """Runs the rounds and prints what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="Duration; default 10.")
    parser.add_argument("--work", type=Path, required=True, help="A folder that does not exist.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random moments.")
    args = parser.parse_args()
    if args.work.exists():
        print(f"error: {args.work} exists; name a new folder", file=sys.stderr)
        return 2
    work = args.work.resolve()
    prepare(work)
    stress = Stress(work, random.Random(args.seed))
    first = [
        ["distill", "job.yaml", "--set", "train.iterations=1", "--set", "output.dir=base"],
        ["distill", "job.yaml", "--set", "train.iterations=1"],
        ["export", "base", "--out", "base_student", "--dtype", "fp32"],
    ]
    for command in first:
        process = stress.start(command)
        _, said = process.communicate(timeout=600)
        if process.returncode != 0:
            print(f"error: {' '.join(command)}: {said}", file=sys.stderr)
            return 1
    for name, content in FOREIGN.items():
        (work / name).write_text(content)
    rounds, until_s = 0, time.monotonic() + 60 * args.minutes
    while time.monotonic() < until_s:
        stress.round(pairs(stress))
        check(stress)
        rounds += 1
    finish(stress)
    steps = [store.step_of(folder) for folder in store.checkpoints(work / "run")]
    print(f"{rounds} rounds in {args.minutes:g} minutes; the run is at step {max(steps)}")
    for end, count in sorted(stress.ends.items()):
        print(f"  {end:<50}{count:>5}")
    for what in stress.problems:
        print(f"WRONG: {what}")
    print("nothing was wrong" if not stress.problems else f"{len(stress.problems)} problems")
    return 1 if stress.problems else 0


if __name__ == "__main__":
    sys.exit(main())
