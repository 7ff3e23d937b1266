"""Runs pairs of commands on one output, kills them at random, and checks what is left.

    python -m tools.checks.stress_outputs --minutes 10 --work stress

Each round starts two commands on one output a moment apart: two trainings, two exports, two rounds
of videos, two embeddings, two collections of pairs, two encodings of clips, two evaluations (in
several processes, too), two studies, two comparisons, or a training and an export of it. Each gets
a SIGKILL, a SIGTERM or a Ctrl-C when it has used a random share of the processor time that such a
command needs, up to a tenth more than all of it: so kills fall early and late alike, however busy
the machine is. Most are late ones, because a command writes at its end.
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
from functools import partial
from pathlib import Path

from safetensors import safe_open

from infer.batch.sidecars import problem, sidecar
from lightx2v_sgmd.apps.study.collecting import page_files
from lightx2v_sgmd.apps.study.key import read_key
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.latents import LatentFolder
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.outputs.record import WrittenFiles
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
    "latents/README": "whose these are",
    "evaluated/notes.txt": "what I make of it",
    "shared/notes.txt": "what I make of it",
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT_S = 600.0
"""A command that takes longer hangs, on a busy machine too."""
GRACE_S = 30.0
"""Seconds after the first signal until a SIGKILL follows."""
DISTILL = ["distill", "job.yaml"]
EXPORT = ["export", "run", "--out", "student", "--dtype", "fp32"]
GENERATE = ["generate", "--weights", "base_student", "--text-cache", "none"]
EMBED = ["embed", "job.yaml"]
COLLECT = ["collect-pairs", "job.yaml", "--out", "pairs", "--count", "4", "--shard", "1"]
COLLECT += ["--steps", "4"]
ENCODE = ["encode-videos", "clips", "--job", "job.yaml", "--out", "latents", "--shard", "1"]
EVALUATE = ["evaluate", "--weights", "base_student", "--against", "clips", "--out", "evaluated"]
EVALUATE += ["--prompts", "prompts.txt"]
SHARED = [*EVALUATE, "--out", "shared", "--nproc", "2", "--device", "cpu"]
CREATE = ["study", "create", "--a", "clips", "--b", "clips", "--catch", "1", "--out"]
COMPARE = ["compare", "job.yaml", "--out", "compared", "--prompts", "4", "--curve-prompts", "2"]
COMPARE += ["--set", "train.iterations=2"]
QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter", "past its end")
TICKS = os.sysconf("SC_CLK_TCK")


def used_s(pid: int) -> float:
    """The processor time in seconds of a process, its threads and the processes it started."""
    total = 0.0
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rsplit(")", 1)[1].split()
        total += sum(map(int, fields[11:15])) / TICKS
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                total += used_s(int(child))
    except OSError:  # it has just ended
        pass
    return total


@dataclass
class Victim:
    """A started command, and when it is killed.

    Attributes:
        command: Arguments of the command.
        process: The running process.
        share: The share of the processor time it needs after which it gets the signal.
        how: The signal.
        used_s: The processor time that it has used, in seconds.
        signalled_s: When it got the signal; None before that.
    """

    command: Sequence[str]
    process: subprocess.Popen[str]
    share: float
    how: signal.Signals
    used_s: float = 0.0
    signalled_s: float | None = None


@dataclass
class Stress:
    """The record of a stress run.

    Attributes:
        work: The folder to work in.
        random: Decides what is done and when.
        ends: Number of commands by the kind of their end.
        kills: Number of signals by the quarter of its work that a command was in.
        needs_s: The processor time that a command needs, in seconds, by its name.
        problems: The faults that were found.
    """

    work: Path
    random: random.Random
    ends: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    needs_s: dict[str, float] = field(default_factory=dict)
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

    def undisturbed(self, command: Sequence[str]) -> str | None:
        """Runs a command to its end, and notes what it needs; returns its message if it fails."""
        process, needs_s = self.start(command), 0.0
        while process.poll() is None:
            needs_s = max(needs_s, used_s(process.pid))
            time.sleep(0.02)
        self.needs_s[command[0]] = max(needs_s, self.needs_s.get(command[0], 0.0))
        assert process.stderr is not None
        said = process.stderr.read().strip()
        return said[-500:] or "no message" if process.returncode != 0 else None

    def round(self, commands: Sequence[Sequence[str]]) -> None:
        """Two commands, each killed at a random moment or asked to stop, or left to end."""
        waiting: list[Victim] = []
        begin_s = time.monotonic()
        for command in commands:
            how = self.random.choice(SIGNALS)
            # A training has no end here: three times what its first iteration took.
            most = 3.0 if command[0] == "distill" else 1.1
            share = most * self.random.random() ** 0.5
            waiting.append(Victim(command, self.start(command), share, how))
            time.sleep(self.random.choice((0, 0.1, 1, 4)))
        while waiting:
            for victim in list(waiting):
                if victim.process.poll() is None:
                    self.watch(victim, begin_s)
                else:
                    waiting.remove(victim)
                    self.ended(victim.command, victim.process)
            time.sleep(0.02)

    def watch(self, victim: Victim, begin_s: float) -> None:
        """Sends a running command its signal when its moment has come."""
        now_s, process = time.monotonic(), victim.process
        victim.used_s = max(victim.used_s, used_s(process.pid))
        done = victim.used_s / self.needs_s[victim.command[0]]
        if now_s - begin_s > LIMIT_S:
            self.problems.append(f"hangs: {' '.join(victim.command)}")
            process.kill()
        elif victim.signalled_s is None and done >= victim.share:
            process.send_signal(victim.how)
            victim.signalled_s = now_s
            quarter = min(4, int(4 * done))
            self.kills[f"{victim.command[0]}: {QUARTERS[quarter]}"] += 1
        elif victim.signalled_s is not None and now_s - victim.signalled_s > GRACE_S:
            process.kill()

    def ended(self, command: Sequence[str], process: subprocess.Popen[str]) -> None:
        """Records a command that ended in a way it must not."""
        assert process.stderr is not None
        said = process.stderr.read().strip()
        kind, code = command[0], process.returncode
        expected = (
            *("is in use by", "or add --overwrite", "has no checkpoints"),
            *("holds a study", "during the export"),
        )
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
    """Checks that every checkpoint is whole, and that the log has every step once, in order."""
    for folder in store.checkpoints(run):
        store.verify(folder)
    damaged = list(run.glob("checkpoints/*.damaged*"))
    assert not damaged, f"set aside: {damaged}"
    log = run / "metrics.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)), f"{log}: {steps}"


def check_export(folder: Path) -> None:
    """Checks that an export is whole or absent."""
    if folder.exists():
        problems = verify(folder)
        assert not problems, f"{folder}: {problems}"


def check_videos(files: Sequence[Path]) -> None:
    """Checks that every video with a sidecar is whole and can be read."""
    for file in files:
        if file.exists() and sidecar(file).exists() and file.name not in ("holiday.mp4",):
            assert problem(file) is None, problem(file)
            assert len(read_video(file)[0]) == 9, file


def check_shards(folder: Path) -> None:
    """Checks that every shard of embeddings can be read."""
    for file in folder.glob("*/rows_*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            assert all(shard.get_tensor(key).isfinite().all() for key in shard.keys()), file


def check_latents(folder: Path) -> None:
    """Every shard of latents can be read, and all are of one kind."""
    if any(folder.glob("latents_*.safetensors")):
        latents = LatentFolder(folder)
        assert latents.read("x0", range(len(latents))).isfinite().all(), folder


def check_evaluation(folder: Path) -> None:
    """The results, if they are there, are whole, and as they were recorded."""
    for name in ("metrics.json", "report.html"):
        if (folder / name).exists():
            assert WrittenFiles(folder).is_own(name), f"{folder / name}: is not as recorded"
    if (folder / "metrics.json").exists():
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    check_videos([*folder.glob("videos/*/*.mp4")])


def check_study(folder: Path) -> None:
    """A study that has its key is whole, and videos of a page are."""
    if (folder / "key.json").exists():
        page_files(folder, read_key(folder / "key.json"))
    for file in folder.glob("page/videos/*.mp4"):
        assert len(read_video(file)[0]) == 9, file


def check(stress: Stress) -> None:
    """Checks every output and every file of the user after a round."""
    work = stress.work
    checks: list[Callable[[], None]] = [
        lambda: check_run(work / "run"),
        lambda: check_export(work / "student"),
        lambda: check_videos([*(work / "videos").glob("*.mp4"), work / "fox.mp4"]),
        lambda: check_shards(work / "embeddings"),
        lambda: check_latents(work / "pairs"),
        lambda: check_latents(work / "latents"),
        lambda: check_evaluation(work / "evaluated"),
        lambda: check_evaluation(work / "shared"),
        *(partial(check_study, folder) for folder in work.glob("study-*")),
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
    """Writes a run to export, prompts, and the files of a user."""
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


def learn(stress: Stress) -> str | None:
    """Runs every command once, to learn what it needs; returns what went wrong."""
    other = {"student": "first_student", "evaluated": "first_evaluation", "compared": "first"}
    other["study-0"] = "first_study"
    for name in ("pairs", "latents", "embeddings"):
        other[name] = f"first_{name}"
    clips = [*GENERATE, "--prompts", "prompts.txt", "--out", "clips"]
    commands = [
        [*DISTILL, "--set", "train.iterations=1", "--set", "output.dir=base"],
        [*DISTILL, "--set", "train.iterations=1"],
        ["export", "base", "--out", "base_student", "--dtype", "fp32"],
        clips,
        *(EXPORT, COLLECT, EMBED, EVALUATE, COMPARE, [*CREATE, "study-0"]),
    ]
    for command in commands:
        elsewhere = [other.get(word, word) for word in command]
        if command is EMBED:
            elsewhere += ["--set", "data.embeddings=first_embeddings"]
        if said := stress.undisturbed(elsewhere):
            return f"{' '.join(elsewhere)}: {said}"
    for prompt, clip in zip(PROMPTS, sorted((stress.work / "clips").glob("*.mp4")), strict=True):
        clip.with_suffix(".txt").write_text(prompt)
    said = stress.undisturbed([other.get(word, word) for word in ENCODE])
    return said and f"encode-videos: {said}"


def pairs(stress: Stress) -> list[list[list[str]]]:
    """Pairs of commands on one output, every kind once, in a random order."""
    seed, study = str(stress.random.randrange(3)), f"study-{stress.random.randrange(1000)}"
    for unfinished in stress.work.glob("study-*"):
        if not (unfinished / "key.json").exists():  # its create was killed
            study = unfinished.name
    folder = [*GENERATE, "--prompts", "prompts.txt", "--out", "videos", "--seed"]
    single = [*GENERATE, "--prompt", PROMPTS[0], "--out", "fox.mp4", "--seed"]
    kinds = [
        [DISTILL, DISTILL],
        [DISTILL, EXPORT],
        [EXPORT, [*EXPORT, "--overwrite"]],
        [[*EXPORT, "--overwrite"], [*EXPORT, "--overwrite"]],
        [[*folder, "0"], [*folder, seed]],
        [[*single, "0"], [*single, seed]],
        [EMBED, [*DISTILL, "--set", "train.iterations=1000"]],
        [EMBED, EMBED],
        [COLLECT, COLLECT],
        [ENCODE, ENCODE],
        [EVALUATE, [*EVALUATE, "--seed", seed]],
        [SHARED, [*SHARED, "--seed", seed]],
        [[*CREATE, study], [*CREATE, study]],
        [COMPARE, COMPARE],
    ]
    stress.random.shuffle(kinds)
    return kinds


def finish(stress: Stress) -> None:
    """Every command once more, undisturbed: it succeeds and leaves nothing but its result."""
    steps = max((store.step_of(f) for f in store.checkpoints(stress.work / "run")), default=0)
    commands = [
        *(EMBED, COLLECT, ENCODE, EVALUATE, SHARED, COMPARE),
        [*DISTILL, "--set", f"train.iterations={steps + 1}"],
        [*EXPORT, "--overwrite"],
        [*GENERATE, "--prompts", "prompts.txt", "--out", "videos"],
        [*GENERATE, "--prompt", PROMPTS[0], "--out", "fox.mp4"],
    ]
    for command in commands:
        if said := stress.undisturbed(command):
            stress.problems.append(f"at the end, {' '.join(command)}: {said}")
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
    if said := learn(stress):
        print(f"error: {said}", file=sys.stderr)
        return 1
    for name, content in FOREIGN.items():
        (work / name).write_text(content)
    waiting: list[list[list[str]]] = []
    rounds, until_s = 0, time.monotonic() + 60 * args.minutes
    while time.monotonic() < until_s:
        waiting = waiting or pairs(stress)
        stress.round(waiting.pop())
        check(stress)
        rounds += 1
    finish(stress)
    steps = [store.step_of(folder) for folder in store.checkpoints(work / "run")]
    print(f"{rounds} rounds in {args.minutes:g} minutes; the run is at step {max(steps)}")
    for title, counted in (("ends", stress.ends), ("signals", stress.kills)):
        print(title)
        for what, count in sorted(counted.items()):
            print(f"  {what:<50}{count:>5}")
    for what in stress.problems:
        print(f"WRONG: {what}")
    print("nothing was wrong" if not stress.problems else f"{len(stress.problems)} problems")
    return 1 if stress.problems else 0


if __name__ == "__main__":
    sys.exit(main())
