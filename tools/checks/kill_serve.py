"""Kills a real server, or its worker, by SIGKILL at many moments, and looks for lost jobs.

    python -m tools.checks.kill_serve --weights demo/student --kills 30

Jobs are created without a pause while one of the two processes is killed after a random time, and
started again. At the end every accepted job must be completed with a whole video. A job that was
being made at three kills of the worker is failed, as it must be: the server cannot know that the
job was not the reason. This check therefore notes which jobs each kill hit, and a job that says of
more deaths than hit it is a problem. Exit code 1 if there is one.

The tests kill at chosen moments and without a student (tests/infer/serve/dying.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.video import read_video

_DIED: Final = "the process that makes the videos died"
_PATIENCE_S: Final = 600.0


class Server:
    """``lightx2v-sgmd serve`` as a process."""

    def __init__(self, weights: str, data: Path) -> None:
        command = [sys.executable, "-m", "lightx2v_sgmd", "serve", "--weights", weights]
        command += ["--port", "0", "--data", str(data), "--json", "--queue-limit", "1000"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a request, or None if the server is gone."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError, ValueError):
            return None

    def workers(self) -> list[int]:
        """The process numbers of its workers."""
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [
            int(name)
            for name in found
            if "spawn_main" in Path(f"/proc/{name}/cmdline").read_text(errors="replace")
        ]

    def kill(self) -> None:
        """Kills the server and waits."""
        self.process.kill()
        self.process.wait()

    def kill_worker(self, data: Path) -> list[str]:
        """Kills the worker; returns the names of the jobs that it was making.

        The worker is stopped first, so that it claims and finishes nothing between the look into
        the queue and the kill.
        """
        hit: list[str] = []
        for worker in self.workers():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                hit += in_progress(data)
                os.kill(worker, signal.SIGKILL)
        return hit


def in_progress(data: Path) -> list[str]:
    """The names of the jobs that are being made."""
    with closing(sqlite3.connect(data / "queue.sqlite", timeout=60)) as db:
        rows = db.execute("SELECT id FROM jobs WHERE status = 'in_progress'").fetchall()
    return [str(name) for (name,) in rows]


def kill_again_and_again(
    weights: str, data: Path, kills: int, seed: int
) -> tuple[list[str], Counter[str]]:
    """Creates jobs and kills.

    Returns:
        The names of the accepted jobs, and how many kills of the worker hit each of them.
    """
    chance = random.Random(seed)
    accepted: list[str] = []
    hits: Counter[str] = Counter()
    server = Server(weights, data)
    for number in range(kills):
        until = time.monotonic() + chance.uniform(0.0, 3.0)
        while time.monotonic() < until:
            answer = server.ask("/v1/videos", {"prompt": f"a red circle {len(accepted)}"})
            if answer is not None:
                accepted.append(answer["id"])
            time.sleep(chance.uniform(0.05, 0.4))
        whole = number % 2 == 0
        if whole:
            server.kill()
            server = Server(weights, data)
        else:
            hits.update(server.kill_worker(data))
        killed = "server" if whole else "worker"
        print(f"kill {number + 1}/{kills} of the {killed}, {len(accepted)} accepted", flush=True)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        jobs = [server.ask(f"/v1/videos/{name}") for name in accepted]
        if all(job is None or job["status"] in ("completed", "failed") for job in jobs):
            break
        time.sleep(0.5)
    server.process.terminate()
    server.process.wait()
    return accepted, hits


def problems_of(data: Path, accepted: list[str], hits: Counter[str]) -> list[str]:
    """Names jobs that are lost, unfinished or half written, and deaths that no kill explains."""
    from infer.serve.jobs import MOST_DEATHS, JobStore

    problems, completed = [], set()
    with closing(JobStore(data / "queue.sqlite")) as store:
        for name in accepted:
            job = store.get(name)
            if job is not None and job.deaths > hits[name]:
                problems.append(f"{name} has {job.deaths} deaths, but {hits[name]} kills hit it")
            if job is None or job.status not in ("completed", "failed"):
                problems.append(f"{name} is {job.status if job else 'lost'}")
            elif job.status == "failed":
                if hits[name] < MOST_DEATHS or not str(job.error).startswith(_DIED):
                    problems.append(f"{name} failed: {job.error}")
            else:
                completed.add(name)
                frames, _ = read_video(data / "videos" / f"{name}.mp4")
                if len(frames) != job.num_frames:
                    problems.append(f"{name} has {len(frames)} frames, not {job.num_frames}")
        known = store.names()
    files = {path.name for path in (data / "videos").iterdir()}
    left = files - {f"{name}.mp4" for name in known}
    problems += [f"{name} was left" for name in sorted(left)]
    often = sum(count >= MOST_DEATHS for count in hits.values())
    print(
        f"{len(accepted)} accepted, {len(completed)} completed, {often} hit by {MOST_DEATHS} kills"
    )
    return problems


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", required=True, help="a student")
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        accepted, hits = kill_again_and_again(args.weights, data, args.kills, args.seed)
        problems = problems_of(data, accepted, hits)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
