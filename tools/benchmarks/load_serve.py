"""Loads a server of its own on loopback, and compares it with bare generation.

    python -m tools.benchmarks.load_serve --weights demo/student --requests 40 --clients 4

Clients create videos, ask for their state every ``--poll-s`` seconds and download them. Reported
are videos per second, the 50th and 99th percentile of the time from request to file, the time of
the API's own answers, and the overhead: the processor time of worker and server for each video over
that of the engine alone, which makes the same videos one by one in this process, half of them
before and half of them after. Processor time is compared because other programs do not change it
much; how much they did is the difference of the two halves. The server first makes videos of the
size as trained until its previews have learnt, and these are not in the figures. Exit code 1 if a
video was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

_MOST: Final = 1000


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def bare_seconds(weights: str, count: int, out: Path, size: dict[str, Any]) -> tuple[float, float]:
    """Processor and wall seconds for each video of the engine alone, written as mp4."""
    from infer import Options, load_student

    student = load_student(weights, Options(device="cpu"), quiet=True)
    student.generate("a red circle", seed=0, **size).save(out / "warm.mp4")
    processor, wall = _own_seconds(), time.perf_counter()
    for seed in range(count):
        student.generate("a red circle", seed=seed, **size).save(out / f"{seed}.mp4")
    return (_own_seconds() - processor) / count, (time.perf_counter() - wall) / count


def _own_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def process_seconds(pid: int, with_ended: bool = False) -> float:
    """Processor seconds of a process, and of its children that ended if wanted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_ended else 13])) / os.sysconf("SC_CLK_TCK")


def tree_seconds(pid: int) -> float:
    """Processor seconds of a process, its children that ended, and those that run."""
    total = process_seconds(pid, with_ended=True)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(tree_seconds(int(child)) for child in children)


def ask(url: str, body: dict[str, Any] | None = None) -> bytes:
    """The body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        content: bytes = answer.read()
    return content


class Load:
    """Requests of several clients, and how long they took."""

    def __init__(self, url: str, poll_s: float, size: dict[str, int]) -> None:
        self.poll_s, self.size = poll_s, size
        self.url, self.lock = url, threading.Lock()
        self.whole: list[float] = []
        self.answers: list[float] = []
        self.lost: list[str] = []

    def _timed(self, url: str, body: dict[str, Any] | None = None) -> bytes:
        started = time.perf_counter()
        content = ask(url, body)
        with self.lock:
            self.answers.append(time.perf_counter() - started)
        return content

    def one(self, seed: int, as_trained: bool = False) -> None:
        """Creates a video, waits for it and downloads it."""
        started, videos = time.perf_counter(), f"{self.url}/v1/videos"
        size = {} if as_trained else self.size
        body = {"prompt": "a red circle", "seed": seed, **size}
        job = json.loads(self._timed(videos, body))
        while job["status"] in ("queued", "in_progress"):
            time.sleep(self.poll_s)
            job = json.loads(self._timed(f"{videos}/{job['id']}"))
        content = ask(f"{videos}/{job['id']}/content") if job["status"] == "completed" else b""
        with self.lock:
            self.whole.append(time.perf_counter() - started)
            if content[4:8] != b"ftyp":
                self.lost.append(f"{job['id']} is {job['status']}")


def measure(
    weights: str, requests: int, clients: int, poll_s: float, size: dict[str, int], folder: Path
) -> dict[str, Any]:
    """The figures of a load.

    Args:
        weights: The student.
        requests: The number of videos.
        clients: The number of clients at a time.
        poll_s: Seconds between two questions of a client.
        size: Height, width and frames, where they are not those of the weights.
        folder: The folder of the videos.
    """
    from infer.serve.work.previews import LEARN_FROM

    half = -(-min(requests, 20) // 2)
    before = bare_seconds(weights, half, folder, size)
    command = [sys.executable, "-m", "lightx2v_sgmd", "serve", "--weights", weights, "--port", "0"]
    command += ["--data", str(folder / "data"), "--json", "--device", "cpu", "--batch", "1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        load = Load(json.loads(server.stdout.readline())["url"], poll_s, size)
        for seed in range(LEARN_FROM):
            load.one(seed, as_trained=True)
        load.one(0)  # everything has run once
        load.whole, load.answers = [], []
        api, processor = process_seconds(server.pid), tree_seconds(server.pid)
        wall = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(load.one, range(requests)))
        wall = time.perf_counter() - wall
        api = (process_seconds(server.pid) - api) / requests
        processor = (tree_seconds(server.pid) - processor) / requests
    finally:
        server.terminate()
        server.wait()
    after = bare_seconds(weights, half, folder, size)
    bare_processor, bare_wall = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    return {
        "requests": requests,
        "clients": clients,
        "poll_s": poll_s,
        "videos_per_second": requests / wall,
        "bare_videos_per_second": 1 / bare_wall,
        "p50_s": percentile(load.whole, 0.5),
        "p99_s": percentile(load.whole, 0.99),
        "answer_p50_s": percentile(load.answers, 0.5),
        "answer_p99_s": percentile(load.answers, 0.99),
        "answers": len(load.answers),
        "processor_s": processor,
        "api_processor_s": api,
        "bare_processor_s": bare_processor,
        "bare_processor_s_before": before[0],
        "bare_processor_s_after": after[0],
        "overhead": processor / bare_processor - 1,
        "lost": load.lost,
    }


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", required=True, help="a student")
    parser.add_argument("--requests", type=int, default=40, help="videos (default 40)")
    parser.add_argument("--clients", type=int, default=4, help="clients at a time (default 4)")
    parser.add_argument(
        "--poll-s", type=float, default=1.0, help="seconds between two questions (default 1)"
    )
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="default as trained")
    args = parser.parse_args()
    asked = {name: getattr(args, name) for name in ("height", "width", "num_frames")}
    size = {name: value for name, value in asked.items() if value is not None}
    if not 0 < args.clients <= args.requests <= _MOST:
        print(f"error: give 1 to {_MOST} requests and no more clients", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            args.weights, args.requests, args.clients, args.poll_s, size, Path(folder)
        )
    print(json.dumps(figures, indent=2))
    sys.exit(1 if figures["lost"] else 0)


if __name__ == "__main__":
    main()
