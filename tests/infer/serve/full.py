"""A queue and its worker on a disk that fills up and is emptied again.

Started by ``test_jobs.py`` on a small file system: ``python -m tests.infer.serve.full FOLDER``.
"""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from infer.serve.jobs import JobStore
from infer.serve.work import maker as making
from infer.serve.work.messages import ServerStopped
from lightx2v_sgmd.system.errors import is_full_disk
from tests.infer.serve.standin import WANTED, StandIn, make_backend, make_maker


def main(folder: Path) -> None:
    """Prints ``refused``, ``waited`` and ``completed``, or fails."""
    backend = make_backend(folder / "data")
    accepted = [backend.store.add(replace(WANTED, seed=seed), 1000).id for seed in range(3)]
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    try:
        while True:
            prompt = "a red circle" * 300
            accepted.append(backend.store.add(replace(WANTED, prompt=prompt), 1000).id)
    except sqlite3.OperationalError as error:
        assert is_full_disk(error), error
    print("refused", flush=True)
    making.SPACE_S = 0.05  # type: ignore[misc]
    waited, emptied = threading.Event(), threading.Event()
    ours, theirs = multiprocessing.Pipe()
    worker = make_maker(make_backend(folder / "data"), StandIn(), theirs)
    wait = worker._wait_for_server

    def wait_and_note(wait_s: float) -> None:
        if wait_s == making.SPACE_S:
            waited.set()
            emptied.wait()
        wait(wait_s)

    worker._wait_for_server = wait_and_note  # type: ignore[method-assign]

    def work() -> None:
        with suppress(ServerStopped):
            worker.work(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    waited.wait()
    assert {job.status for name in accepted if (job := backend.store.get(name))} <= {
        "queued",
        "in_progress",
    }
    assert not [*backend.results.folder.glob("videos/*.mp4")]
    print("waited", flush=True)
    filler.unlink()
    emptied.set()
    store = JobStore(backend.results.queue)
    pause = threading.Event()
    while thread.is_alive() and store.counts()["completed"] < len(accepted):
        pause.wait(0.05)
    ours.send("stop")
    thread.join()
    assert store.names() == set(accepted)
    assert all(backend.results.video(name).stat().st_size for name in accepted)
    print("completed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
