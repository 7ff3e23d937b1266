"""Checks of this machine's compilers, for DeepSpeed on a CPU and for passes over the tokens."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import why_unusable


def check_compiler() -> None:
    """Checks that DeepSpeed can compile its shared-memory all-reduce for CPUs at its first start.

    Raises:
        UserError: no compiler here can do it.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"parallel.strategy: zero3 on a CPU needs a C++ compiler, and there is no {compiler}; "
            "install g++ (Debian: apt install g++) or use parallel.strategy=local"
        )
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        raise UserError(
            "parallel.strategy: zero3 on a CPU needs ninja; install it (pip install ninja) or use "
            "parallel.strategy=local"
        )


_PROBE = """
#include <libaio.h>
int main() { io_context_t context = 0; return io_setup(1, &context) ? 3 : 0; }
"""


def libaio_problem() -> str:
    """The reason why DeepSpeed cannot use asynchronous I/O here, and the remedy; "" if it can."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return "there is no C++ compiler to build on it; install g++ (Debian: apt install g++)"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cpp", str(Path(folder) / "probe")
        source.write_text(_PROBE, encoding="utf-8")
        command = [compiler, str(source), "-laio", "-o", program]
        if subprocess.run(command, capture_output=True, timeout=60).returncode:
            return "libaio is not there; install it (Debian: apt install libaio-dev)"
        if subprocess.run([program], timeout=60).returncode:
            return (
                "the kernel refuses asynchronous I/O (io_setup); raise fs.aio-max-nr or allow it "
                "in the container"
            )
    return ""


def compiles(setting: str, device: torch.device) -> bool:
    """True if a job's ``parallel.compile`` compiles on a device.

    Raises:
        UserError: the setting is ``always``, and something that the compiler needs is missing.
    """
    if setting == "never" or (setting == "auto" and device.type != "cuda"):
        return False
    problem = compiler_problem(device)
    if problem and setting == "always":
        raise UserError(f"parallel.compile: always needs {problem}, or use parallel.compile=never")
    return not problem


def compiler_problem(device: torch.device) -> str:
    """The thing that torch.compile lacks on a device, and the remedy; "" if nothing is missing."""
    if device.type == "cuda":
        problem = why_unusable("triton")
        return (
            f"Triton on a GPU, which {problem}; install it (pip install triton)" if problem else ""
        )
    if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return ""
    return "a C++ compiler on a CPU; install g++ (Debian: apt install g++)"
