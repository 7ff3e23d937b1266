"""Mutation testing: does some test fail when the code has a small error?

    python -m tools.checks.mutation --work build/mutation                  # all modules of MODULES
    python -m tools.checks.mutation --work build/mutation distill/data.py  # one of them
    python -m tools.checks.mutation --work build/mutation --report         # what is known so far

For each module in ``MODULES`` it makes mutants (see ``mutants``) and runs the module's own tests on
each: those that reach the changed line, the fastest first, until one fails. A mutant that every
test passes survives. Results are appended to WORK/results.jsonl, and the same command run again
goes on from there: a result is used as long as the module's code is the same and, for a survivor,
its tests are.

A process that has imported the libraries, but nothing of this project, forks a child for each
mutant, and an import hook gives the child the changed module. Processes that a test starts by a
command see the unchanged code. Needs an operating system with ``fork``.

``docs/mutants.md`` lists survivors with the reason why each is harmless. The command ends with 1 if
it knows a survivor that the page does not list.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, Final

from tools.checks.mutants import Site, sites

ADVERSARIAL: Final = "tests/distill/test_adversarial_gradients.py"
LOSS_TESTS: Final = (
    "tests/methods/test_gradient_paths.py",
    "tests/methods/test_sgmd.py",
    "tests/methods/test_tsg_fisher.py",
    "tests/methods/test_tsg_sim.py",
    "tests/methods/test_sid.py",
    "tests/methods/test_dmd2.py",
    "tests/methods/test_adm.py",
    "tests/methods/test_adp.py",
)
METHOD_TESTS: Final = (
    *LOSS_TESTS,
    "tests/methods/test_dmdx.py",
    "tests/methods/test_base.py",
    "tests/distill/test_methods.py",
    ADVERSARIAL,
)
LOOP_TESTS: Final = (
    "tests/distill/test_trainer.py",
    "tests/distill/test_predictions.py",
    "tests/distill/test_methods.py",
    "tests/distill/test_updates.py",
    "tests/distill/test_phased.py",
    ADVERSARIAL,
)

MODULES: Final[dict[str, tuple[str, ...]]] = {
    "lightx2v_sgmd/flow.py": ("tests/test_flow.py",),
    "lightx2v_sgmd/interpolants.py": ("tests/test_interpolants.py",),
    "lightx2v_sgmd/schedule.py": ("tests/test_schedule.py",),
    "lightx2v_sgmd/rollout.py": ("tests/test_rollout.py",),
    "lightx2v_sgmd/objectives.py": ("tests/test_objectives.py", *LOSS_TESTS),
    "lightx2v_sgmd/methods/sgmd.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/dmd2.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/adm.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/adp.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/dmdx.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/sid.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/tsg.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/tsg_fisher.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/tsg_sim.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/base.py": METHOD_TESTS,
    "lightx2v_sgmd/methods/__init__.py": ("tests/methods/test_base.py",),
    "lightx2v_sgmd/networks/discriminator_heads.py": (
        "tests/networks/test_discriminator_heads.py",
    ),
    "distill/pretraining.py": (ADVERSARIAL,),
    "distill/data.py": ("tests/distill/test_data.py",),
    "distill/predictions.py": LOOP_TESTS,
    "distill/trainer.py": (*LOOP_TESTS, "tests/distill/test_experts.py"),
    "distill/updates.py": (
        "tests/distill/test_updates.py",
        "tests/distill/test_trainer.py",
        "tests/distill/test_experts.py",
    ),
    "distill/loss_terms.py": ("tests/distill/test_loss_terms.py",),
    "distill/observed.py": ("tests/distill/test_observed.py",),
}
"""The test files that must see a module's errors; the most important modules come first."""

OWN: Final = ("lightx2v_sgmd", "distill", "infer", "weights", "tests", "tools")
REASONS: Final = Path("docs/mutants.md")
SURVIVED, KILLED, TIMED_OUT, NOT_REACHED = "survived", "killed", "timed out", "not reached"


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module by compiling a tree in place of its file.

    Args:
        path: The module's file, relative to the repository.
        make: Makes the code object from the file's path.
    """

    def __init__(self, path: str, make: Callable[[str], types.CodeType]) -> None:
        self._name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._path, self._make = Path(path).resolve(), make

    def find_spec(
        self, fullname: str, path: Any = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``MetaPathFinder``."""
        if fullname != self._name:
            return None
        loader = _Loader(fullname, str(self._path), self._make)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, make: Callable[[str], types.CodeType]) -> None:
        super().__init__(name, path)
        self._make = make

    def get_code(self, fullname: str) -> types.CodeType:
        return self._make(str(self.path))


class Coverage:
    """A pytest plugin that records the lines of one file that each test runs, and its time.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = str(Path(path).resolve())
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}
        # Collecting runs lines too, where a test's module makes its cases.
        self.collecting = self._now = set[int]()
        sys.settrace(self._trace)

    def _trace(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != self._path:
            return None
        if event == "line":
            self._now.add(frame.f_lineno)
        return self._trace

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Begins a test; its fixtures count as a part of it."""
        self._now = self.lines.setdefault(item.nodeid, set())
        sys.settrace(self._trace)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Adds the time of a part of a test."""
        before = self.seconds.get(report.nodeid, 0.0)
        self.seconds[report.nodeid] = before + report.duration


def run_child(work: Callable[[], Any], log: Path, limit_s: float) -> Any:
    """Runs ``work`` in a fork and returns its result, or None if it takes longer than the limit.

    The result must be JSON. What the child prints goes to ``log``.
    """
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            result.write_text(json.dumps(work()))
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + limit_s
    pause = 0.005
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    with contextlib.suppress(ProcessLookupError):  # what a test has started and left
        os.killpg(child, signal.SIGKILL)
    return json.loads(result.read_text()) if result.exists() else "no result"


def pytest_run(arguments: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """Runs tests in this process."""
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # these tests need none, and loading is slow
    options = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--tb=line"]
    return int(pytest.main([*options, *arguments], plugins=[*plugins]))


def measure(path: str, tests: Sequence[str]) -> dict[str, Any]:
    """Runs a module's tests unchanged: what each one reaches, and which libraries they import.

    Raises:
        SystemExit: a test fails.
    """
    coverage = Coverage(path)
    code = pytest_run(tests, [coverage])
    sys.settrace(None)
    if code:
        raise SystemExit(f"{path}: its tests fail without any change")
    return {
        "lines": {test: sorted(lines) for test, lines in coverage.lines.items()},
        "seconds": coverage.seconds,
        "collecting": sorted(coverage.collecting),
        "libraries": [name for name in sys.modules if name.split(".")[0] not in OWN],
    }


def import_libraries(names: Sequence[str]) -> None:
    """Imports libraries once for all children; nothing of the project, nor what pytest rewrites."""
    import warnings

    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name.startswith(("pytest", "_pytest", "__m", "conftest")):
                continue
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy the parent's pages


def run_mutant(path: str, number: int, tests: Sequence[str]) -> int:
    """Applies one mutant in this process and runs tests on it."""

    def make(file: str) -> types.CodeType:
        tree, found = sites(Path(path).read_text(encoding="utf-8"))
        found[number].apply()
        return compile(tree, file, "exec", dont_inherit=True)

    sys.meta_path.insert(0, Finder(path, make))
    return pytest_run(tests)


def reaching(site: Site, baseline: dict[str, Any]) -> list[str]:
    """The tests that run a place, the fastest first."""
    seconds = baseline["seconds"]
    lines = set(range(site.lines[0], site.lines[1] + 1))
    by_all = site.at_import or bool(lines & {*baseline["collecting"]})
    tests = [test for test, reached in baseline["lines"].items() if by_all or lines & {*reached}]
    return sorted(tests, key=lambda test: float(seconds.get(test, 0.0)))


def names_of(found: Sequence[Site]) -> list[str]:
    """A name for each mutant that does not depend on line numbers: ``function: before → after``."""
    seen: Counter[str] = Counter()
    names = []
    for site in found:
        name = f"{site.function}: {site.describe()}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def digest(paths: Sequence[str]) -> str:
    """One hash of several files."""
    content = b"\0".join(Path(path).read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()[:16]


def code_digest(source: str) -> str:
    """A hash of a module's code: the same after a change of comments, layout or docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def read_results(work: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The newest result of each mutant, of modules and tests as they are now."""
    file = work / "results.jsonl"
    sources = {path: code_digest(Path(path).read_text(encoding="utf-8")) for path in MODULES}
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        row = json.loads(line)
        path = row["module"]
        if path not in MODULES or row["source"] != sources[path]:
            continue
        same_tests = row["tests"] == digest(MODULES[path])
        if same_tests or row["outcome"] in (KILLED, TIMED_OUT):
            found[path, row["mutant"]] = row
    return found


def run_module(path: str, work: Path) -> None:
    """Runs all mutants of a module that have no result yet."""
    tests = MODULES[path]
    _, found = sites(Path(path).read_text(encoding="utf-8"))
    names, known = names_of(found), read_results(work)
    missing = [number for number, name in enumerate(names) if (path, name) not in known]
    if not missing:
        return
    source = code_digest(Path(path).read_text(encoding="utf-8"))
    same = {"module": path, "source": source, "tests": digest(tests)}
    log = work / f"{os.getpid()}.log"
    baseline = run_child(lambda: measure(path, tests), log, 1200)
    if not isinstance(baseline, dict):
        raise SystemExit(f"{path}: its tests do not pass without any change; see {log}")
    import_libraries(baseline["libraries"])
    print(f"{path}: {len(missing)} of {len(found)} mutants", flush=True)
    for number in missing:
        chosen = reaching(found[number], baseline)
        started = time.monotonic()
        outcome = NOT_REACHED
        if chosen:
            limit_s = 30 + 5 * sum(baseline["seconds"].get(test, 0.0) for test in chosen)
            code = run_child(partial(run_mutant, path, number, chosen), log, limit_s)
            outcome = TIMED_OUT if code is None else SURVIVED if code == 0 else KILLED
        row = {**same, "mutant": names[number], "line": found[number].lines[0]}
        row |= {"outcome": outcome, "seconds": round(time.monotonic() - started, 2)}
        with (work / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if outcome in (SURVIVED, NOT_REACHED):
            print(f"{path}:{row['line']} {outcome}: {names[number]}", flush=True)


def listed(page: Path = REASONS) -> set[tuple[str, str]]:
    """Module and mutant of each item that the page lists below a module's heading."""
    found, module = set(), ""
    for line in page.read_text(encoding="utf-8").splitlines() if page.exists() else []:
        if line.startswith("### "):
            module = line.removeprefix("### ").strip().strip("`")
        elif line.startswith("- `` "):
            found.add((module, line.removeprefix("- `` ").split(" ``")[0]))
    return found


def report(work: Path, paths: Sequence[str]) -> Iterator[str]:
    """A table of the modules that were run, and the survivors that no reason is given for."""
    results, reasons = read_results(work), listed()
    yield "| module | run | listed | killed | at least |"
    yield "|---|---|---|---|---|"
    unexplained = []
    for path in paths:
        names = names_of(sites(Path(path).read_text(encoding="utf-8"))[1])
        rows = {name: results[path, name] for name in names if (path, name) in results}
        if not rows:
            continue
        killed = sum(row["outcome"] in (KILLED, TIMED_OUT) for row in rows.values())
        alive = [name for name in names if name in rows and rows[name]["outcome"] in ALIVE]
        harmless = sum((path, name) in reasons for name in alive)
        unexplained += [f"{path}: {name}" for name in alive if (path, name) not in reasons]
        whole = "" if len(rows) == len(names) else f" of {len(names)}"
        share = killed / max(1, len(names) - harmless)
        yield f"| `{path}` | {len(rows)}{whole} | {harmless} | {killed} | {share:.1%} |"
    yield from ["", *unexplained]


ALIVE: Final = (SURVIVED, NOT_REACHED)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs modules or reports them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="Modules to run; by default all.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of results and logs.")
    parser.add_argument("--report", action="store_true", help="Run nothing; print the table.")
    arguments = parser.parse_args(argv)
    unknown = [path for path in arguments.modules if path not in MODULES]
    if unknown:
        parser.error(f"{unknown[0]} is not in MODULES; add it with its tests")
    arguments.work.mkdir(parents=True, exist_ok=True)
    paths = arguments.modules or list(MODULES)
    if not arguments.report:
        for path in paths:
            run_module(path, arguments.work)
    lines = list(report(arguments.work, paths))
    print("\n".join(lines))
    return int(bool(lines[-1]))


if __name__ == "__main__":
    raise SystemExit(main())
