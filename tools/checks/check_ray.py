"""Serves and generates on two local Ray nodes, kills what works there, and looks for lost videos.

    python -m tools.checks.check_ray --weights demo/student

It starts a Ray cluster of two nodes on this machine, and ``serve --ray`` with two engines. Once
both work, one is killed by SIGKILL until a job is queued again for it; more jobs are sent, and the
server is killed and started again. Every accepted job must be completed with a whole video.

Then ``generate --ray`` makes the videos of a prompt file. The command is killed by SIGKILL in the
middle, and the same command makes the rest; meanwhile one of the two nodes is ended. All files must
be byte by byte those that ``generate`` makes without Ray.

With ``--image-weights DIR``, a student that starts videos from an image, ``serve --ray`` also makes
videos from two images, which must be byte by byte those of ``generate --image``.

Exit code 1 if anything is missing. Takes minutes (two to eleven of two cores), and needs ``pip
install 'lightx2v-sgmd[serve,ray]'``.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.video import read_video

_PATIENCE_S: Final = 600.0
_KILLS: Final = 3
"""Engines that are killed at most: one that had no job at that moment is not missed."""
_NOTICE_S: Final = 60.0


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def engines(others: Collection[int] = ()) -> list[int]:
    """The process numbers of the engines; Ray names its processes after what they run.

    Args:
        others: Those of other servers on this machine, which are left out.
    """
    name = "ServeReplica:lightx2v-sgmd-"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = int(folder.name) not in others
            if ours and name in (folder / "cmdline").read_text(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def missed_engines(videos: str) -> int:
    """Counts how often the server queued jobs again because an engine was gone."""
    with urllib.request.urlopen(videos.replace("/v1/videos", "/metrics"), timeout=60) as answer:
        found = re.search(rb"worker_restarts_total (\d+)", answer.read())
    assert found is not None, "the server counts what it starts again"
    return int(found[1])


def start_server(weights: str, data: Path, address: str) -> tuple[subprocess.Popen[str], str]:
    """Starts ``serve --ray``; returns its process and the address of its videos."""
    command = [sys.executable, "-m", "lightx2v_sgmd", "serve", "--ray", "--replicas", "2"]
    command += ["--weights", weights, "--port", "0", "--data", str(data), "--json"]
    command += ["--device", "cpu", "--batch", "1", "--queue-limit", "1000"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    # Ray may say something first.
    line = next((line for line in server.stdout if line.startswith("{")), None)
    if line is None:
        sys.exit("the server did not start; its messages are above")
    return server, json.loads(line)["url"] + "/v1/videos"


def serve_and_kill(weights: str, data: Path, jobs: int, address: str) -> list[str]:
    """Sends jobs, kills an engine, sends as many again, kills the server; returns all names."""
    others = engines()
    server, videos = start_server(weights, data, address)
    until = time.monotonic() + _PATIENCE_S

    def send(count: int) -> list[str]:
        return [ask(videos, {"prompt": f"a red circle {i}"})["id"] for i in range(count)]

    def unfinished() -> Counter[str]:
        states = Counter(ask(f"{videos}/{name}")["status"] for name in names)
        return Counter({name: states[name] for name in ("queued", "in_progress")})

    try:
        names: list[str] = []
        for _ in range(_KILLS):
            names += send(jobs)
            while len(engines(others)) < 2 and unfinished()["queued"] and time.monotonic() < until:
                time.sleep(0.2)
            running, waiting = engines(others), unfinished()
            if not running:
                sys.exit("no engine works; send more --jobs")
            os.kill(running[0], signal.SIGKILL)
            print(f"killed 1 of {len(running)} engines, with {dict(waiting)}", flush=True)
            noticed = time.monotonic() + _NOTICE_S
            while not missed_engines(videos) and time.monotonic() < noticed:
                time.sleep(0.2)
            if missed_engines(videos):
                break
        else:
            sys.exit(f"no job was queued again after {_KILLS} engines were killed")
        names += send(jobs)
        waiting = unfinished()
        server.kill()
        server.wait()
        print(f"killed the server, with {dict(waiting)}; it is started again", flush=True)
        server, videos = start_server(weights, data, address)
        while unfinished().total() and time.monotonic() < until:
            time.sleep(0.5)
    finally:
        server.terminate()
        server.wait()
    return names


def images_through_engines(weights: str, folder: Path, address: str) -> list[str]:
    """Makes a video from each of two images with and without Ray; returns what is wrong.

    Args:
        weights: A student that starts videos from an image.
        folder: Where everything goes.
        address: The cluster.
    """
    from PIL import Image

    prompt, seed, made = "a red circle", 3, {}
    server, videos = start_server(weights, folder / "image-data", address)
    until = time.monotonic() + _PATIENCE_S
    try:
        for colour in ("red", "blue"):
            content = io.BytesIO()
            Image.new("RGB", (64, 48), colour).save(content, "PNG")
            (folder / f"{colour}.png").write_bytes(content.getvalue())
            url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
            job = ask(videos, {"prompt": prompt, "seed": seed, "input_reference": url})
            while job["status"] in ("queued", "in_progress") and time.monotonic() < until:
                time.sleep(0.5)
                job = ask(f"{videos}/{job['id']}")
            if job["status"] != "completed":
                return [f"the video from {colour}.png is {job['status']}: {job['error']}"]
            made[colour] = (folder / f"image-data/videos/{job['id']}.mp4").read_bytes()
    finally:
        server.terminate()
        server.wait()
    problems = []
    for colour, film in made.items():
        image, file = folder / f"{colour}.png", folder / f"{colour}.mp4"
        command = [sys.executable, "-m", "lightx2v_sgmd", "generate", "--weights", weights]
        command += ["--prompt", prompt, "--seed", str(seed), "--image", str(image)]
        command += ["--out", str(file), "--device", "cpu", "--quiet"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if file.read_bytes() != film:
            problems.append(f"the video from {colour}.png is not the one of generate --image")
    if made["red"] == made["blue"]:
        problems.append("two images gave the same video")
    print(f"{len(made)} videos from images, {len(problems)} problems", flush=True)
    return problems


def problems_of(data: Path, names: list[str]) -> list[str]:
    """Names jobs that are lost, unfinished or half written."""
    from infer.serve.jobs import JobStore

    problems, died = [], 0
    with closing(JobStore(data / "queue.sqlite")) as store:
        for name in names:
            job = store.get(name)
            if job is None or job.status != "completed":
                problems.append(f"{name} is {job and (job.status, job.error)}")
                continue
            died += job.deaths
            frames, _ = read_video(data / "videos" / f"{name}.mp4")
            if len(frames) != job.num_frames:
                problems.append(f"{name} has {len(frames)} frames, not {job.num_frames}")
    print(f"{len(names)} accepted, {len(names) - len(problems)} completed, {died} made again")
    return problems


def generate_and_kill(
    weights: str, folder: Path, count: int, address: str, end_a_node: Callable[[], None]
) -> list[str]:
    """Generates with and without Ray; returns what is wrong.

    Args:
        weights: The student.
        folder: Where everything goes.
        count: The number of videos.
        address: The cluster.
        end_a_node: Ends one of its machines.
    """
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a red circle {i}\n" for i in range(count)))
    here, there = folder / "here", folder / "there"

    def command(out: Path, *more: str) -> list[str]:
        wanted = ["--weights", weights, "--prompts", str(prompts), "--out", str(out)]
        start = [sys.executable, "-m", "lightx2v_sgmd", "generate", "--quiet", "--json"]
        return [*start, *wanted, "--device", "cpu", "--batch", "2", *more]

    def wait_for(videos: int, process: subprocess.Popen[str]) -> None:
        while len(list(there.glob("*.mp4"))) < videos and process.poll() is None:
            time.sleep(0.05)

    # A task has one core, and another number of threads would round otherwise.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(here), check=True, stdout=subprocess.DEVNULL, env=alone)
    first = subprocess.Popen(command(there, "--ray", address), stdout=subprocess.PIPE, text=True)
    wait_for(2, first)
    first.kill()
    first.communicate()
    left = len(list(there.glob("*.mp4")))
    print(f"killed the command after {left} of {count} videos", flush=True)
    second = subprocess.Popen(command(there, "--ray", address), stdout=subprocess.PIPE, text=True)
    wait_for(left + 2, second)
    end_a_node()
    print(f"ended a node after {len(list(there.glob('*.mp4')))} videos", flush=True)
    said, _ = second.communicate()
    if second.returncode:
        return [f"generate --ray ended with {second.returncode}: {said}"]
    if not said.startswith("{"):
        return [f"generate --ray --json printed {said[:200]!r}"]
    print(f"{json.loads(said)['skipped']} videos were not made again", flush=True)
    made = [file for folder in (here, there) for file in folder.iterdir()]
    names = {file.name for file in made if file.suffix in (".mp4", ".json")}
    return [
        f"{name} is not the file that generate makes without Ray"
        for name in sorted(names)
        if not all((folder / name).is_file() for folder in (here, there))
        or (here / name).read_bytes() != (there / name).read_bytes()
    ]


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--weights", required=True, help="a student")
    parser.add_argument("--jobs", type=int, default=60, help="videos before each kill, and after")
    parser.add_argument("--image-weights", help="a student that starts videos from an image")
    args = parser.parse_args()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 3, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    other = cluster.add_node(num_cpus=3, object_store_memory=200 * 2**20)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            names = serve_and_kill(args.weights, data, args.jobs, cluster.address)
            problems = problems_of(data, names)
            if args.image_weights:
                problems += images_through_engines(
                    args.image_weights, Path(folder), cluster.address
                )
            problems += generate_and_kill(
                args.weights,
                Path(folder),
                args.jobs,
                cluster.address,
                lambda: cluster.remove_node(other),
            )
    finally:
        cluster.shutdown()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
