"""The steps of the check, and how long each should take. Imports nothing heavy.

Their order is that of their worth: what the goals and the memory plans are held to comes first, and
all but the last two fit into the default budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from lightx2v_sgmd.families.size_rules import SizeRules
from lightx2v_sgmd.networks.kernel_names import Attention


@dataclass(frozen=True)
class StepPlan:
    """A step before it runs.

    Attributes:
        name: For ``--steps``.
        module: Below ``tools.gpu_check.steps``; its ``run(context, step)`` measures.
        title: The title of its section.
        expected_s: Seconds it should take, by shape: on an H100, and for ``sprites`` on two cores.
        least_s: Seconds below which it is not started. Steps of several rows begin when the first
            rows fit, and leave out those that do not.
        rows: Labels of its rows, for ``--rows``.
    """

    name: str
    module: str
    title: str
    expected_s: dict[str, float]
    least_s: dict[str, float]
    rows: tuple[str, ...] = ()


def _step(
    name: str,
    title: str,
    full: tuple[float, float, float],
    least: tuple[float, float, float] | None = None,
    module: str = "",
) -> StepPlan:
    names = ("14b", "1.3b", "sprites")
    return StepPlan(
        name,
        module or name,
        title,
        dict(zip(names, full, strict=True)),
        dict(zip(names, least or full, strict=True)),
        _ROWS[name],
    )


_ENGINE = "engine, as it comes"
_KERNELS = tuple(name for name in get_args(Attention) if name != "auto")
_ROWS = {
    "machine": ("system", "packages", "gpu", "doctor"),
    "limits": (
        "product in the engine's precision, copy, launch",
        "bf16 product",
        "TF32 product",
        "fp8 product",
    ),
    "attention": _KERNELS,
    "bundled": ("float32, TF32 off", "float32, as it is", "bfloat16, eager", "defaults"),
    "forward": (
        "stock, eager",
        _ENGINE,
        "engine, compiled",
        "stock, compiled",
        "engine, fp8",
        "engine, eager",
    ),
    "video": (_ENGINE,),
    "training": ("local", "zero3"),
    "tests": ("all",),
    "vae": ("stock diffusers", _ENGINE, "engine, float16"),
    "selective": ("local, selective",),
    "decodes": (
        "engine, bfloat16",
        "engine, not compiled",
        "engine, not channels last",
        "engine, TF32 off",
        "engine, cudnn.benchmark",
        "engine, 1 latent frame at once",
        "engine, 4 latent frames at once",
        "engine, tiled",
        "stock diffusers, bfloat16",
    ),
    "kernels": tuple(name for name in _KERNELS if name != "sage"),  # which is approximate
}
"""The rows that a step asks for, on one machine or another."""


STEPS = {
    step.name: step
    for step in (
        _step("machine", "what this machine has", (30, 30, 10), (20, 20, 10)),
        _step("limits", "the ceilings: copies and matrix products", (25, 25, 5), (8, 8, 5)),
        _step("attention", "every attention kernel", (30, 25, 3), (10, 10, 3)),
        _step("bundled", "the bundled teacher against the CPU", (45, 45, 8), (15, 15, 8)),
        _step("forward", "one forward of the network", (130, 100, 45), (30, 25, 20)),
        _step("video", "a whole video by stage", (75, 60, 5), (55, 45, 5)),
        _step("training", "training iterations", (220, 220, 120), (105, 105, 30)),
        _step("tests", "the GPU tests", (90, 90, 15), (40, 30, 5), module="gpu_tests"),
        _step("vae", "the VAE's decode", (60, 60, 4), (15, 15, 3)),
        _step("selective", "training with attention's outputs stored", (105, 105, 30)),
        _step("decodes", "the decode in other settings", (105, 105, 5), (25, 25, 3)),
        _step("kernels", "a forward with each attention kernel", (200, 120, 40), (60, 40, 30)),
    )
}
SIZES = {"14b": (480, 832, 81), "1.3b": (480, 832, 81), "sprites": (32, 32, 9)}
"""Height, width and frames that are measured, by shape."""
SIZE_RULES = SizeRules(temporal=4, spatial=8, patch=(1, 2, 2), channels=16, most_positions=1024)
"""The sizes that every shape can make."""
