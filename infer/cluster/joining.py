"""Joins a Ray cluster, and says what it has. Ray is an extra."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from infer.options import Options
from lightx2v_sgmd.system.errors import UserError, first_line, short_line
from lightx2v_sgmd.system.optional_packages import is_installed

NAMESPACE: Final = "lightx2v-sgmd"


LOCAL: Final = "local"
"""The address of a cluster of this machine alone, which is started for the purpose."""
AnyOptions = TypeVar("AnyOptions", bound=Options)


def join(option: str, address: str | None = None, with_serve: bool = True) -> Any:
    """Joins a cluster, or starts one of this machine alone; returns Ray.

    Without an address no other cluster is joined: Ray by itself would take one that somebody
    started on this machine, and send it the job.

    Args:
        option: The option that needs it, for the message.
        address: The cluster, or ``LOCAL``; default that of ``RAY_ADDRESS``, and without the
            variable ``LOCAL``.
        with_serve: True if Ray Serve is needed, which has packages of its own.

    Raises:
        UserError: Ray or Ray Serve is not installed, or the cluster cannot be reached.
    """
    if not is_installed("ray"):
        raise UserError(
            f"{option}: needs ray, which is not installed; pip install 'lightx2v-sgmd[ray]'"
        )
    import ray

    if with_serve:
        try:
            from ray import serve  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"{option}: Ray Serve cannot be imported ({error}); pip install "
                "'lightx2v-sgmd[ray]'"
            ) from error
    named = address or os.environ.get("RAY_ADDRESS") or LOCAL
    own: dict[str, Any] = {"include_dashboard": False} if named == LOCAL else {}
    try:
        ray.init(
            address=named,
            namespace=NAMESPACE,
            ignore_reinit_error=True,
            logging_level="ERROR",
            log_to_driver=False,
            **own,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = short_line(named if address else f"{named} of RAY_ADDRESS", 100)
        raise UserError(
            f"{option}: the Ray cluster {where} cannot be joined ({first_line(error)}); start one "
            "with `ray start --head`, or let this machine work alone"
        ) from error
    return ray


@contextmanager
def joined(option: str, address: str | None) -> Iterator[Any]:
    """Joins a cluster for a while; see ``join``. One that the caller had joined is not left.

    What Ray prints, the death of a machine for example, goes to stderr: stdout is for results.
    """
    ray = sys.modules.get("ray")
    before = ray is not None and ray.is_initialized()
    with redirect_stdout(sys.stderr):
        ray = join(option, address, with_serve=False)
        try:
            yield ray
        finally:
            if not before:
                ray.shutdown()  # ends what still runs for this process


def everywhere(path: Path) -> Path:
    """A path as other machines find it; the name of a known model stays as it is."""
    return path.absolute() if path.exists() else path


def options_everywhere(options: AnyOptions) -> AnyOptions:
    """The same options, with paths as other machines find them."""
    loras = tuple(replace(lora, path=everywhere(lora.path)) for lora in options.loras)
    base = options.base and everywhere(Path(options.base))
    cache = options.text_cache and options.text_cache.absolute()
    compiled = options.compile_cache and options.compile_cache.absolute()
    return replace(options, loras=loras, base=base, text_cache=cache, compile_cache=compiled)


def share_of_machine(ray: Any, device: object) -> dict[str, float]:
    """The share of a machine that one engine takes: a GPU where the cluster has any, else a CPU.

    Args:
        ray: The package, joined to a cluster.
        device: The device that was asked for; a CPU takes no GPU.
    """
    has_gpus = float(ray.cluster_resources().get("GPU", 0)) >= 1
    if has_gpus and not str(device or "").startswith("cpu"):
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_gpus": 0, "num_cpus": 1}


def engine_count(ray: Any, share: dict[str, float]) -> int:
    """The number of engines that the cluster has room for; at least one."""
    have = ray.cluster_resources()
    counted = "GPU" if share["num_gpus"] else "CPU"
    return max(1, int(have.get(counted, 1)))
