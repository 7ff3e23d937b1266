"""Import rules between folders (docs/decisions/017-rooms.md), read off the source with ``ast``.

``flow, interpolants, schedule <- objectives, rollout <- methods <- distill``; ``families, parallel
<- applications``; applications import the library and never one another; the library imports an
application only where everything is put together, and there lazily.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "lightx2v_sgmd"
APPLICATIONS = ("distill", "infer", "weights")
# The rooms of the library from the bottom up; each imports only those before it.
ROOMS = (
    "system",
    "untrusted",
    "outputs",
    "flow",
    "interpolants",
    "schedule",
    "files",
    "objectives",
    "rollout",
    "methods",
    "job",
    "networks",
    "families",
    "parallel",
    "text",
    "sampling",
    "measures",
    "apps",
    "cli",
    "comfyui",
    "lightx2v",
)
# Where the applications are put together.
TOP_ROOMS = (f"{LIBRARY}.apps", f"{LIBRARY}.cli", f"{LIBRARY}.lightx2v")
# It names the options of a command and imports nothing heavy, which a test in tests/infer holds.
OPTIONS = "infer.options"
# Only this module knows LightX2V.
LIGHTX2V_HOME = f"{LIBRARY}.lightx2v"
DEEPSPEED_HOME = f"{LIBRARY}.parallel.zero3.engines"
# They stop at a broken optional package, unless that was hidden from them before.
PREPARED = ("diffusers", "transformers", "accelerate", "peft")
ERRORS = f"{LIBRARY}.system.errors"
BASE = {ERRORS, f"{LIBRARY}.flow", f"{LIBRARY}.interpolants", f"{LIBRARY}.schedule"}
# What the modules of the mathematics may import of the library: what is below them.
BELOW = {
    f"{LIBRARY}.flow": {ERRORS},
    f"{LIBRARY}.interpolants": {ERRORS, f"{LIBRARY}.flow"},
    f"{LIBRARY}.schedule": {ERRORS, f"{LIBRARY}.flow"},
    f"{LIBRARY}.objectives": BASE,
    f"{LIBRARY}.rollout": BASE,
    f"{LIBRARY}.methods": BASE | {f"{LIBRARY}.objectives", f"{LIBRARY}.rollout"},
}
# Only methods put losses together; objectives are theirs alone.
ONLY_METHODS = f"{LIBRARY}.objectives"


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target`` in ``line``; ``lazy`` inside a function or for types only."""

    module: str
    target: str
    line: int
    lazy: bool


def imports(module: str, source: str) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: relative import"
                for alias in child.names:
                    yield Import(module, f"{child.module}.{alias.name}", child.lineno, lazy)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from visit(child, lazy or inside or types)

    yield from visit(ast.parse(source), lazy=False)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(found: list[Import]) -> list[str]:
    return [
        f"{item.module}:{item.line} imports {item.target}: {reason}"
        for item in found
        if (reason := forbidden(item))
    ]


def forbidden(item: Import) -> str | None:
    own = item.module.split(".")[0]
    target = item.target.split(".")[0]
    if target == "deepspeed" and item.module != DEEPSPEED_HOME:
        return f"only {DEEPSPEED_HOME} imports deepspeed"
    if target in ("lightx2v", "lightx2v_train") and item.module != LIGHTX2V_HOME:
        return f"only {LIGHTX2V_HOME} imports LightX2V"
    if target in PREPARED and own in (LIBRARY, *APPLICATIONS) and not item.lazy:
        return "it is imported where it is used, after optional.prepare_libraries"
    if own in APPLICATIONS and target in APPLICATIONS and own != target:
        return "applications never import one another; what two share belongs to the library"
    if own == LIBRARY and target in APPLICATIONS:
        if item.module != LIBRARY and not any(within(item.module, top) for top in TOP_ROOMS):
            return "the library does not know the applications"
        if not item.lazy and not within(item.target, OPTIONS):
            return "an application is imported where it is used, so that --help stays quick"
    layer = next((layer for layer in BELOW if within(item.module, layer)), None)
    if layer is not None and target == LIBRARY and not within(item.target, layer):
        if not any(within(item.target, below) for below in BELOW[layer]):
            return f"{layer} may import only {', '.join(sorted(BELOW[layer])) or 'nothing'}"
    if target == LIBRARY and item.module != LIBRARY and level(item.target) > level(item.module):
        return "a room imports only the rooms below it"
    if within(item.target, ONLY_METHODS) and not within(item.module, f"{LIBRARY}.methods"):
        return "losses are put together by methods"
    if own in (LIBRARY, *APPLICATIONS) and target in ("tests", "tools"):
        return "what is installed does not import what is not"
    return None


def level(module: str) -> float:
    """How high a module's room is; the applications are between the library and its top rooms."""
    if module.split(".")[0] in APPLICATIONS:
        return ROOMS.index("apps") - 0.5
    if not module.startswith(f"{LIBRARY}."):
        return float("inf")
    room = module.split(".")[1]
    # Names of the package itself, such as its version, are below everything.
    return ROOMS.index(room) if room in ROOMS else float("inf") if room == "__main__" else -1


def project_imports() -> list[Import]:
    found: list[Import] = []
    for package in (LIBRARY, *APPLICATIONS):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found += imports(module, path.read_text(encoding="utf-8"))
    return found


def test_the_project_keeps_the_layers() -> None:
    assert violations(project_imports()) == []


def test_the_walk_sees_the_project() -> None:
    found = {(item.module, item.target) for item in project_imports()}
    assert (f"{LIBRARY}.cli.generate", "infer.generate_files") in found
    assert (f"{LIBRARY}.methods.sgmd", f"{LIBRARY}.objectives") in found
    assert {package.split(".")[0] for package, _ in found} == {LIBRARY, *APPLICATIONS}


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("infer.engine", "from distill.trainer import Trainer", "never import one another"),
        ("weights", "def f():\n    import infer", "never import one another"),
        (
            "lightx2v_sgmd.families.wan.model",
            "import weights.io.source",
            "does not know the applications",
        ),
        ("lightx2v_sgmd.text.x", "def f():\n    import distill", "does not know the applications"),
        (
            "lightx2v_sgmd.files.video",
            "from lightx2v_sgmd.families.wan import model as wan",
            "rooms below",
        ),
        ("lightx2v_sgmd.job.rules", "def f():\n    import lightx2v_sgmd.parallel", "rooms below"),
        ("infer.checks", "from lightx2v_sgmd.apps.sprites import world", "rooms below"),
        ("lightx2v_sgmd.apps.demo", "from lightx2v_sgmd.cli import main", "rooms below"),
        ("lightx2v_sgmd.cli.main", "from distill import distill", "imported where it is used"),
        ("distill.trainer", "import deepspeed.comm as dist", "imports deepspeed"),
        ("lightx2v_sgmd.parallel.base", "def f():\n    import deepspeed", "imports deepspeed"),
        ("weights.x", "import lightx2v_train.utils.registry", "imports LightX2V"),
        ("lightx2v_sgmd.cli.job", "import lightx2v_sgmd.lightx2v", "rooms below"),
        ("infer.text", "from transformers import AutoTokenizer", "after optional.prepare"),
        ("lightx2v_sgmd.families.wan.model", "import diffusers.models", "after optional.prepare"),
        ("lightx2v_sgmd.flow", "from lightx2v_sgmd.schedule import Schedule", "may import only"),
        ("lightx2v_sgmd.rollout", "from lightx2v_sgmd import models", "may import only"),
        ("lightx2v_sgmd.methods.sgmd", "import lightx2v_sgmd.parallel", "may import only"),
        ("distill.trainer", "from lightx2v_sgmd.objectives import fisher", "by methods"),
        ("distill.data", "from tests.tiny import make_tiny_wan", "does not import what is not"),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str, reason: str) -> None:
    (line,) = violations(list(imports(module, source)))
    assert reason in line


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lightx2v_sgmd.cli.main", "def f():\n    from distill import distill"),
        ("lightx2v_sgmd", "if TYPE_CHECKING:\n    from infer import generate"),
        ("lightx2v_sgmd.parallel.zero3.engines", "import deepspeed"),
        ("lightx2v_sgmd.methods.sgmd", "from lightx2v_sgmd.methods.base import Losses"),
        ("distill.trainer", "from lightx2v_sgmd.rollout import rollout\nimport distill.data"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(list(imports(module, source))) == []
