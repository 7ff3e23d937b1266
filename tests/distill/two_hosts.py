"""Two hosts of one rank each, cut apart and joined again; run by ``test_hosts``.

    unshare -rnm python -m tests.distill.two_hosts JOB.yaml RUN TIMEOUT_S

The hosts are network namespaces with names of their own, joined by a cable (a veth pair), inside
a user namespace: nothing of it is left on the machine. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOSTS = ("node-a", "node-b")
NO_PRIVILEGES = 77


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def lay_cable() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True, capture_output=True)
    for host in HOSTS:
        ip("netns", "add", host)
    ip("link", "add", "to-b", "type", "veth", "peer", "name", "to-a")
    for number, (host, end) in enumerate(zip(HOSTS, ("to-b", "to-a"), strict=True), start=1):
        ip("link", "set", end, "netns", host)
        ip("-n", host, "link", "set", end, "name", "eth0")
        ip("-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        ip("-n", host, "link", "set", "lo", "up")
        ip("-n", host, "link", "set", "eth0", "up")


def start(job: str, timeout_s: float) -> list[subprocess.Popen[str]]:
    """The command of docs/launch.md, on each host."""
    shared = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1"]
    signals = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    minutes = f"parallel.timeout_minutes={timeout_s / 60}"
    train = ["-m", "lightx2v_sgmd", "distill", job, "--quiet", "--set", minutes]
    processes = []
    for number, host in enumerate(HOSTS):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--node-rank", str(number)]
        address = ["--master-port", "29500", "--local-addr", f"10.77.0.{number + 1}"]
        named = ["unshare", "-u", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
        command = [*torchrun, *shared, *address, *signals, "--shutdown-timeout", "60", *train]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *named, *command],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def outcomes(processes: list[subprocess.Popen[str]], patience_s: float) -> dict[str, object]:
    """What each host said, and after how many seconds it ended; killed after ``patience_s``."""
    began, found = time.monotonic(), {}
    left = dict(zip(HOSTS, processes, strict=True))
    while left:
        late = time.monotonic() - began > patience_s
        for host, process in list(left.items()):
            if late:
                process.kill()
            if process.poll() is not None:
                seconds = time.monotonic() - began
                err = process.communicate()[1]
                found[host] = {"code": process.returncode, "seconds": seconds, "err": err}
                del left[host]
        time.sleep(0.05)
    return found


def main(job: str, run: Path, timeout_s: float) -> int:
    try:
        lay_cable()
    except (OSError, subprocess.CalledProcessError) as error:
        print(getattr(error, "stderr", error), file=sys.stderr)
        return NO_PRIVILEGES
    processes = start(job, timeout_s)
    wait_for_step(run, 3, processes)
    ip("-n", HOSTS[1], "link", "set", "eth0", "down")
    cut = outcomes(processes, patience_s=10 * timeout_s)
    done = (run / "metrics.jsonl").read_text().count("\n")
    ip("-n", HOSTS[1], "link", "set", "eth0", "up")
    processes = start(job, timeout_s)
    wait_for_step(run, done + 2, processes)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    resumed = outcomes(processes, patience_s=120)
    print(json.dumps({"cut": cut, "done": done, "resumed": resumed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
