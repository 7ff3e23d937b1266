"""Starts the processes of a run on this machine, and runs as one of them.

``torchrun`` would do, but it turns a rank's exit code into 1, prints a page for one failing rank,
and kills ranks that are still saving 30 s after a SIGTERM. So the ranks are plain subprocesses
with the variables that ``torchrun`` sets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.running.reports import VARIABLE, RankError, read_report, write_report
from distill.running.signals import STOPPING, interruptible
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel.rendezvous import host_store
from lightx2v_sgmd.system.errors import RunError, UserError
from lightx2v_sgmd.system.processes import (
    follow_parent,
    handling,
    leave,
    process_environment,
    release,
    start_module,
)

_POLL_S = 0.05
_GRACE_S = 10.0
"""Time that ranks have to end by themselves after one has failed."""


def launch(job: Job, resume: str, nproc: int, quiet: bool) -> Path:
    """Runs the job in this process, in new processes, or as a rank of a launcher's run."""
    launched = "RANK" in os.environ
    if nproc > 1 and not launched:
        if job.parallel.strategy == "local":
            raise UserError(
                f"parallel.strategy: local is one process, not the {nproc} of --nproc; "
                "use --set parallel.strategy=zero3"
            )
        return _spawn(job, resume, nproc, quiet)
    if nproc > 1 and nproc != int(os.environ.get("LOCAL_WORLD_SIZE", nproc)):
        raise UserError(
            f"--nproc: {nproc} is not the {os.environ['LOCAL_WORLD_SIZE']} processes that the "
            "launcher started here; leave --nproc out"
        )
    from distill.running.run import run

    try:
        # stdout is for results only, and libraries print to it.
        with contextlib.redirect_stdout(sys.stderr), interruptible():
            return run(job, resume, quiet)
    except UserError:
        # A machine's other ranks have the same error; one line is enough.
        if launched and int(os.environ.get("LOCAL_RANK", "0")) > 0 and VARIABLE not in os.environ:
            raise SystemExit(2) from None
        raise


def _spawn(job: Job, resume: str, nproc: int, quiet: bool) -> Path:
    """Starts the ranks, passes signals on to them, and raises their error once."""
    store = host_store()
    with tempfile.TemporaryDirectory(prefix="lightx2v-sgmd-") as folder:
        job_file = Path(folder) / "job.yaml"
        job_file.write_text(job.to_yaml(), encoding="utf-8")
        arguments = [str(job_file), resume, str(int(quiet))]
        shared = _environment(nproc, store.port)
        ranks = []
        for rank in range(nproc):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), VARIABLE: f"{folder}/{rank}.json"}
            ranks.append(start_module("distill.running.launch", arguments, {**shared, **own}))
        with _passing_on_signals(ranks) as signalled:
            codes, first = _wait(ranks)
        for process in ranks:
            release(process)
        written = [read_report(Path(folder) / f"{rank}.json") for rank in range(nproc)]
    if first is None:
        return job.output.dir
    reports = [report for report in written if report is not None]
    for report in reports:
        if report.code == 2:
            raise UserError(*report.lines)
    if any(code == 130 for code in codes) or signalled:
        raise KeyboardInterrupt
    if codes[first] < 0:
        name = signal.Signals(-codes[first]).name
        cause = ", as happens when memory is full" if name == "SIGKILL" else ""
        raise RunError(
            f"rank {first} of {nproc} was ended by {name}{cause}; run the same command again "
            "to resume from the last checkpoint"
        )
    if reports:
        raise RunError(*reports[0].lines)
    raise RuntimeError(
        f"rank {first} of {nproc} failed with exit code {codes[first]}; its error is printed above"
    )


def _environment(nproc: int, port: int) -> dict[str, str]:
    return {
        **process_environment(nproc),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # This tells torch that no rank opens that port and that all connect to it.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextmanager
def _passing_on_signals(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Inside, the first signal goes to the ranks as a request, and a Ctrl-C after it kills them.

    Gives the list of signals that came.
    """
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1 and number != signal.SIGINT:
            return
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    with handling(dict.fromkeys(STOPPING, receive)):
        yield received


def _wait(ranks: list[subprocess.Popen[bytes]]) -> tuple[list[int], int | None]:
    """Waits for all ranks; returns their exit codes and the rank that failed first.

    When one has failed, the others get a little time and are then killed.
    """
    first, failed_at = None, 0.0
    while True:
        codes = [rank.poll() for rank in ranks]
        if first is None and any(codes):
            # If several failed, the killed one is first: the others fail because it is gone.
            failed = [rank for rank, code in enumerate(codes) if code]
            first = min(failed, key=lambda rank: codes[rank] or 0)
            failed_at = time.monotonic()
        if all(code is not None for code in codes):
            return [code or 0 for code in codes], first
        if first is not None and time.monotonic() - failed_at > _GRACE_S:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
        time.sleep(_POLL_S)


def main(arguments: list[str]) -> int:
    """Runs a rank with the arguments ``JOB.yaml RESUME QUIET``; writes a user error to a file."""
    job_file, resume, quiet = arguments
    follow_parent()
    try:
        launch(load_job(job_file), resume, 1, quiet == "1")
    except UserError as error:
        write_report(RankError(error.lines, 2))
        return 2
    except RunError as error:
        write_report(RankError((str(error),), 1))
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
