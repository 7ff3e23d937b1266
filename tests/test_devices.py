"""On a host with a GPU, all tests but those marked ``gpu`` run as they do elsewhere."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import devices

TESTS = Path(__file__).resolve().parent
OWN = {"test_devices.py", "students.py", "devices.py"}


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("-m gpu", True),
        ("-q -mgpu tests/infer", True),
        ("-m=gpu", True),
        ("tests -m 'gpu and not slow'", True),
        ("", False),
        ("-m 'not gpu'", False),
        ("-m 'gpu or slow'", False),
        ("-m slow -k gpu", False),
        ("tests/gpu", False),
    ],
)
def test_only_a_session_for_gpu_tests_sees_a_gpu(
    line: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices.hide_gpus(shlex.split(line))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0" if asks else "")


def test_this_session_hides_them_from_what_it_starts() -> None:
    """A command that a test starts takes the CPU, whatever the machine has."""
    if devices.asks_for_gpu_tests(sys.argv[1:]):
        pytest.skip("this session is for GPU tests")
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "''"


def implicit_devices(source: str) -> list[int]:
    """Lines that load a student without saying where, or look for a GPU in an unmarked test.

    ``tests.students.load_student`` says where; the applications' own does not.
    """
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "tests":
            found += [node.lineno for alias in node.names if alias.name == "load_student"]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".load_student"):
            if all(word.arg != "device" for word in node.keywords):
                found.append(node.lineno)
    return found


def gpu_choices(source: str) -> list[int]:
    """Lines that take the GPU where there is one: a test says its device, by a mark if need be."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        node.lineno
        for node in calls
        if ast.unparse(node.func) in ("torch.cuda.is_available", "training_device")
    ]


def test_every_test_names_its_device() -> None:
    bad = []
    for path in sorted(TESTS.rglob("*.py")):
        if path.name in OWN or path == TESTS / "conftest.py":
            continue
        source = path.read_text(encoding="utf-8")
        for line in [*implicit_devices(source), *gpu_choices(source)]:
            bad.append(f"{path.relative_to(TESTS)}:{line}")
    assert bad == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from infer import Cancelled, load_student", [1]),
        ("from lightx2v_sgmd import load_student", [1]),
        ("import infer\ninfer.load_student('x', compile=True)", [2]),
        ("import infer\ninfer.load_student('x', device='cpu')", []),
        ("from tests.students import load_student\nload_student('x')", []),
        ("import torch\nd = 'cuda' if torch.cuda.is_available() else 'cpu'", [2]),
    ],
)
def test_a_device_left_open_is_seen(source: str, lines: list[int]) -> None:
    assert [*implicit_devices(source), *gpu_choices(source)] == lines
