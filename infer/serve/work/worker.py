"""The process that owns the device: it loads the student, and makes the videos of the queue.

It says what it found through a pipe: ``Opened``, ``Ready``, ``Refused``. It stops between steps
when the pipe says so, and at once when the server is gone; what it had claimed is then queued
again.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from sqlite3 import OperationalError
from typing import TYPE_CHECKING

from infer.serve.jobs import JobStore
from infer.serve.options import Served
from infer.serve.results import Results
from infer.serve.work.maker import Maker
from infer.serve.work.messages import Opened, Order, Ready, Refused, ServerStopped
from infer.serve.work.previews import Previews
from infer.serve.work.students import Fit, Students
from lightx2v_sgmd.system.errors import UserError

if TYPE_CHECKING:
    from lightx2v_sgmd.parallel.ranks import Ranks


def run(order: Order, pipe: Connection, followers: Sequence[Connection] = ()) -> None:
    """The whole life of a worker; see the module.

    Args:
        order: The order that starts it.
        pipe: To the server.
        followers: To the other processes that make videos together with this one.
    """
    _live_with_the_server()
    try:
        with _ranks(order, followers) as ranks:
            _work(order, pipe, ranks, followers)
    except UserError as error:
        pipe.send(Refused(str(error)))


def run_follower(order: Order, leader: Connection, rank: int) -> None:
    """The whole life of another process of a group; see ``group``.

    Args:
        order: The order that starts the worker.
        leader: From the first process.
        rank: The number of this process.
    """
    from infer.serve.work.group import BROKEN, follow

    _live_with_the_server()
    batch = order.batch_size or 1
    try:
        follow(order.weights, order.engine, order.loras, batch, leader, rank, order.nproc)
    except (EOFError, UserError):
        pass  # the first process is gone, or refuses it as well
    except BaseException:
        traceback.print_exc()
        os._exit(BROKEN)  # the others may wait in a collective, and a usual end would as well


@contextmanager
def _ranks(order: Order, followers: Sequence[Connection]) -> Iterator[Ranks | None]:
    if not followers:
        yield None
        return
    from infer.serve.work.group import leading

    with leading(order.engine.device, followers) as ranks:
        yield ranks


def _work(
    order: Order, pipe: Connection, ranks: Ranks | None, followers: Sequence[Connection]
) -> None:
    """Loads the first weights, and makes videos until the server says stop."""
    from infer.serve.work.group import Leader

    results = Results(order.folder)
    own = Students(order.weights, order.engine, order.loras, order.batch_size or 1, ranks)
    fits = own.check()
    students: Students | Leader = own if ranks is None else Leader(own, ranks, followers)
    served = [served_as(name, fit, images=ranks is None) for name, fit in fits.items()]
    pipe.send(Opened(tuple(served)))
    students.get(next(iter(order.weights)), None)
    with closing(JobStore(results.queue)) as store:
        results.sweep(store)
        pipe.send(Ready())
        maker = Maker(students, store, results, order.worker, pipe, Previews(results))
        with suppress(ServerStopped):
            maker.work(order.batch_size)
        with suppress(OperationalError):  # the server does it as well
            store.release(order.worker, died=False)
    if isinstance(students, Leader):
        students.stop()


def _live_with_the_server() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach both; the server says stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_server, name="watch the server", daemon=True).start()


def _die_with_the_server() -> None:
    """Ends this process as soon as the server's has ended, whatever it is doing.

    Its files are temporary until they are whole, so nothing half-written is left in their place.
    """
    server = parent_process()
    assert server is not None, "a worker is started by a server"
    wait([server.sentinel])
    os._exit(3)


def served_as(name: str, fit: Fit, images: bool = True) -> Served:
    """The facts of checked weights that requests are checked against.

    Args:
        name: Their name.
        fit: The check's result.
        images: False if videos cannot start from an image here.
    """
    checked = fit.checked
    video = checked.video
    return Served(
        name=name,
        trained=(video.height, video.width, video.num_frames) if video else None,
        fps=checked.fps,
        steps=len(checked.schedule),
        shift=checked.schedule.shift,
        rules=checked.model.size_rules,
        loras=fit.loras,
        takes_image=checked.model.takes_image if images else "never",
    )
