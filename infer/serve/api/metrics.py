"""The server's figures in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from infer.serve.jobs import JobStore

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX: Final = "lightx2v_sgmd_"


def metrics_text(store: JobStore, worker_ready: bool, restarts: int, queue_limit: int) -> str:
    """The page that a Prometheus server reads.

    Args:
        store: The queue.
        worker_ready: True if the worker has loaded the weights.
        restarts: Number of times that the worker was started again.
        queue_limit: The most jobs that may wait.
    """
    counts, totals = store.counts(), store.counters()
    finished = [
        (f'{{status="{name}"}}', totals[name]) for name in ("completed", "failed", "cancelled")
    ]
    return "".join(
        [
            _metric(
                "videos",
                "gauge",
                "Videos by status.",
                [(f'{{status="{status}"}}', count) for status, count in counts.items()],
            ),
            _metric("queue_limit", "gauge", "Most videos that may wait.", [("", queue_limit)]),
            _metric("finished_videos_total", "counter", "Videos that ended, by outcome.", finished),
            _metric(
                "generation_seconds_total",
                "counter",
                "Seconds spent on completed videos.",
                [("", totals["seconds"])],
            ),
            _metric(
                "worker_ready", "gauge", "1 if the weights are loaded.", [("", int(worker_ready))]
            ),
            _metric("worker_restarts_total", "counter", "Starts after a death.", [("", restarts)]),
        ]
    )


def _metric(name: str, kind: str, meaning: str, values: Sequence[tuple[str, float]]) -> str:
    lines = [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} {kind}"]
    lines += [f"{_PREFIX}{name}{labels} {value:.10g}" for labels, value in values]
    return "\n".join(lines) + "\n"
