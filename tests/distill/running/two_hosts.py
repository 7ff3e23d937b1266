"""Two hosts of one rank each, under the launchers of docs/launch.md; run by ``test_hosts``.

    unshare -rnm python -m tests.distill.running.two_hosts torchrun JOB.yaml RUN TIMEOUT_S
    unshare -rnm python -m tests.distill.running.two_hosts deepspeed JOB.yaml

torchrun's are cut apart and joined again, those of the deepspeed launcher run to the end. The
hosts are network namespaces with names of their own, joined by a cable (a veth pair), inside a user
namespace: nothing of it is left on the machine. Prints what happened as JSON.
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
PATIENCE_S = 600


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


def start(commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    """A command on each host."""
    processes = []
    for host, command in zip(HOSTS, commands, strict=True):
        named = ["unshare", "-u", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
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


def torchrun(job: str, timeout_s: float) -> list[subprocess.Popen[str]]:
    shared = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1"]
    signals = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    minutes = f"parallel.timeout_minutes={timeout_s / 60}"
    train = ["-m", "lightx2v_sgmd", "distill", job, "--quiet", "--set", minutes]
    commands = []
    for number in range(len(HOSTS)):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--node-rank", str(number)]
        address = ["--master-port", "29500", "--local-addr", f"10.77.0.{number + 1}"]
        commands.append(
            [*launcher, *shared, *address, *signals, "--shutdown-timeout", "60", *train]
        )
    return start(commands)


def deepspeed(job: str) -> list[subprocess.Popen[str]]:
    """Without ssh."""
    hostfile = Path(job).with_name("hosts.txt")
    hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS), encoding="utf-8")
    shared = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", "10.77.0.1"]
    train = ["--module", "lightx2v_sgmd", "distill", job, "--quiet"]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *shared, "--node_rank"]
    return start([[*launcher, str(number), *train] for number in range(len(HOSTS))])


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def outcomes(processes: list[subprocess.Popen[str]]) -> dict[str, object]:
    """The output of each host, and its exit code; killed after ``PATIENCE_S``."""
    began = time.monotonic()
    found: dict[str, object] = {}
    left = dict(zip(HOSTS, processes, strict=True))
    while left:
        late = time.monotonic() - began > PATIENCE_S
        for host, process in list(left.items()):
            if late:
                process.kill()
            if process.poll() is not None:
                out, err = process.communicate()
                code = process.returncode
                found[host] = {"code": code, "out": out, "err": err}
                del left[host]
        time.sleep(0.05)
    return found


def cut_apart(job: str, run: Path, timeout_s: float) -> dict[str, object]:
    processes = torchrun(job, timeout_s)
    wait_for_step(run, 3, processes)
    ip("-n", HOSTS[1], "link", "set", "eth0", "down")
    cut = outcomes(processes)
    done = (run / "metrics.jsonl").read_text().count("\n")
    ip("-n", HOSTS[1], "link", "set", "eth0", "up")
    processes = torchrun(job, timeout_s)
    wait_for_step(run, done + 2, processes)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    return {"cut": cut, "done": done, "resumed": outcomes(processes)}


def main(launcher: str, job: str, *options: str) -> int:
    try:
        lay_cable()
    except (OSError, subprocess.CalledProcessError) as error:
        print(getattr(error, "stderr", error), file=sys.stderr)
        return NO_PRIVILEGES
    if launcher == "deepspeed":
        found = outcomes(deepspeed(job))
    else:
        found = cut_apart(job, Path(options[0]), float(options[1]))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
