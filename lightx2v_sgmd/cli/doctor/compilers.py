"""Checks whether C++ extensions can be built here, and names the command that makes it so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from lightx2v_sgmd.cli.doctor.report import Check, pip

_PACKAGE_MANAGERS: Final = {
    "apt-get": "sudo apt-get install -y build-essential python{version}-dev",
    "dnf": "sudo dnf install -y gcc-c++ make python{version}-devel",
    "yum": "sudo yum install -y gcc-c++ make python{version}-devel",
    "zypper": "sudo zypper install -y gcc-c++ make python{version}-devel",
    "pacman": "sudo pacman -S --needed base-devel python",
    "apk": "sudo apk add build-base python3-dev linux-headers",
    "brew": "xcode-select --install",
}
"""The command of each package manager that adds a C++ compiler and Python's headers."""

_LIBAIO: Final = {
    "apt-get": "sudo apt-get install -y libaio-dev",
    "dnf": "sudo dnf install -y libaio-devel",
    "yum": "sudo yum install -y libaio-devel",
    "zypper": "sudo zypper install -y libaio-devel",
    "pacman": "sudo pacman -S --needed libaio",
    "apk": "sudo apk add libaio-dev",
}
"""The command of each package manager that adds libaio, for asynchronous reading and writing."""


def offloading() -> Check:
    """Reports whether DeepSpeed can build its asynchronous I/O, which NVMe offload needs."""
    from lightx2v_sgmd.system.compilers import libaio_problem

    name, problem = "nvme offload", libaio_problem()
    if not problem:
        return Check(name, "ok", "libaio works; DeepSpeed builds its I/O on first use, in minutes")
    reason, _, remedy = problem.partition("; ")
    for manager, command in _LIBAIO.items():
        if "libaio-dev" in remedy and shutil.which(manager):
            remedy = command
    return Check(name, "missing", f"parallel.offload nvme cannot run: {reason}", remedy)


def build_problem() -> tuple[str, str]:
    """The reason why C++ extensions cannot be built here, and the remedy; "" if they can."""
    found = compiler()
    if found is None:
        return "no C++ compiler", system_packages()
    problem = _compile(found)
    if problem:
        return problem, system_packages()
    if shutil.which("ninja") is None:
        beside = Path(sys.executable).parent / "ninja"
        if beside.exists():
            return "ninja is not on the PATH", f'export PATH="{beside.parent}:$PATH"'
        return "no ninja", pip("ninja")
    done = subprocess.run(["ninja", "--version"], capture_output=True, timeout=30)
    return ("ninja does not run", pip("--force-reinstall ninja")) if done.returncode else ("", "")


def compiler() -> str | None:
    """The path of the C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def _compile(program: str) -> str:
    """Compiles a line of C++ against Python's headers; returns the error, or ""."""
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").is_file():
        return f"Python's headers are missing (Python.h in {include})"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <vector>\nint probe() { return 0; }\n")
        output = str(source.with_suffix(".so"))
        command = [program, "-shared", "-fPIC", f"-I{include}", str(source), "-o", output]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return ""
    return f"{program} fails: {(done.stderr.strip().splitlines() or ['no message'])[0]}"


def system_packages() -> str:
    """The command that adds a C++ compiler and Python's headers to this system."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for manager, command in _PACKAGE_MANAGERS.items():
        if shutil.which(manager):
            return command.format(version=version)
    return "install a C++ compiler and Python's header files"
