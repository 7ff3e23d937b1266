"""Joins a Ray cluster, and says what it has. Ray is an extra."""

from __future__ import annotations

import os
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import is_installed

NAMESPACE: Final = "lightx2v-sgmd"


def join(option: str) -> Any:
    """Joins the cluster of ``RAY_ADDRESS``, or starts one of this machine alone; returns Ray.

    Without the variable no other cluster is joined: Ray by itself would take one that somebody
    started on this machine, and send it the job.

    Args:
        option: The option that needs it, for the message.

    Raises:
        UserError: Ray or Ray Serve is not installed, or the cluster cannot be reached.
    """
    if not is_installed("ray"):
        raise UserError(
            f"{option}: needs ray, which is not installed; pip install 'lightx2v-sgmd[ray]'"
        )
    import ray

    try:
        from ray import serve  # noqa: F401  # a part of Ray with packages of its own
    except ImportError as error:
        raise UserError(
            f"{option}: Ray Serve cannot be imported ({error}); pip install 'lightx2v-sgmd[ray]'"
        ) from error
    own: dict[str, Any] = {"address": "local", "include_dashboard": False}
    named = bool(os.environ.get("RAY_ADDRESS"))
    try:
        ray.init(
            **({} if named else own),
            namespace=NAMESPACE,
            ignore_reinit_error=True,
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{option}: the Ray cluster of RAY_ADDRESS cannot be joined ({error}); start one with "
            "`ray start --head`, or unset RAY_ADDRESS"
        ) from error
    return ray


def share_of_machine(ray: Any, device: object) -> dict[str, float]:
    """What one engine takes of a machine: a GPU where the cluster has any, else a CPU.

    Args:
        ray: The package, joined to a cluster.
        device: The device that was asked for; a CPU takes no GPU.
    """
    has_gpus = float(ray.cluster_resources().get("GPU", 0)) >= 1
    if has_gpus and not str(device or "").startswith("cpu"):
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_gpus": 0, "num_cpus": 1}


def places(ray: Any, share: dict[str, float]) -> int:
    """The number of engines that the cluster has room for; at least one."""
    have = ray.cluster_resources()
    counted = "GPU" if share["num_gpus"] else "CPU"
    return max(1, int(have.get(counted, 1)))
